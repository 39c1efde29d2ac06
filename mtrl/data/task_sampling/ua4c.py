"""UA4C: the choice of the next task as a bandit that is rewarded by missing score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative, positive
from mtrl.data.task_sampling.base import ScoreSampler
from mtrl.registry import register


@register("task_sampling", "ua4c")
class UA4C(ScoreSampler):
    """UCB-based active sampling: discounted UCB with reward max(1 - score, 0) for each episode.

    Sharma et al., "Learning to Multi-Task by Active Sampling" (2018); the index is that of Garivier and
    Moulines (2011): mean reward X_k + c sqrt(log n / N_k), discounted by gamma per episode, n = sum_k N_k.

    Use it where shares should follow the scores, and no task be left alone for long.

    Differences from the paper:
        1. B slots run at once: the shares are those of the next B plays, each counted as soon as it is planned. With
           one slot this is the original bandit.
        2. Rewards are at most 1 (scores below the baseline count as 0).

    Args:
        num_slots: B.
        gamma: Discount per episode; 1 to never forget.
        c: Weight of the exploration bonus.
    """

    plays: Tensor
    rewards: Tensor

    def __init__(
        self,
        num_tasks: int,
        num_slots: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        gamma: float = 0.99,
        c: float = 0.25,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        positive(gamma=gamma)
        not_negative(c=c)
        if gamma > 1:
            raise ValueError(f"gamma must be at most 1, not {gamma}.")
        self.num_slots, self.gamma, self.c = num_slots, gamma, c
        self.register_buffer("plays", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("rewards", torch.zeros(num_tasks, dtype=torch.float64))

    def add(self, task: int, score: float) -> None:
        self.plays *= self.gamma
        self.rewards *= self.gamma
        self.plays[task] += 1
        self.rewards[task] += min(max(1 - score, 0.0), 1.0)

    def probabilities(self) -> Float[Tensor, " K"]:
        plays = self.plays.tolist()
        means = (self.rewards / self.plays.clamp(min=1e-9)).tolist()
        chosen = torch.zeros(self.num_tasks, dtype=torch.float64)
        total = sum(plays)
        for _ in range(self.num_slots):
            bonus = math.log(max(total, 1.0))
            index = [
                mean + self.c * math.sqrt(bonus / n) if n else math.inf for mean, n in zip(means, plays, strict=True)
            ]
            best = index.index(max(index))
            plays[best] += 1
            total += 1
            chosen[best] += 1
        return chosen / self.num_slots
