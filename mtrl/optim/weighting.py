"""Loss weighting: (K,) losses to (K,) weighted losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mtrl.registry import register


class Weighting(nn.Module):
    """Base of the weightings. `requires_positive` says that losses of either sign make no sense to it."""

    requires_positive = False

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The losses, each times its weight; weights have mean 1."""
        raise NotImplementedError

    def after_step(self, losses: Float[Tensor, " K"]) -> None:
        """Called after each optimiser step with the unweighted losses, detached."""


@register("weighting", "uniform")
class Uniform(Weighting):
    """Every task weighs 1."""

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses
