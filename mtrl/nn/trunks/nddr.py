"""NDDR-CNN: one network per task, and a linear layer that fuses the features of all after each layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskLinear, select, spread
from mtrl.nn.trunks.base import Trunk
from mtrl.nn.trunks.cross_stitch import stitches
from mtrl.registry import register
from mtrl.types import TaskAxes, TaskContext


@register("trunk", "nddr")
class NDDR(Trunk):
    """Neural discriminative dimensionality reduction, x_k <- F_k [x_1 ... x_K] (Gao et al., "NDDR-CNN", 2019).

    All K networks run on every sample; fusing costs (K width)^2 per layer.

    Use it for a few tasks that need one another's features.

    Differences from the paper:
        1. No batch normalisation: the samples of a batch come from many policies and tasks.
        2. For more than two tasks, the initial weight of the other networks is divided among them.

    Args:
        width: Units of each task's network.
        initial_own: Initial weight of a network's own features in its fusing layer; the others share the rest equally.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 32,
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
        self.fusions = nn.ModuleList(Fusion(num_tasks, num_tasks * width, width, init) for _ in range(depth))
        shares = torch.kron(stitches(num_tasks, initial_own), torch.eye(width)).unflatten(0, (num_tasks, width))
        for fusion in self.fusions:
            fusion.get_parameter("weight").data.copy_(shares)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = spread(features, self.num_tasks)
        for layer, fusion in zip(self.layers, self.fusions, strict=True):
            x = self.activation(layer(x))
            x = self.activation(fusion(spread(x.flatten(-2), self.num_tasks)))
        return select(x, context.task)


class Fusion(TaskLinear):
    """A linear layer for each task on the features of all tasks."""

    task_axes: ClassVar[TaskAxes] = {"weight": (0, 2), "bias": (0,)}
