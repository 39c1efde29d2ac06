"""Multi-task problems that train in seconds, batched on any device. Observations do not reveal the task.

Goals are start positions, so that the episodes of an evaluation are the same every time.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mtrl.checks import positive
from mtrl.envs.base import TorchVecEnv
from mtrl.registry import register
from mtrl.types import EnvSpec

NUM_STARTS = 50


@register("env", "toy_reach")
class ToyReach(TorchVecEnv):
    """A point in the square [-1, 1]^2 must go to the target of its task, which is not observed.

    Observation: position (2,). Action: displacement (2,), times 0.2. Reward: minus the distance to the target, after
    the step. Success: within 0.1 of it. The K targets lie on a circle of radius 0.7. Truncated at the horizon.

    Use it to try continuous actions and methods in seconds.

    Args:
        num_tasks: K.
        horizon: Steps of an episode.
    """

    SPEED, RADIUS, TARGET_CIRCLE = 0.2, 0.1, 0.7

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        num_tasks: int = 4,
        horizon: int = 25,
        slots_per_task: int = 1,
    ) -> None:
        positive(num_tasks=num_tasks, horizon=horizon)
        spec = EnvSpec(
            task_names=tuple(f"reach-{i}" for i in range(num_tasks)),
            obs_shape=(2,),
            obs_dtype=torch.float32,
            action_kind="continuous",
            action_dim=2,
            action_mask=((True, True),) * num_tasks,
            horizon=horizon,
            reports_success=(True,) * num_tasks,
            comparable_returns=True,
            num_goals=NUM_STARTS,
        )
        super().__init__(spec, num_envs, NUM_STARTS, seed, device, slots_per_task)
        angle = torch.arange(num_tasks) * (2 * math.pi / num_tasks)
        self._targets = self.TARGET_CIRCLE * torch.stack((angle.cos(), angle.sin()), dim=1).to(self.device)
        # Part of the problem, like the targets: the same for every seed and device.
        starts = torch.rand(NUM_STARTS, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._starts, self._horizon = starts.to(self.device), horizon
        self._reward_scale = torch.ones(num_tasks, device=self.device)
        self.variables["position"] = torch.zeros(self.num_envs, 2, device=self.device)

    def begin(self) -> dict[str, Tensor]:
        return {"position": self._starts[self.goal]}

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        position = (self.variables["position"] + self.SPEED * action).clamp(-1.0, 1.0)
        self.variables["position"] = position
        distance = (position - self._targets[self.task]).norm(dim=1)
        truncated = self.variables["step"] >= self._horizon
        reward = -distance * self._reward_scale[self.task]
        return reward, torch.zeros_like(truncated), truncated, distance < self.RADIUS

    def observe(self) -> Tensor:
        return self.variables["position"].clone()


@register("env", "toy_scale")
class ToyScale(ToyReach):
    """`ToyReach` with rewards of different scales: those of task i are multiplied by 10^(-1.5 + 3 i / (K - 1)).

    Use it to try what rewards of different scales need: value scaling, weighting.

    Args:
        num_tasks: K.
        horizon: Steps of an episode.
    """

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        num_tasks: int = 4,
        horizon: int = 25,
        slots_per_task: int = 1,
    ) -> None:
        super().__init__(num_envs, seed, device, num_tasks, horizon, slots_per_task)
        self.spec = dataclasses.replace(self.spec, comparable_returns=num_tasks == 1)
        self._reward_scale = torch.logspace(-1.5, 1.5, num_tasks, device=self.device)


@register("env", "toy_grid")
class ToyGrid(TorchVecEnv):
    """A walker on a square grid must go to the corner of its task, which is not observed.

    Observation: one-hot cell (size^2,). Actions: 0 up, 1 down, 2 left, 3 right; walls stop it. Arriving gives a reward
    of 1, terminates, and is a success; otherwise the reward is 0. Truncated at the horizon. Starts: all but corners.

    Use it to try discrete actions and methods in seconds.

    Args:
        size: Cells along a side, at least 3.
        horizon: Maximal length of an episode.
    """

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        size: int = 5,
        horizon: int = 20,
        slots_per_task: int = 1,
    ) -> None:
        positive(horizon=horizon)
        if size < 3:
            raise ValueError(f"size must be at least 3, not {size}.")
        corners = [(0, 0), (0, size - 1), (size - 1, 0), (size - 1, size - 1)]
        starts = [(row, column) for row in range(size) for column in range(size) if (row, column) not in corners]
        spec = EnvSpec(
            task_names=("top-left", "top-right", "bottom-left", "bottom-right"),
            obs_shape=(size * size,),
            obs_dtype=torch.float32,
            action_kind="discrete",
            action_dim=4,
            action_mask=((True,) * 4,) * 4,
            horizon=horizon,
            reports_success=(True,) * 4,
            comparable_returns=True,
            num_goals=len(starts),
        )
        super().__init__(spec, num_envs, len(starts), seed, device, slots_per_task)
        self._size, self._horizon = size, horizon
        self._corners = torch.tensor(corners, device=self.device)
        self._starts = torch.tensor(starts, device=self.device)
        self._moves = torch.tensor([(-1, 0), (1, 0), (0, -1), (0, 1)], device=self.device)
        self.variables["cell"] = torch.zeros(self.num_envs, 2, dtype=torch.int64, device=self.device)

    def begin(self) -> dict[str, Tensor]:
        return {"cell": self._starts[self.goal]}

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cell = (self.variables["cell"] + self._moves[action]).clamp(0, self._size - 1)
        self.variables["cell"] = cell
        arrived = (cell == self._corners[self.task]).all(dim=1)
        truncated = (self.variables["step"] >= self._horizon) & ~arrived
        return arrived.float(), arrived, truncated, arrived

    def observe(self) -> Tensor:
        row, column = self.variables["cell"].unbind(dim=1)
        return torch.nn.functional.one_hot(row * self._size + column, self._size**2).float()
