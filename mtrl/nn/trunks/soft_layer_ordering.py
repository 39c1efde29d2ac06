"""Soft layer ordering: each task applies the same layers in a different order."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedLinear, TaskTable, linear, spread
from mtrl.nn.trunks.base import RoutedTrunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "soft_layer_ordering")
class SoftLayerOrdering(RoutedTrunk):
    """At each of `depth` depths, all `depth` layers are applied and mixed: y = sum_i s_ij activation(W_i x + b_i).

    Meyerson and Miikkulainen, "Beyond Shared Hierarchies" (2018); s = softmax over i of the task's scores.

    Use it where tasks may need the same operations in another order.

    Differences from the paper:
        1. The input layer is shared, not one per task; so is the output layer with `head: shared`.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 3,
        diversity: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__(num_tasks, diversity)
        positive(width=width, depth=depth)
        self.depth, self.activation = depth, ACTIVATIONS[activation]()
        self.input = linear(features, width, init)
        self.layers = StackedLinear(depth, width, width, init)
        self.task_input = TaskTable(num_tasks, depth, depth)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = self.activation(self.input(features))
        for weights in self.routing(features, context):
            x = (weights @ self.activation(self.layers(spread(x, self.depth)))).squeeze(-2)
        return x

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        scores = self.task_input(context.task).to(features.dtype)
        return list(scores.softmax(-1)[..., None, :].unbind(-3))
