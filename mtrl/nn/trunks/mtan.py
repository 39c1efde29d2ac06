"""MTAN: a shared network, and attention of each task over its features."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.nn.heads import PerTaskHead
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, linear
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "mtan")
class MTAN(Trunk):
    """Multi-task attention network on an MLP (Liu, Johns and Davison, 2019).

    A block has two shared layers, u after the first and p after the second. The task's features are
    a = sigmoid(h ReLU(g [u, a of the previous block])) * p, with g and h for each task.

    Use it where one network should learn the features, and each task choose among them.

    Differences from the paper:
        1. Linear layers instead of convolutions, no batch normalisation, and g has `attention_width` outputs.
        2. The task's features go to the next block directly, not through a shared layer.

    Args:
        attention_width: Outputs of g.
        depth: Number of blocks, of two shared layers each.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 2,
        attention_width: int = 16,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, attention_width=attention_width)
        self.activation = ACTIVATIONS[activation]()
        self.first = nn.ModuleList(linear(*sizes, init) for sizes in pairwise([features] + [width] * depth))
        self.second = nn.ModuleList(linear(width, width, init) for _ in range(depth))
        self.task_input = nn.ModuleList(
            Attention(inputs, attention_width, width, num_tasks) for inputs in [width] + [2 * width] * (depth - 1)
        )
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        p, a = features, features[..., :0]
        for first, second, attention in zip(self.first, self.second, self.task_input, strict=True):
            u = self.activation(first(p))
            p = self.activation(second(u))
            a = attention(torch.cat([u, a], dim=-1), context) * p
        return a


class Attention(nn.Module):
    """sigmoid(h ReLU(g x)) with g and h for each task."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_tasks: int) -> None:
        super().__init__()
        self.g = PerTaskHead(inputs, hidden, num_tasks, gain=2**0.5)
        self.h = PerTaskHead(hidden, outputs, num_tasks)

    def forward(self, x: Float[Tensor, "*batch I"], context: TaskContext) -> Float[Tensor, "*batch O"]:
        return self.h(functional.relu(self.g(x, context)), context).sigmoid()
