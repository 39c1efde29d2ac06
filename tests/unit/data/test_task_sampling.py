"""Tasks of slots: shares as asked, few changes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mtrl import registry
from mtrl.data.task_sampling import allocate
from mtrl.data.task_sampling.uniform import Uniform


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Probabilities of K tasks (some of them zero), running tasks of B slots, and a seed."""
    num_tasks = draw(st.integers(1, 8))
    weights = draw(st.lists(st.floats(0, 1), min_size=num_tasks, max_size=num_tasks).filter(lambda w: sum(w) > 0.01))
    task = draw(st.lists(st.integers(0, num_tasks - 1), min_size=1, max_size=40))
    p = torch.tensor(weights, dtype=torch.float64)
    return p / p.sum(), torch.tensor(task), draw(st.integers(0, 2**31))


def counts(task: Tensor, num_tasks: int) -> Tensor:
    return torch.bincount(task, minlength=num_tasks)


@settings(max_examples=100)
@given(problems())
def test_each_number_of_slots_is_within_one_of_its_share(problem: tuple[Tensor, Tensor, int]) -> None:
    probabilities, task, seed = problem
    torch.manual_seed(seed)
    following = allocate(probabilities, task)
    assert following.shape == task.shape
    assert following.dtype == task.dtype
    share = len(task) * probabilities
    assert ((counts(following, len(share)) - share).abs() < 1 + 1e-6).all()


@settings(max_examples=100)
@given(problems())
def test_no_slot_changes_without_need(problem: tuple[Tensor, Tensor, int]) -> None:
    """As many slots keep their task as the new numbers admit."""
    probabilities, task, seed = problem
    torch.manual_seed(seed)
    following = allocate(probabilities, task)
    admitted = torch.minimum(counts(task, len(probabilities)), counts(following, len(probabilities)))
    assert int((following == task).sum()) == int(admitted.sum())


@settings(max_examples=100)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any), st.integers(0, 2**31), st.data())
def test_whole_shares_are_met_exactly(shares: list[int], seed: int, data: st.DataObject) -> None:
    wanted = torch.tensor(shares)
    num_slots = int(wanted.sum())
    task = torch.tensor(data.draw(st.lists(st.integers(0, len(shares) - 1), min_size=num_slots, max_size=num_slots)))
    torch.manual_seed(seed)
    assert torch.equal(counts(allocate(wanted.double() / num_slots, task), len(shares)), wanted)


@pytest.mark.parametrize(("num_tasks", "num_slots"), [(3, 3), (10, 160), (7, 49), (50, 50), (49, 49)])
def test_uniform_sampling_never_changes_a_task(num_tasks: int, num_slots: int) -> None:
    """1/K is not exact in floating point, and must be met exactly all the same."""
    task = torch.arange(num_tasks).repeat_interleave(num_slots // num_tasks)
    for seed in range(50):
        torch.manual_seed(seed)
        assert torch.equal(allocate(Uniform(num_tasks).probabilities(), task), task)


def test_shares_are_unbiased_on_average() -> None:
    """5 slots with shares of 0.65, 2.35, 0, 2 of them."""
    torch.manual_seed(0)
    probabilities, task, draws = torch.tensor([0.13, 0.47, 0.0, 0.4]), torch.tensor([0, 0, 1, 2, 3]), 2000
    total = torch.zeros(4)
    for _ in range(draws):
        total += counts(allocate(probabilities, task), 4)
    # A number of slots varies by less than 1: its mean over 2000 draws has a standard error below 0.5 / sqrt(2000).
    assert ((total / draws - 5 * probabilities).abs() < 4 * 0.5 / draws**0.5).all()
    assert total[2] == 0


def test_a_task_of_probability_zero_gets_no_slot() -> None:
    for seed in range(200):
        torch.manual_seed(seed)
        following = allocate(torch.tensor([0.0, 0.55, 0.0, 0.45, 0.0]), torch.tensor([0, 2, 4, 1, 3, 0, 0]))
        assert set(following.tolist()) <= {1, 3}


def test_uniform_probabilities() -> None:
    sampler = registry.build("task_sampling", {"name": "uniform"}, num_tasks=4)
    assert sampler.probabilities().tolist() == [0.25] * 4
