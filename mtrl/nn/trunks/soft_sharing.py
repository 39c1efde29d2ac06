"""Soft parameter sharing: one network per task, and a penalty on their differences."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import not_negative, positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskLinear, mark_per_task, select, spread
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import Metrics, TaskContext


@register("trunk", "soft_sharing")
class SoftSharing(Trunk):
    """K separate networks, made similar by a loss on their weights.

    `l2`: sum over layers and tasks of ||W_k - mean_j W_j||^2, which is 1 / K of that over pairs of tasks (Duong et al.,
    2015). `trace_norm`: sum over layers of the nuclear norm of the matrix whose rows are the tasks' W_k (Yang and
    Hospedales, "Trace Norm Regularised Deep Multi-Task Learning", 2017, last-axis flattening).

    All K networks run on every sample.

    Use it for a few tasks, and with `coef=0` to see what sharing is worth at all.

    Args:
        penalty: l2 or trace_norm.
        width: Units of each task's network.
        coef: Coefficient of the penalty; 0 for independent networks.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 64,
        depth: int = 3,
        penalty: Literal["l2", "trace_norm"] = "l2",
        coef: float = 1e-3,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        not_negative(coef=coef)
        self.num_tasks, self.coef = num_tasks, coef
        self.penalty = {"l2": distance_to_mean, "trace_norm": nuclear_norm}[penalty]
        self.activation = ACTIVATIONS[activation]()
        self.layers = nn.ModuleList(
            TaskLinear(num_tasks, inputs, width, init) for inputs in [features] + [width] * (depth - 1)
        )
        mark_per_task(*self.parameters())
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = spread(features, self.num_tasks)
        for layer in self.layers:
            x = self.activation(layer(x))
        return select(x, context.task)

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        weights = [layer.get_parameter("weight").flatten(1) for layer in self.layers]
        penalty = torch.stack([self.penalty(weight) for weight in weights]).sum()
        return self.coef * penalty, {"unshared": penalty.detach()}


def distance_to_mean(weights: Float[Tensor, "K P"]) -> Float[Tensor, ""]:
    """Sum of the squared distances of the rows to their mean."""
    return (weights - weights.mean(0)).square().sum()


def nuclear_norm(weights: Float[Tensor, "K P"]) -> Float[Tensor, ""]:
    """Sum of the singular values."""
    return torch.linalg.svdvals(weights).sum()
