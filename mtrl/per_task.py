"""Operations on samples of K tasks, each with the id of its task.

A task without samples is *absent*: its count and its sum are 0, and its mean is NaN. `mean_or_zero` is for values that
are then added up over tasks, such as losses.

Sums use the membership matrix: unlike `index_add`, this is deterministic on a GPU, and unlike `bincount`, it does not
wait for the device. A NaN sample only affects its own task.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def members(task: Int[Tensor, "*samples"], num_tasks: int) -> Bool[Tensor, "N {num_tasks}"]:
    """Whether each of the N samples belongs to each task."""
    return functional.one_hot(task.flatten(), num_tasks).bool()


def count(task: Int[Tensor, "*samples"], num_tasks: int) -> Int[Tensor, " {num_tasks}"]:
    """Number of samples of each task."""
    return members(task, num_tasks).sum(0)


def total(
    values: Float[Tensor, "*samples"], task: Int[Tensor, "*samples"], num_tasks: int
) -> Float[Tensor, " {num_tasks}"]:
    """Sum of each task's samples."""
    # Not a matrix product, which would spread NaN to all tasks.
    return torch.where(members(task, num_tasks), values.flatten()[:, None], 0).sum(0)


def mean(
    values: Float[Tensor, "*samples"], task: Int[Tensor, "*samples"], num_tasks: int
) -> Float[Tensor, " {num_tasks}"]:
    """Mean of each task's samples; NaN for an absent task."""
    return total(values, task, num_tasks) / count(task, num_tasks)


def mean_or_zero(
    values: Float[Tensor, "*samples"], task: Int[Tensor, "*samples"], num_tasks: int
) -> Float[Tensor, " {num_tasks}"]:
    """Mean of each task's samples; zero, with zero gradient, for an absent task."""
    return total(values, task, num_tasks) / count(task, num_tasks).clamp(min=1)


def mean_rows(
    values: Float[Tensor, "*samples n"], task: Int[Tensor, "*samples"], num_tasks: int
) -> Float[Tensor, "{num_tasks} n"]:
    """Mean vector of each task's samples; NaN for an absent task. Here a NaN sample does affect all tasks."""
    member = members(task, num_tasks).to(values.dtype)
    number = member.sum(0)[:, None]
    return torch.where(number > 0, member.T @ values.flatten(0, -2) / number.clamp(min=1), torch.nan)


def rank(task: Int[Tensor, " B"], num_tasks: int) -> Int[Tensor, " B"]:
    """Number of samples of the same task before each sample."""
    member = functional.one_hot(task, num_tasks)
    return (member.cumsum(0) - member).gather(1, task[:, None]).squeeze(1)
