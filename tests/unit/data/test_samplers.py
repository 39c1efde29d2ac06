"""Samplers against their formulas by hand, and UA4C as the bandit it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from mtrl.data.task_sampling import TaskSampler
from mtrl.data.task_sampling.gap import at_least
from mtrl.registry import build
from mtrl.types import UserError


def made(name: str, num_tasks: int = 2, num_slots: int = 1, silent: Sequence[str] = (), **options: Any) -> Any:
    torch.manual_seed(0)
    runtime = {"num_tasks": num_tasks, "num_slots": num_slots, "silent_tasks": silent}
    return build("task_sampling", {"name": name, **options}, **runtime)


def tell(sampler: TaskSampler, task: int, success: float, episode_return: float = 0.0) -> None:
    results = {"success": torch.tensor([success]), "return": torch.tensor([episode_return])}
    sampler.update(torch.tensor([task]), results)


def close(actual: Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_successes_or_returns_in_units_of_the_target() -> None:
    """Baselines (10, -5), targets (30, 5): returns 20 and 5 are half way and all of it; success does not count."""
    heard: list[tuple[int, float]] = []
    options: dict[str, Any] = {"targets": [30.0, 5.0], "baselines": [10.0, -5.0]}
    for chosen, expected in (({}, [(0, 1.0), (1, 0.0)]), (options, [(0, 0.5), (1, 1.0)])):
        sampler = made("a5c", **chosen)
        heard.clear()
        sampler.add = lambda task, score: heard.append((task, score))
        results = {"success": torch.tensor([1.0, 0.0]), "return": torch.tensor([20.0, 5.0])}
        sampler.update(torch.tensor([0, 1]), results)
        assert heard == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"silent": ["a", "b"]}, "no success is reported by a, b, so that targets"),
        ({"targets": [1.0]}, "targets must be a number for each of the 2 tasks, not 1"),
        ({"targets": [1.0, 2.0], "baselines": [0.0]}, "baselines must be a number for each of the 2 tasks"),
        ({"targets": [1.0, 2.0], "baselines": [0.0, 2.0]}, "above its baseline"),
        ({"baselines": [0.0, 2.0]}, "baselines go with targets"),
    ],
)
def test_impossible_targets_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made("a5c", **options)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_proportional() -> None:
    """(1, 4, 9) and their square roots; all the same without sizes."""
    sizes = [1.0, 4.0, 9.0]
    close(made("proportional", 3, sizes=sizes).probabilities(), 1 / 14, 4 / 14, 9 / 14)
    close(made("proportional", 3, sizes=sizes, exponent=0.5).probabilities(), 1 / 6, 2 / 6, 3 / 6)
    close(made("proportional", 3).probabilities(), 1 / 3, 1 / 3, 1 / 3)
    for wrong in ([0.0, 0.0], [1.0, -1.0], [1.0]):
        with pytest.raises(UserError):
            made("proportional", sizes=wrong)


def test_a5c() -> None:
    """Means of the last two scores 1/2 and 1: m = (1/2, 0), p = softmax(1/2 / 0.25, 0) = softmax(2, 0)."""
    sampler = made("a5c", window=2, tau=0.25)
    for success in (1.0, 1.0, 0.0):
        tell(sampler, 0, success)
    tell(sampler, 1, 1.0)
    close(sampler.probabilities(), 0.5, 0.5)  # task 1 has one episode yet
    tell(sampler, 1, 1.0)
    share = math.exp(2) / (math.exp(2) + 1)
    close(sampler.probabilities(), share, 1 - share)


def test_a5c_does_not_care_how_far_a_target_is_passed() -> None:
    sampler = made("a5c", window=1, tau=1.0, targets=[10.0, 10.0])
    tell(sampler, 0, 0.0, episode_return=50.0)
    tell(sampler, 1, 0.0, episode_return=10.0)
    close(sampler.probabilities(), 0.5, 0.5)


def test_adaptive_schedule() -> None:
    """Means 1/2 and 1, alpha 2, epsilon 1/4: weights 1 / (1/4 + 1/4) = 2 and 1 / (1 + 1/4) = 0.8."""
    sampler = made("adaptive_schedule", window=2, alpha=2.0, epsilon=0.25)
    close(sampler.probabilities(), 0.5, 0.5)
    for success in (1.0, 0.0):
        tell(sampler, 0, success)
        tell(sampler, 1, 1.0)
    close(sampler.probabilities(), 2 / 2.8, 0.8 / 2.8)


def test_gap() -> None:
    """Step 1/2. Task 0: 1, 0 has mean 1/4; task 1: 1 has 1/2; task 2, past its target twice, has no gap.

    Gaps 3/4, 1/2, 0 and eta 2: weights e^1.5, e, 1. Without a floor; with one of half the uniform share, 1/6, the last
    task is raised to it, and the others share 5/6.
    """
    for least in (0.0, 0.5):
        sampler = made("gap", 3, eta=2.0, step=0.5, least=least, targets=[10.0] * 3)
        close(sampler.probabilities(), 1 / 3, 1 / 3, 1 / 3)
        for task, returns in enumerate([(10.0, 0.0), (10.0,), (30.0, 30.0)]):
            for one in returns:
                tell(sampler, task, 0.0, episode_return=one)
        first, second = math.exp(1.5), math.exp(1.0)
        if least:
            close(sampler.probabilities(), 5 / 6 * first / (first + second), 5 / 6 * second / (first + second), 1 / 6)
        else:
            total = first + second + 1
            close(sampler.probabilities(), first / total, second / total, 1 / total)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_floor_is_a_projection(share: float) -> None:
    """Beside scipy's minimum of the KL divergence under the same constraints, for shares of very different sizes."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        p = rng.dirichlet(np.full(6, 0.3))
        floor = share / 6
        found = at_least(torch.from_numpy(p), floor)
        best = scipy.optimize.minimize(
            lambda q, p=p: float((q * np.log(q.clip(1e-300) / p)).sum()),
            np.full(6, 1 / 6),
            jac=lambda q, p=p: np.log(q.clip(1e-300) / p) + 1,
            bounds=[(floor, 1)] * 6,
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        assert float(found.sum()) == pytest.approx(1)
        assert float(found.min()) >= floor * (1 - 1e-8)
        np.testing.assert_allclose(found.numpy(), best.x, atol=2e-4)


def test_a_gap_that_closes_gives_its_slots_back() -> None:
    sampler = made("gap", 2)
    for _ in range(200):
        tell(sampler, 0, 1.0)
        tell(sampler, 1, 0.0)
    assert float(sampler.probabilities()[0]) == pytest.approx(0.25 / 2)
    for _ in range(200):
        tell(sampler, 1, 1.0)
    close(sampler.probabilities().round(decimals=3), 0.5, 0.5)


def test_learning_progress() -> None:
    """Steps 1/2 and 1/4. Task 0: 0, 1: fast 1/2, slow 1/4, progress 1/4. Task 1: 1, 0, 0: fast 1/4, slow 9/16: 5/16.

    Shares 4/9 and 5/9 of 0.8, and 0.1 each. Task 2, always 1, makes no progress.
    """
    sampler = made("learning_progress", 3, fast=0.5, slow=0.25, explore=0.3)
    close(sampler.probabilities(), 1 / 3, 1 / 3, 1 / 3)
    for task, successes in enumerate([(0.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0)]):
        for success in successes:
            tell(sampler, task, success)
    close(sampler.probabilities(), 0.1 + 0.7 * 4 / 9, 0.1 + 0.7 * 5 / 9, 0.1)


# --- UA4C -----------------------------------------------------------------------------------------------------------


def naive_index(history: list[tuple[int, float]], k: int, gamma: float, c: float) -> float:
    """Garivier and Moulines (2011), from the whole history."""
    age = range(len(history) - 1, -1, -1)
    n = sum(gamma**a for a, (task, _) in zip(age, history, strict=True) if task == k)
    total = sum(gamma**a for a in age)
    mean = sum(gamma**a * (1 - score) for a, (task, score) in zip(age, history, strict=True) if task == k) / n
    return mean + c * math.sqrt(math.log(max(total, 1.0)) / n)


def test_ua4c_is_the_discounted_ucb() -> None:
    """Every choice of one slot over 60 episodes; each task is played once at first."""
    sampler, history = made("ua4c", 3, gamma=0.9, c=0.3), []
    g = torch.Generator().manual_seed(0)
    for step in range(60):
        chosen = int(sampler.probabilities().argmax())
        assert float(sampler.probabilities().max()) == 1
        if step < 3:
            assert chosen == step
        else:
            index = [naive_index(history, k, 0.9, 0.3) for k in range(3)]
            assert chosen == index.index(max(index))
        score = float(torch.rand((), generator=g) < (0.2, 0.5, 0.8)[chosen])
        history.append((chosen, score))
        tell(sampler, chosen, score)
    assert len({task for task, _ in history[3:]}) == 3


def plays(gamma: float) -> tuple[Tensor, Tensor]:
    """How often each of two tasks is played in 300 episodes, and in 300 more after they have changed roles."""
    sampler, counts = made("ua4c", gamma=gamma, c=0.25), torch.zeros(2, 2)
    g = torch.Generator().manual_seed(1)
    for step in range(600):
        task = int(sampler.probabilities().argmax())
        hard = 0 if step < 300 else 1
        success = float(torch.rand((), generator=g) < (0.1 if task == hard else 0.9))
        counts[step // 300, task] += 1
        tell(sampler, task, success)
    return counts[0], counts[1]


def test_ua4c_as_a_bandit() -> None:
    """The task that fails is played; one that begins to fail is found, by the bandit that forgets."""
    before, after = plays(0.99)
    assert before[0] > 250
    assert after[1] > 200
    assert plays(1.0)[1][1] < after[1] - 50


def test_ua4c_shares_are_the_next_plays_of_all_slots() -> None:
    """Ten episodes each, shortfalls 1 and 0, c = 1: ten plays planned one after another."""
    sampler = made("ua4c", num_slots=10, gamma=1.0, c=1.0)
    for _ in range(10):
        tell(sampler, 0, 0.0)
        tell(sampler, 1, 1.0)
    n, expected = [10, 10], [0, 0]
    for _ in range(10):
        bonus = math.log(sum(n))
        best = max((0, 1), key=lambda k: (1.0, 0.0)[k] + math.sqrt(bonus / n[k]))
        n[best] += 1
        expected[best] += 1
    close(sampler.probabilities(), *(x / 10 for x in expected))
    assert expected[0] > expected[1]


# --- EA4C -----------------------------------------------------------------------------------------------------------


def test_ea4c_reward_by_hand() -> None:
    """Scores 1/2, 0, 1, 1/4 of 4 tasks; the worst two are 0 and 1/4. Played task 0, lambda 1/4:
    1/4 (1 - 1/2) + 3/4 * (0 + 1/4) / 2 = 0.125 + 0.09375.
    """
    sampler = made("ea4c", 4, window=4, lambda_=0.25)
    for task, successes in enumerate([(1, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 0)]):
        for success in successes:
            tell(sampler, task, float(success))
    assert sampler.reward(0) == pytest.approx(0.21875)


def test_ea4c_learns_what_pays() -> None:
    """Task 1 never succeeds, and playing it pays: its share grows."""
    sampler = made("ea4c", 3, lambda_=1.0, lr=1e-2, unroll=10, gamma=0.0)
    close(sampler.probabilities().double(), *[1 / 3] * 3)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        task = int(torch.multinomial(sampler.probabilities(), 1, generator=g))
        tell(sampler, task, float(task != 1))
    assert sampler.probabilities()[1] > 0.7
