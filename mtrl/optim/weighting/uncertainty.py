"""Weighting by homoscedastic uncertainty."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.optim.weighting.base import LearnedWeighting, softmax_weights
from mtrl.registry import register
from mtrl.types import Metrics


@register("weighting", "uncertainty")
class Uncertainty(LearnedWeighting):
    """Weights a loss by exp(-s), the inverse of the variance that explains it best.

    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses" (2018), in the form with s = log sigma^2:
    the s minimise the sum of (exp(-s) loss + s) / 2.

    Use it where the losses of tasks have different scales that change slowly.

    Differences from the paper:
        1. The weights are divided by their mean.
        2. The gradient of s is bounded, so that one loss of 1e15 does not dominate Adam's averages.

    Args:
        lr: Learning rate of s.
    """

    requires_positive = True

    def __init__(self, num_tasks: int, lr: float = 1e-3) -> None:
        super().__init__(num_tasks, lr)

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses * softmax_weights(-self.logits, losses > 0)

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        gradient = 0.5 * (1 - (-self.logits.detach()).exp() * losses)
        self.descend(gradient.clamp(min=-10).where(losses > 0, 0))
