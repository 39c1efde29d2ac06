"""`counting`: an environment whose observations identify their origin, so that tests detect any mix-up."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtrl.checks import not_negative, positive
from mtrl.envs.base import TorchVecEnv
from mtrl.registry import register
from mtrl.types import EnvSpec


@register("env", "counting")
class CountingEnv(TorchVecEnv):
    """Observation: (task, goal, episode, step, slot), whole numbers as float32. Actions change nothing.

    `episode` counts the episodes of the slot, including those begun by `reset`, and `step` the steps of the episode.
    The reward of a transition is `1000 * task + step`, with the step it leads to. Terminated episodes are successful.

    Use it in tests of what stores or samples transitions: each of them says where it comes from.

    Args:
        num_tasks: K.
        episode_length: Steps of an episode in slot 0.
        stagger: Episodes of slot i have `i % (stagger + 1)` more steps, so that slots are not done together.
        terminate_every: Episodes whose number is a multiple of this terminate; the others are truncated. 0 for none.
        action_kind: "continuous" or "discrete".
        action_dim: Size of the action, or number of actions.
        num_goals: Goals per task.
    """

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        num_tasks: int = 3,
        episode_length: int = 5,
        stagger: int = 0,
        terminate_every: int = 2,
        action_kind: Literal["continuous", "discrete"] = "continuous",
        action_dim: int = 2,
        num_goals: int = 50,
        slots_per_task: int = 1,
    ) -> None:
        positive(num_tasks=num_tasks, episode_length=episode_length, action_dim=action_dim, num_goals=num_goals)
        not_negative(stagger=stagger, terminate_every=terminate_every)
        spec = EnvSpec(
            task_names=tuple(f"count-{i}" for i in range(num_tasks)),
            obs_shape=(5,),
            obs_dtype=torch.float32,
            action_kind=action_kind,
            action_dim=action_dim,
            action_mask=((True,) * action_dim,) * num_tasks,
            horizon=None if stagger else episode_length,
            reports_success=(True,) * num_tasks,
            comparable_returns=num_tasks == 1,
            num_goals=num_goals,
        )
        super().__init__(spec, num_envs, num_goals, seed, device, slots_per_task)
        self._slot = torch.arange(self.num_envs, device=self.device)
        self._length = episode_length + self._slot % (stagger + 1)
        self._terminate_every = terminate_every
        self.variables["episode"] = torch.full_like(self._slot, -1)

    def begin(self) -> dict[str, Tensor]:
        return {"episode": self.variables["episode"] + 1}

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        done = self.variables["step"] >= self._length
        if self._terminate_every:
            terminates = self.variables["episode"] % self._terminate_every == 0
        else:
            terminates = torch.zeros_like(done)
        reward = (1000 * self.task + self.variables["step"]).float()
        return reward, done & terminates, done & ~terminates, done & terminates

    def observe(self) -> Tensor:
        columns = (self.task, self.goal, self.variables["episode"], self.variables["step"], self._slot)
        return torch.stack(columns, dim=1).float()
