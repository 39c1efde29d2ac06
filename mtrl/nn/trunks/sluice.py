"""Sluice networks: one network per task in two subspaces, which are mixed across tasks after each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import not_negative, positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskLinear, TaskTable, select, spread
from mtrl.nn.trunks.base import Trunk
from mtrl.nn.trunks.cross_stitch import stitches
from mtrl.registry import register
from mtrl.types import Metrics, TaskAxes, TaskContext


@register("trunk", "sluice")
class Sluice(Trunk):
    """Sluice network (Ruder et al., "Latent Multi-Task Architecture Learning", 2019).

    A layer's output is split into two subspaces of width / 2; alpha (2K, 2K) mixes all subspaces of all tasks. The
    output is a mixture of the outputs of all layers, weighted by the task's beta.

    Use it for a few tasks that may share only a part of each layer.

    Differences from the paper:
        1. For more than two tasks, the initial weight of the other subspaces is divided among them.

    Args:
        width: Units of each task's network, an even number.
        initial_own: Initial weight of a subspace's own features.
        orthogonality: Coefficient of a loss, the mean squared product of the rows of a layer's two halves.
    """

    task_axes: ClassVar[TaskAxes] = {"alpha": (1, 2)}

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 64,
        depth: int = 3,
        initial_own: float = 0.9,
        orthogonality: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        not_negative(orthogonality=orthogonality)
        if width % 2:
            raise ValueError(f"width must be even, not {width}.")
        self.num_tasks, self.orthogonality = num_tasks, orthogonality
        self.activation = ACTIVATIONS[activation]()
        self.layers = nn.ModuleList(
            TaskLinear(num_tasks, inputs, width, init) for inputs in [features] + [width] * (depth - 1)
        )
        self.alpha = nn.Parameter(stitches(2 * num_tasks, initial_own).repeat(depth, 1, 1))
        self.beta = TaskTable(num_tasks, depth, initial=1 / depth)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x, outputs = spread(features, self.num_tasks), []
        for layer, alpha in zip(self.layers, self.alpha, strict=True):
            subspaces = self.activation(layer(x)).unflatten(-1, (2, -1)).flatten(-3, -2)
            x = (alpha @ subspaces).unflatten(-2, (self.num_tasks, 2)).flatten(-2)
            outputs.append(select(x, context.task))
        return torch.einsum("...l,...lh->...h", self.beta(context.task), torch.stack(outputs, dim=-2))

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        loss = features.new_zeros(())
        for layer in self.layers:
            one, two = layer.get_parameter("weight").chunk(2, dim=1)
            loss = loss + self.orthogonality * (one @ two.mT).square().mean()
        return loss, {}
