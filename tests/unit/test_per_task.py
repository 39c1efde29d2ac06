"""Operations on the samples of each task, against loops over the samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtrl import per_task

K = 4
SHAPES = [(7,), (5, 4), (3, 2, 5)]


def samples(shape: tuple[int, ...], *features: int) -> tuple[Tensor, Tensor]:
    """Values, and tasks 0, 1 and 3 of four: task 2 is absent."""
    g = torch.Generator().manual_seed(0)
    task = torch.tensor([0, 1, 3])[torch.randint(3, shape, generator=g)]
    return torch.randn(*shape, *features, generator=g, dtype=torch.float64), task


def own(values: Tensor, task: Tensor, k: int) -> list[float]:
    return [float(v) for v, of in zip(values.detach().flatten(), task.flatten().tolist(), strict=True) if of == k]


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_sums_and_means_are_loops(shape: tuple[int, ...]) -> None:
    values, task = samples(shape)
    each = [own(values, task, k) for k in range(K)]
    absent = [not numbers for numbers in each]
    assert absent[2]
    assert per_task.members(task, K).tolist() == [[of == k for k in range(K)] for of in task.flatten().tolist()]
    assert per_task.count(task, K).tolist() == [len(numbers) for numbers in each]
    assert per_task.total(values, task, K).tolist() == pytest.approx([sum(numbers) for numbers in each])
    means = [sum(numbers) / len(numbers) if numbers else math.nan for numbers in each]
    assert per_task.mean(values, task, K).tolist() == pytest.approx(means, nan_ok=True)
    assert per_task.mean_or_zero(values, task, K).tolist() == pytest.approx([0 if m != m else m for m in means])


@pytest.mark.parametrize("shape", SHAPES)
def test_means_of_vectors_are_those_of_their_numbers(shape: tuple[int, ...]) -> None:
    values, task = samples(shape, 3)
    columns = torch.stack([per_task.mean(column, task, K) for column in values.unbind(-1)], dim=1)
    torch.testing.assert_close(per_task.mean_rows(values, task, K), columns, equal_nan=True)
    assert columns[2].isnan().all()


def test_gradients_of_means() -> None:
    """One over the number of the task's samples; zero where it has none."""
    values, task = samples((6,))
    values.requires_grad_()
    for k in range(K):
        (gradient,) = torch.autograd.grad(per_task.mean_or_zero(values, task, K)[k], values)
        expected = (task == k) / (task == k).sum().clamp(min=1)
        torch.testing.assert_close(gradient, expected, check_dtype=False)


@pytest.mark.parametrize("operation", [per_task.total, per_task.mean, per_task.mean_or_zero])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_bad_sample_spoils_its_own_task_only(operation: object, poison: float) -> None:
    """Or the error about a loss that is not finite could not name the task."""
    values, task = torch.tensor([1.0, 2.0, poison, 4.0]), torch.tensor([0, 0, 1, 2])
    assert callable(operation)
    assert torch.isfinite(operation(values, task, 3)).tolist() == [True, False, True]


def test_rank_is_a_loop() -> None:
    task = [2, 0, 2, 2, 3, 0]
    assert per_task.rank(torch.tensor(task), K).tolist() == [task[:i].count(of) for i, of in enumerate(task)]
