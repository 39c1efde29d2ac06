"""Adaptive schedule: tasks with poorer results, compared with their targets, are sampled more often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative, positive
from mtrl.data.task_sampling.base import RecentScores, ScoreSampler
from mtrl.registry import register


@register("task_sampling", "adaptive_schedule")
class AdaptiveSchedule(ScoreSampler):
    """p_k proportional to 1 / (min(1, a_k)^alpha + epsilon), a_k the mean of recent scores.

    Jean, Firat and Johnson, "Adaptive Scheduling for Multi-Task Learning" (2019), explicit schedules. (Their implicit
    ones scale gradients, not shares.)

    Use it for a bounded preference of tasks that fail.

    Differences from the paper:
        1. Scores below the baseline count as 0.
        2. Uniform until every task has `window` episodes.

    Args:
        window: Number of scores that are averaged.
        alpha: 0 is uniform; the higher, the less often tasks near their targets are sampled.
        epsilon: Limits the share of a task without success: at most 1 / epsilon times that of one at its target.
    """

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        window: int = 10,
        alpha: float = 1.0,
        epsilon: float = 0.1,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        positive(window=window, epsilon=epsilon)
        not_negative(alpha=alpha)
        self.recent, self.alpha, self.epsilon = RecentScores(num_tasks, window), alpha, epsilon

    def add(self, task: int, score: float) -> None:
        self.recent.add(task, score)

    def probabilities(self) -> Float[Tensor, " K"]:
        if not self.recent.full():
            return torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64)
        weights = 1 / (self.recent.mean().clamp(0, 1) ** self.alpha + self.epsilon)
        return weights / weights.sum()
