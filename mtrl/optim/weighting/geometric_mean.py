"""Geometric mean of the losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.optim.weighting.base import Weighting, softmax_weights
from mtrl.registry import register


@register("weighting", "geometric_mean")
class GeometricMean(Weighting):
    """The gradient of the losses' geometric mean, up to its length: each loss weighs 1 / loss.

    Chennupati et al., "MultiNet++" (2019).

    Use it where losses differ by orders of magnitude: only their relative changes count.

    Differences from the paper:
        1. The weights are divided by their mean; the paper's are those of the geometric mean.
    """

    requires_positive = True

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses * softmax_weights(-losses.log(), losses > 0)
