"""PaCo: each task's network is a combination of a few sets of parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl import per_task
from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedLinear, linear, spread
from mtrl.nn.trunks.base import Trunk, columns
from mtrl.registry import register
from mtrl.types import Metrics, TaskContext


@register("trunk", "paco")
class PaCo(Trunk):
    """Parameter-compositional MLP: theta_task = Phi w_task in every layer (Sun et al., "PaCo", 2022).

    All sets are applied and their outputs combined, which is the same as combining their weights. The output is the
    outer product of w with [hidden, 1], of size sets * (width + 1): a shared linear head on it is a combined last
    layer too, so use `head: shared`.

    Use it where tasks will be added: a new one needs only a vector w.

    Differences from the paper:
        1. Without the masking of exploding losses and the reinitialisation of w for their tasks.

    Args:
        sets: K of the paper, the number of parameter sets; published 5 for MT10, 20 for MT50.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        num_tasks: int,
        width: int = 400,
        depth: int = 3,
        sets: int = 5,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, sets=sets)
        self.num_tasks, self.sets = num_tasks, sets
        self.activation = ACTIVATIONS[activation]()
        self.task_input = linear(context, sets, init, bias=False)
        self.layers = nn.ModuleList(
            StackedLinear(sets, inputs, width, init) for inputs in [features] + [width] * (depth - 1)
        )
        self.out_features = sets * (width + 1)

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        weights = self.task_input(context.embedding.to(features.dtype))
        x = features
        for layer in self.layers:
            x = self.activation(torch.einsum("...k,...kh->...h", weights, layer(spread(x, self.sets))))
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        return torch.einsum("...k,...h->...kh", weights, x).flatten(-2)

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        weights = self.task_input(context.embedding.to(features.dtype)).detach()
        return features.new_zeros(()), columns("set_weight", per_task.mean_rows(weights, context.task, self.num_tasks))
