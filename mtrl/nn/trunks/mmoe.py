"""Multi-gate mixture of experts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.checks import positive
from mtrl.nn.heads import PerTaskHead
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedMLP
from mtrl.nn.trunks.base import RoutedTrunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "mmoe")
class MMoE(RoutedTrunk):
    """Experts mixed by the gate of the task: sum_i softmax(W_task x)_i f_i(x) (Ma et al., 2018).

    Each expert is an MLP of `depth` layers. Neither experts nor gates read the task embedding: the task selects its
    gate (and, with `head: per_task`, its tower).

    Use it where tasks are loosely related.

    Differences from the paper:
        1. Gates have a bias.

    Args:
        experts: Number of experts.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 3,
        experts: int = 4,
        diversity: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__(num_tasks, diversity)
        positive(width=width, depth=depth, experts=experts)
        self.experts = StackedMLP(experts, [features] + [width] * depth, activation, init)
        self.activation = ACTIVATIONS[activation]()
        self.task_input = PerTaskHead(features, experts, num_tasks, gain=0.01)  # nearly uniform at first
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        (weights,) = self.routing(features, context)
        return (weights @ self.activation(self.experts(features))).squeeze(-2)

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        return [self.task_input(features, context).softmax(-1)[..., None, :]]
