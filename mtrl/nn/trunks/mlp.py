"""Multi-layer perceptron, the null object among the trunks."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, initialise
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "mlp")
class MLP(Trunk):
    """`depth` hidden layers of `width` units on the features concatenated with the task embedding.

    Use it first.

    Args:
        features: Size of the input features.
        context: Size of the task embedding.
        init: "orthogonal" (gain sqrt(2), biases 0) or "he_uniform" (biases 0), as in the published MT-SAC.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        width: int = 256,
        depth: int = 3,
        activation: Activation = "tanh",
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        sizes = [features + context] + [width] * depth
        linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        for linear in linears:
            initialise(linear.weight, init)
            nn.init.zeros_(linear.bias)
        first, *remaining = linears
        # The first matrix is split in two, so that all but the task's columns can be transferred to other tasks.
        self.input = nn.Linear(features, width)
        self.task_input = nn.Linear(context, width, bias=False)
        with torch.no_grad():
            self.input.weight.copy_(first.weight[:, :features])
            self.input.bias.copy_(first.bias)
            self.task_input.weight.copy_(first.weight[:, features:])
        activation_type = ACTIVATIONS[activation]
        self.hidden = nn.Sequential(
            activation_type(), *(module for linear in remaining for module in (linear, activation_type()))
        )
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        return self.hidden(self.input(features) + self.task_input(context.embedding.to(features.dtype)))
