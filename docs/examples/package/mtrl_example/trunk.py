"""A custom trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "gated")
class Gated(Trunk):
    """One layer whose units the task embedding opens and closes.

    Args:
        features: Size of the input.
        context: Size of the task embedding.
        num_units: H.
    """

    def __init__(self, features: int, context: int, num_units: int = 64) -> None:
        super().__init__()
        self.out_features = num_units
        self.layer = nn.Linear(features, num_units)
        self.task_input = nn.Linear(context, num_units)  # of this name, as its size depends on the number of tasks

    def forward(self, features: Tensor, context: TaskContext) -> Tensor:
        return torch.relu(self.layer(features)) * torch.sigmoid(self.task_input(context.embedding))
