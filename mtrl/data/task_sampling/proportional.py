"""Sampling in proportion to given sizes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.data.task_sampling.base import TaskSampler, per_task
from mtrl.registry import register


@register("task_sampling", "proportional")
class Proportional(TaskSampler):
    """p_k proportional to size_k^exponent: 0 is uniform, 1 proportional (Stickland and Murray, 2019).

    Use it where you know how much experience each task needs.

    Args:
        exponent: 0: uniform, 1: proportional.
        sizes: One number per task, for example how much experience it should get; null: all equal.
    """

    def __init__(self, num_tasks: int, sizes: list[float] | None = None, exponent: float = 1.0) -> None:
        super().__init__()
        values = per_task("sizes", sizes, num_tasks, 1.0)
        not_negative(exponent=exponent, **{f"size {i}": size for i, size in enumerate(values)})
        if not any(values):
            raise ValueError("one of the sizes must be positive.")
        self.weights = torch.tensor(values, dtype=torch.float64) ** exponent

    def probabilities(self) -> Float[Tensor, " K"]:
        return self.weights / self.weights.sum()
