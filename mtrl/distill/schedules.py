"""Schedules of coefficients over training. Registered under the kind "schedule"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.data.experience import EpisodeStatistics
from mtrl.registry import build, register
from mtrl.types import EnvSpec, Metrics, State

Value = float | dict[str, Any]
"""A coefficient in a configuration: a number, which is constant, or a schedule's node."""


class Schedule:
    """Base of the schedules. A schedule without state only needs `start`, `end` and `__call__`."""

    start: float
    """Initial value."""
    end: float
    """Final value; all other values are between these two."""

    def __call__(self, progress: float) -> Tensor:
        """The value, () or one per task (K,), in float64; `progress` in [0, 1] is the fraction of training done."""
        raise NotImplementedError

    def observe(self, statistics: Metrics) -> None:
        """Receives `EpisodeStatistics.statistics()`."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return


@register("schedule", "constant")
class Constant(Schedule):
    """The same value throughout.

    Use it where nothing should change.

    Args:
        value: The value.
    """

    def __init__(self, value: float) -> None:
        self.start = self.end = float(value)

    def __call__(self, progress: float) -> Tensor:
        return torch.tensor(self.end, dtype=torch.float64)


@register("schedule", "linear")
class Linear(Schedule):
    """Changes linearly from `start` to `end`.

    Use it where something should change at the same pace in all tasks, such as a teacher that fades out.

    Args:
        start: Value at the beginning.
        end: Value at the end.
        until: Fraction of training at which `end` is reached.
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
    """Changes from `start` to `end` as a task's success rate in training rises from 0 to `target`, for each task.

    The success rate is a moving average over rows of the log, and 0 for a task without finished episodes.

    Use it where tasks are learned at different speeds, and each should lose its teacher when it is ready.

    Args:
        start: Value at success 0.
        end: Value from `target` on.
        target: The success rate at which `end` is reached.
        step_size: Step size of the moving average.
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
    """Builds a schedule from a number or a node. It observes the statistics of episodes from then on.

    Raises:
        UserError: The node is not valid.
    """
    node = {"name": "constant", "value": value} if isinstance(value, int | float) else value
    schedule: Schedule = build("schedule", node, spec=spec)
    episodes.listeners.append(schedule.observe)
    return schedule
