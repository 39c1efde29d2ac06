"""Soft modularization: a routing network mixes the modules of each layer for every sample."""

from __future__ import annotations

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedLinear, linear, mlp, spread
from mtrl.nn.trunks.base import RoutedTrunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "soft_modules")
class SoftModules(RoutedTrunk):
    """`depth` layers of n modules of `width` units, connected by weights computed from observation and task.

    Yang et al., "Multi-Task Reinforcement Learning with Soft Modularization" (2020), section 4. Where the
    authors' code differs from the paper (1 to 6), this follows the code; 7 and 8 are specific to this package:
        1. Layers between the product f(s) * h(z) and the routing map it to `gating_width`.
        2. f(s) is activated before it enters the first modules.
        3. The weights of a layer depend on those of all previous layers, not only of the last one.
        4. The activation comes after the weighted sum of modules, not before it.
        5. The outputs of the last layer are mixed with further weights, not summed.
        6. Weights depend on the softmax of earlier layers, not on the logits.
        7. The last linear layer is the network's head. Weighting losses by temperatures is not part of the trunk.
        8. h has no bias (it would be redundant with a one-hot task).

    Use it where tasks consist of skills that several of them need.

    Args:
        gating_width: Units of the network that computes the weights.
        gating_depth: Number of its hidden layers.
        depth: L.
        modules: n.
        width: d, the units of a module.
        embedding: D, the size of f(s) and h(z).
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 2,
        modules: int = 2,
        embedding: int = 400,
        gating_width: int = 256,
        gating_depth: int = 2,
        diversity: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__(num_tasks, diversity)
        positive(width=width, depth=depth, modules=modules, embedding=embedding)
        positive(gating_width=gating_width, gating_depth=gating_depth)
        self.modules_per_layer = modules
        self.activation = ACTIVATIONS[activation]()
        self.encoder = mlp([features, embedding, embedding], activation, init)
        self.task_input = linear(context, embedding, init, bias=False)
        self.gate = mlp([embedding] + [gating_width] * gating_depth, activation, init)  # (1)
        inputs = [embedding] + [width] * (depth - 1)
        self.layers = nn.ModuleList(StackedLinear(modules, size, width, init) for size in inputs)
        # W_d and W_u. Each layer feeds n modules, the last one a single output (5).
        sizes = [modules * modules] * (depth - 1) + [modules]
        self.route_down = nn.ModuleList(linear(gating_width, size, init) for size in sizes)
        self.route_up = nn.ModuleList(linear(seen, gating_width, init) for seen in accumulate(sizes[:-1]))
        for down in self.route_down:
            nn.init.uniform_(down.get_parameter("weight"), -1e-3, 1e-3)  # nearly uniform at first
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        encoded = self.encoder(features)
        x = spread(self.activation(encoded), self.modules_per_layer)  # (2)
        for layer, weights in zip(self.layers, self._weights(encoded, context), strict=True):
            x = self.activation(weights @ layer(x))  # (4)
        return x.squeeze(-2)

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        return self._weights(self.encoder(features), context)

    def _weights(self, encoded: Float[Tensor, "*batch D"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        task = self.task_input(context.embedding.to(encoded.dtype))
        gate = self.gate(self.activation(encoded * task))
        layers = [self._choose(self.route_down[0](self.activation(gate)))]
        for up, down in zip(self.route_up, self.route_down[1:], strict=True):
            previous = torch.cat([weights.flatten(-2) for weights in layers], dim=-1)  # (3), (6)
            layers.append(self._choose(down(self.activation(gate * up(previous)))))
        return layers

    def _choose(self, logits: Float[Tensor, "*batch mn"]) -> Float[Tensor, "*batch m n"]:
        return logits.unflatten(-1, (-1, self.modules_per_layer)).softmax(-1)
