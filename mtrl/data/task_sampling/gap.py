"""Gap: tasks further from their targets get more, and no task less than a floor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative, positive
from mtrl.data.task_sampling.base import ScoreSampler
from mtrl.registry import register


@register("task_sampling", "gap")
class Gap(ScoreSampler):
    """p proportional to exp(eta g), g_k = max(1 - a_k, 0), a_k a running mean of scores, and no share below a floor.

    DRATS (Corrado, Huang and Hanna, "Distributionally Robust Multi-Task Reinforcement Learning via Adaptive Task
    Sampling", 2026): the shares with the largest mean gap to the targets, less its KL divergence from uniform ones over
    eta. Shares below the floor are raised to it, and the others scaled down (`at_least`).

    Use it where tasks need very different numbers of steps. The floor is for learners without a replay, which forget
    what they no longer see; whether it suffices has not been measured here.

    Differences from the paper:
        1. Its shares take a small step towards this form at every update: log p becomes (1 - step) log p + step eta g.
           That is a running mean of gaps over updates. Here it is one over the episodes of each task.
        2. The gap is that of scores, between 0 at the baseline and 1 at the target; the paper's is that of returns.

    Args:
        eta: 0 is uniform; the higher, the more goes to the tasks with the largest gaps.
        step: Weight of an episode in the running mean of its task.
        least: Share that every task has at least, as a fraction of the uniform one.
    """

    mean: Tensor

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        eta: float = 8.0,
        step: float = 0.05,
        least: float = 0.25,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        not_negative(eta=eta)
        positive(step=step)
        if step > 1 or not 0 <= least <= 1:
            raise ValueError(f"step must be at most 1 and least from 0 to 1, not {step} and {least}.")
        self.eta, self.step, self.least = eta, step, least
        self.register_buffer("mean", torch.zeros(num_tasks, dtype=torch.float64))

    def add(self, task: int, score: float) -> None:
        self.mean[task] += self.step * (score - self.mean[task])

    def probabilities(self) -> Float[Tensor, " K"]:
        gap = (1 - self.mean).clamp(min=0)
        return at_least((self.eta * gap).softmax(0), self.least / self.num_tasks)


def at_least(p: Float[Tensor, " K"], floor: float) -> Float[Tensor, " K"]:
    """The distribution closest to p, in KL divergence from p, with no entry below `floor` (at most 1 / K)."""
    raised = torch.zeros_like(p, dtype=torch.bool)
    while True:
        rest = torch.where(raised, 0, p)
        result = torch.where(raised, floor, rest * (1 - floor * raised.sum()) / rest.sum())
        below = result < floor * (1 - 1e-9)  # not where rounding is all that is missing
        if not below.any():
            return result
        raised |= below
