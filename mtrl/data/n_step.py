"""Several steps of a slot as one transition."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from mtrl.checks import positive
from mtrl.types import State

Row = dict[str, Shaped[Tensor, "B ..."]]
"""What one step of B slots adds, by name."""


class NStep:
    """Joins each step with the following ones to a transition of n steps, or of fewer where an episode ends.

    Its `reward` is the discounted sum r_0 + gamma r_1 + ... of m <= n steps, its `next_obs` the observation after them,
    and its `continuation` gamma^(m - 1), or 0 where the value of that observation counts as zero: a learner whose
    target is reward + gamma continuation V(next_obs) then learns from n steps. There is no correction for the actions
    of older policies (as in Rainbow, Hessel et al. 2018), and no entropy bonus for the steps in between.

    Args:
        n: Number of steps; with 1 transitions stay as they are.
        gamma: Discount factor of the learner.
    """

    def __init__(self, n: int, gamma: float) -> None:
        positive(n_step=n)
        self.n, self.gamma = n, gamma
        self._pending: list[Row] = []
        """The last steps, at most n - 1, whose transitions are not complete."""

    def add(self, row: Row) -> Row | None:
        """Adds a step of every slot; returns the transition that began n - 1 steps before, once there are n.

        Args:
            row: reward, continuation, next_obs and done; anything else is that of a transition's first step.
        """
        self._pending.append(row)
        if len(self._pending) < self.n:
            return None
        first, *self._pending = self._pending
        joined = dict(first)
        weight, running = 1.0, ~joined["done"] & (joined["continuation"] > 0)
        for later in self._pending:
            weight *= self.gamma
            joined["reward"] = joined["reward"] + weight * later["reward"].where(running, 0)
            joined["continuation"] = torch.where(running, weight * later["continuation"], joined["continuation"])
            slots = running.reshape(-1, *[1] * (later["next_obs"].ndim - 1))
            joined["next_obs"] = torch.where(slots, later["next_obs"], joined["next_obs"])
            running = running & ~later["done"] & (later["continuation"] > 0)
        return joined

    def state_dict(self) -> State:
        rows = self._pending
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if there are more steps than this one keeps."""
        columns = [tensor.unbind() for tensor in state.values()]
        self._pending = [dict(zip(state, values, strict=True)) for values in zip(*columns, strict=True)]
        if (waiting := len(self._pending)) >= self.n:
            raise ValueError(f"The saved state is of transitions of more than {waiting} steps, not {self.n}.")
