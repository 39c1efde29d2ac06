"""Learning progress: tasks whose scores change, up or down, are sampled more often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.data.task_sampling.base import ScoreSampler
from mtrl.registry import register


@register("task_sampling", "learning_progress")
class LearningProgress(ScoreSampler):
    """p_k = explore / K + (1 - explore) |fast_k - slow_k| / sum_j |fast_j - slow_j|.

    The absolute progress of Matiisen et al., "Teacher-Student Curriculum Learning" (2017), measured as in Kanitscheider
    et al. (2021): the difference of two exponential means of the scores.

    Use it where some tasks are too hard at first: experience goes to those whose score is changing.

    Differences from the papers:
        1. Means begin at the task's first score.
        2. No reweighting of small success probabilities; `explore` guarantees a share for tasks without success.

    Args:
        slow: Step size of the slow mean.
        fast: Step size of the fast mean per episode; `slow` is that of the slow one.
        explore: Share that is distributed uniformly.
    """

    means: Tensor
    seen: Tensor

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        fast: float = 0.1,
        slow: float = 0.01,
        explore: float = 0.2,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        if not 0 < slow < fast <= 1:
            raise ValueError(f"0 < slow < fast <= 1 is needed, not {slow} and {fast}.")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must be from 0 to 1, not {explore}.")
        self.steps = torch.tensor([fast, slow], dtype=torch.float64)
        self.explore = explore
        self.register_buffer("means", torch.zeros(2, num_tasks, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_tasks, dtype=torch.bool))

    def add(self, task: int, score: float) -> None:
        step = self.steps if self.seen[task] else torch.ones_like(self.steps)
        self.means[:, task] += step * (score - self.means[:, task])
        self.seen[task] = True

    def probabilities(self) -> Float[Tensor, " K"]:
        progress = (self.means[0] - self.means[1]).abs()
        uniform = torch.full_like(progress, 1 / self.num_tasks)
        share = progress / progress.sum() if progress.sum() > 1e-9 else uniform
        return self.explore * uniform + (1 - self.explore) * share
