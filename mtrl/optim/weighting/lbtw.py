"""Loss-balanced task weighting."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative, positive
from mtrl.optim.weighting.base import Weighting, softmax_weights
from mtrl.registry import register
from mtrl.types import Metrics


@register("weighting", "lbtw")
class LBTW(Weighting):
    """Weights a loss by (loss / loss at the beginning)^alpha: less, the more a task has learned.

    Liu et al., "Loss-Balanced Task Weighting to Reduce Negative Transfer in Multi-Task Learning" (2019), algorithm 1.

    Use it where some tasks are learned early and should make room for the others.

    Differences from the paper:
        1. The beginning is that of every `window` updates; in the paper that of every epoch.
        2. The weights are divided by their mean.

    Args:
        alpha: Exponent of the ratio; 0: weights are equal.
        window: Updates between two beginnings.
    """

    requires_positive = True
    first: Tensor
    updates: Tensor

    def __init__(self, num_tasks: int, alpha: float = 0.5, window: int = 1000) -> None:
        super().__init__()
        not_negative(alpha=alpha)
        positive(window=window)
        self.alpha, self.window = alpha, window
        self.register_buffer("first", torch.full((num_tasks,), torch.nan))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        ratio = losses.log() - self.first.where(self.first > 0, losses).log()
        return losses * softmax_weights(self.alpha * ratio, losses > 0)

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        self.first.copy_(self.first.where(self.first > 0, losses))  # absent tasks have no first loss yet
        self.updates += 1
        if int(self.updates) % self.window == 0:
            self.first.fill_(torch.nan)  # the next losses become the first ones
