"""Cross-stitch networks: one network per task, and units that mix their features after each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskLinear, spread
from mtrl.nn.trunks.base import Trunk, columns
from mtrl.registry import register
from mtrl.types import Metrics, TaskAxes, TaskContext


@register("trunk", "cross_stitch")
class CrossStitch(Trunk):
    """The next layer of network k gets sum_j alpha_kj x_j (Misra et al., "Cross-stitch Networks", 2016, eq. 1).

    All K networks run on every sample, at K times the cost of one network, and the output of its task is selected.

    Use it for a few tasks, to learn how much they should share.

    Differences from the paper:
        1. For more than two tasks, the initial weight of the other networks is divided among them.
        2. Units have the same learning rate as the other parameters.

    Args:
        width: Units of each task's network.
        initial_own: Initial value of alpha_kk; all alpha_kj of a unit sum to 1 initially.
    """

    task_axes: ClassVar[TaskAxes] = {"alpha": (1, 2)}

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 64,
        depth: int = 3,
        initial_own: float = 0.9,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        self.num_tasks = num_tasks
        self.activation = ACTIVATIONS[activation]()
        self.layers = nn.ModuleList(
            TaskLinear(num_tasks, inputs, width, init) for inputs in [features] + [width] * (depth - 1)
        )
        self.alpha = nn.Parameter(stitches(num_tasks, initial_own).repeat(depth, 1, 1))
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        first, *remaining = self.layers
        *units, last = self.alpha.unbind()
        x = self.activation(first(spread(features, self.num_tasks)))
        for unit, layer in zip(units, remaining, strict=True):
            x = self.activation(layer(unit @ x))
        return torch.einsum("...j,...jh->...h", last[context.task], x)

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        diagonal = self.alpha.detach().diagonal(dim1=1, dim2=2)
        return features.new_zeros(()), columns("cross_stitch_own", diagonal.mT)


def stitches(count: int, own_share: float) -> Float[Tensor, "{count} {count}"]:
    """Rows that sum to 1: `own` on the diagonal, equal values elsewhere; 1 for a single network."""
    if count == 1:
        return torch.ones(1, 1)
    return torch.full((count, count), (1 - own_share) / (count - 1)).fill_diagonal_(own_share)
