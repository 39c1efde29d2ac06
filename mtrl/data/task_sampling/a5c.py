"""A5C: tasks further from their targets get more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import positive
from mtrl.data.task_sampling.base import RecentScores, ScoreSampler
from mtrl.registry import register


@register("task_sampling", "a5c")
class A5C(ScoreSampler):
    """Adaptive active sampling: p = softmax(m / tau), m_k = max(1 - a_k, 0), a_k the mean of recent scores.

    Sharma et al., "Learning to Multi-Task by Active Sampling" (2018). Sources differ on the settings:
    tau = 0.05 with 10 scores, or tau = 1 with 3.

    Use it with a replay, or with `tau=1`: with the default, a solved task gets almost nothing, and a learner without a
    replay forgets it.

    Differences from the paper:
        1. Uniform until every task has `window` episodes, rather than for a fixed number of steps.
        2. Many slots run at once; the probabilities are their shares.

    Args:
        window: Number of scores that are averaged.
        tau: Temperature: the higher, the more alike the shares.
    """

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        window: int = 10,
        tau: float = 0.05,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        positive(window=window, tau=tau)
        self.recent, self.tau = RecentScores(num_tasks, window), tau

    def add(self, task: int, score: float) -> None:
        self.recent.add(task, score)

    def probabilities(self) -> Float[Tensor, " K"]:
        if not self.recent.full():
            return torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64)
        return ((1 - self.recent.mean()).clamp(min=0) / self.tau).softmax(0)
