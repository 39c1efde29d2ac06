"""Uniform sampling, the null object."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.data.task_sampling.base import TaskSampler
from mtrl.registry import register


@register("task_sampling", "uniform")
class Uniform(TaskSampler):
    """Every task gets the same share.

    Use it first.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks

    def probabilities(self) -> Float[Tensor, " K"]:
        return torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64)
