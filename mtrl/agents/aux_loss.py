"""Auxiliary losses of the policy: what a learner adds to its own loss, of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mtrl.nn.distributions import Distribution


@runtime_checkable
class AuxLoss(Protocol):
    """A loss besides the learner's own, for example the distance to a teacher."""

    def coefficient(self, progress: float) -> float:
        """Its weight; `progress` in [0, 1] is the share of training done."""
        ...

    def __call__(self, minibatch: Any, output: Distribution) -> Float[Tensor, "*samples"]:
        """Of each sample.

        Args:
            minibatch: What the learner takes a step on: has at least `obs`, `action` and `task`, (*samples, ...).
            output: What the policy gives there, with gradients.
        """
        ...


def coefficients(losses: Sequence[AuxLoss], progress: float, like: Tensor) -> Float[Tensor, " M"]:
    """Of all losses. A tensor, as a compiled function would be compiled anew for another number."""
    found = like.new_empty(len(losses))
    for i, loss in enumerate(losses):
        found[i] = loss.coefficient(progress)  # the accelerator fills it in, without a copy from the host
    return found


def added(
    loss: Float[Tensor, "*samples"],
    losses: Sequence[AuxLoss],
    coefficients: Float[Tensor, " M"],
    minibatch: Any,
    output: Distribution,
) -> Float[Tensor, "*samples"]:
    """A learner's own loss of each sample and the weighted auxiliary ones."""
    for i, aux in enumerate(losses):
        loss = loss + coefficients[i] * aux(minibatch, output)
    return loss
