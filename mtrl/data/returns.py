"""Discounted returns of the episodes that slots are running."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.signal import lfilter
from torch import Tensor

from mtrl.types import State


class ReturnTracker:
    """Stores the rewards of each slot's running episode, and computes the largest return of a finished one.

    The return of step t is G_t = r_t + gamma G_{t+1}. After a truncated episode the rewards are assumed to
    continue forever at their mean (as in BRC, Nauman et al. 2025); with gamma = 1, where that diverges, to stop.
    """

    def __init__(self, num_envs: int) -> None:
        self._rewards = torch.zeros(256, num_envs, dtype=torch.float64)
        self._length = torch.zeros(num_envs, dtype=torch.int64)

    def add(self, reward: Float[Tensor, " B"]) -> None:
        """Adds a step of every slot."""
        if int(self._length.max()) == len(self._rewards):
            self._rewards = torch.cat([self._rewards, torch.zeros_like(self._rewards)])
        self._rewards[self._length, torch.arange(len(reward))] = reward.double()
        self._length += 1

    def end(self, done: Bool[Tensor, " B"], terminated: Bool[Tensor, " B"], gamma: float) -> Float[Tensor, " E"]:
        """Ends the episodes of the E slots in `done`, and returns max_t |G_t| of each."""
        length, truncated = self._length[done], ~terminated[done]
        self._length[done] = 0
        step = torch.arange(int(length.max()))[:, None]
        rewards = self._rewards[: len(step), done].where(step < length, 0)
        if gamma < 1:
            following = rewards.sum(0) / length / (1 - gamma) * truncated
            rewards += (gamma * following).where(step == length - 1, 0)
        returns = lfilter([1.0], [1.0, -gamma], rewards.flip(0).numpy(), axis=0)
        return torch.from_numpy(np.abs(returns).max(0))

    def state_dict(self) -> State:
        return {"rewards": self._rewards[: int(self._length.max())], "length": self._length}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if there are fewer rewards than steps."""
        # Copied, because they are modified in place.
        rewards, self._length = state["rewards"], state["length"].to("cpu", copy=True)
        if not 0 <= int(self._length.min()) <= int(self._length.max()) <= len(rewards):
            raise ValueError(f"rewards: expected {int(self._length.max())} steps, found {len(rewards)}")
        missing = max(256, len(rewards)) - len(rewards)
        self._rewards = torch.cat([rewards.cpu(), torch.zeros(missing, rewards.shape[1], dtype=torch.float64)])
