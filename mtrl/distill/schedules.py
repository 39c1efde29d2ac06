"""Schedules: what a coefficient is as training goes on. Registered under the kind "schedule"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.data.experience import EpisodeStatistics
from mtrl.registry import build, register
from mtrl.types import EnvSpec, Metrics, State

Value = float | dict[str, Any]
"""How a configuration gives a coefficient: as a number, which is constant, or as a schedule's node."""


class Schedule:
    """Base of the schedules. One without state needs no more than its call."""

    start: float
    """What it begins with."""
    end: float
    """What it comes to: all other values are between these two."""

    def __call__(self, progress: float) -> Tensor:
        """The value, () or one for each task (K,), in float64; `progress` in [0, 1] is the share of training done."""
        raise NotImplementedError

    def observe(self, statistics: Metrics) -> None:
        """Receives `EpisodeStatistics.statistics()`."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return


@register("schedule", "constant")
class Constant(Schedule):
    """The same value throughout."""

    def __init__(self, value: float) -> None:
        self.start = self.end = float(value)

    def __call__(self, progress: float) -> Tensor:
        return torch.tensor(self.end, dtype=torch.float64)


@register("schedule", "linear")
class Linear(Schedule):
    """From `start` to `end` in a straight line.

    Args:
        until: Share of training at which it is there.
    """

    def __init__(self, start: float, end: float, until: float = 1.0) -> None:
        if not 0 < until <= 1:
            raise ValueError(f"until must be a share of training above 0 and up to 1, not {until}.")
        self.start, self.end, self.until = float(start), float(end), until

    def __call__(self, progress: float) -> Tensor:
        share = min(progress / self.until, 1.0)
        return torch.tensor(self.start + (self.end - self.start) * share, dtype=torch.float64)


@register("schedule", "success")
class Success(Schedule):
    """From `start` to `end` as a task's success rate in training goes from 0 to `target`: for each task by itself.

    The success rate is a moving average over rows of the log; that of a task of which no episode has ended is 0.

    Args:
        step_size: Of the moving average.
    """

    def __init__(self, spec: EnvSpec, start: float, end: float, target: float, step_size: float = 0.2) -> None:
        if spec.silent_tasks:
            raise ValueError(f"no success is reported by {', '.join(spec.silent_tasks)}: use a linear schedule.")
        if not 0 < target <= 1:
            raise ValueError(f"target must be a success rate above 0 and up to 1, not {target}.")
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], not {step_size}.")
        self.start, self.end, self.target, self.step_size = float(start), float(end), target, step_size
        self.success = torch.zeros(spec.num_tasks, dtype=torch.float64)

    def __call__(self, progress: float) -> Tensor:
        return self.start + (self.end - self.start) * (self.success / self.target).clamp(max=1)

    def observe(self, statistics: Metrics) -> None:
        seen = statistics["success_rate"].to(self.success)
        self.success = self.success.lerp(seen.where(seen.isfinite(), self.success), self.step_size)

    def state_dict(self) -> State:
        return {"success": self.success}

    def load_state_dict(self, state: State) -> None:
        self.success = state["success"].to(self.success, copy=True)


def as_schedule(value: Value, spec: EnvSpec, episodes: EpisodeStatistics) -> Schedule:
    """The schedule that a number or a node means, told of the results of episodes from here on.

    Raises:
        UserError: It cannot be made so.
    """
    node = {"name": "constant", "value": value} if isinstance(value, int | float) else value
    schedule: Schedule = build("schedule", node, spec=spec)
    episodes.listeners.append(schedule.observe)
    return schedule
