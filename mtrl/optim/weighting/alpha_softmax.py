"""Multi-task SAC's weights from its temperatures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.optim.weighting.base import Weighting, softmax_weights
from mtrl.registry import register


@register("weighting", "alpha_softmax")
class AlphaSoftmax(Weighting):
    """K softmax(-log alpha), alpha of `agent=sac`: less for a task whose policy is far from its target entropy.

    Yang et al., "Multi-Task Reinforcement Learning with Soft Modularization" (2020).

    Use it with `agent=sac network=soft_modules`, as it was published.

    Differences from the paper:
        1. There it is softmax(-alpha); the logarithm and the factor K are those of the authors' code.

    Args:
        log_alpha: Returns the logarithms of the temperatures (K,).
    """

    def __init__(self, log_alpha: Callable[[], Tensor] | None = None) -> None:
        super().__init__()
        if log_alpha is None:
            raise ValueError("only agent=sac has temperatures.")
        self.log_alpha = log_alpha

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        log_alpha = self.log_alpha()
        return losses * softmax_weights(-log_alpha, torch.ones_like(log_alpha, dtype=torch.bool)).to(losses.dtype)
