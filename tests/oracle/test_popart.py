"""PopArt: statistics by hand arithmetic, and outputs that an update of them does not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.nn.heads import PerTaskHead, SharedHead
from mtrl.nn.value_norm import NoValueNorm, PopArt, ValueNorm
from mtrl.types import TaskContext
from tests.oracle.test_sac import make_batch, make_learner

K, H = 3, 5


def make_heads(dtype: torch.dtype, n: int = 2) -> list[PerTaskHead]:
    torch.manual_seed(0)
    heads = [PerTaskHead(H, 1, K).to(dtype) for _ in range(n)]
    for head in heads:
        torch.nn.init.normal_(head.bias)
    return heads


def update(norm: ValueNorm, target: Tensor, task: Tensor, heads: list[Any], reward: float = 0.0) -> None:
    """With rewards all of this size."""
    norm.update(target, torch.full_like(target, reward), task, heads)


def outputs(norm: PopArt, head: PerTaskHead, features: Tensor, task: Tensor) -> Tensor:
    with torch.no_grad():
        return norm.denormalise(head(features, TaskContext(task, torch.empty(*task.shape, 0))).squeeze(-1), task)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_an_update_leaves_outputs_unchanged(dtype: torch.dtype, scale: float) -> None:
    """To 1e-6 of the scale of the values, in every head given, over updates with a moving mean and scale."""
    norm, heads = PopArt(K, beta=0.3), make_heads(dtype)
    g = torch.Generator().manual_seed(1)
    for i in range(5):
        features, task = torch.randn(40, H, generator=g, dtype=dtype), torch.randint(K, (40,), generator=g)
        before = [outputs(norm, head, features, task) for head in heads]
        target = scale * (torch.randn(40, generator=g, dtype=dtype) * (1 + i) + i)
        weights = heads[0].weight.clone()
        update(norm, target, task, heads, reward=scale)
        assert not torch.allclose(weights, heads[0].weight)
        for head, old in zip(heads, before, strict=True):
            torch.testing.assert_close(outputs(norm, head, features, task), old, rtol=1e-6, atol=1e-6 * (1 + scale))


def test_moments_by_hand() -> None:
    """First and second moments are averaged, not standard deviations, and the first update sets them.

    beta 0.25, task 0 with targets (1, 3): mu = 2, nu = (1 + 9) / 2 = 5, sigma = sqrt(5 - 4) = 1.
    Then (6, 10), second update: step 1/2: mu = (2 + 8) / 2 = 5, nu = (5 + (36 + 100) / 2) / 2 = 36.5,
        sigma = sqrt(36.5 - 25) = sqrt(11.5). (The mean of the two standard deviations would be (1 + 2) / 2.)
    Then (5, 5), third: step 1/3: mu = 5 + 0 = 5, nu = 36.5 + (25 - 36.5) / 3 = 98 / 3.
    Then (9), fourth: step 1/4: mu = 5 + 4 / 4 = 6, nu = 98 / 3 + (81 - 98 / 3) / 4 = 44.75, sigma = sqrt(8.75).
    Then (6), fifth: step max(0.25, 1/5) = 0.25: mu = 6, nu = 44.75 + (36 - 44.75) / 4 = 42.5625.
    """
    norm = PopArt(2, beta=0.25)
    expected = [(2, 5), (5, 36.5), (5, 98 / 3), (6, 44.75), (6, 42.5625)]
    for targets, (mu, nu) in zip([(1, 3), (6, 10), (5, 5), (9,), (6,)], expected, strict=True):
        update(norm, torch.tensor(targets, dtype=torch.float32), torch.zeros(len(targets), dtype=torch.int64), [])
        assert float(norm.mu[0]) == pytest.approx(mu)
        assert float(norm.nu[0]) == pytest.approx(nu)
        assert float(norm.sigma[0]) == pytest.approx(math.sqrt(nu - mu**2))
    # (x - 6) / sqrt(42.5625 - 36)
    x = torch.tensor([10.0])
    task = torch.zeros(1, dtype=torch.int64)
    assert float(norm.normalise(x, task)) == pytest.approx(4 / math.sqrt(6.5625))
    torch.testing.assert_close(norm.denormalise(norm.normalise(x, task), task), x)


def test_heads_by_hand() -> None:
    """From mu 0, sigma 1 to mu 2, sigma 1 (targets 1 and 3), then to mu 5, sigma sqrt(11.5) as above.

    W: 4 -> 4 -> 4 / sqrt(11.5). b: 1 -> (1 * 1 + 0 - 2) / 1 = -1 -> (1 * -1 + 2 - 5) / sqrt(11.5).
    """
    head, norm, task = PerTaskHead(1, 1, 2).requires_grad_(False), PopArt(2), torch.zeros(2, dtype=torch.int64)
    torch.nn.init.constant_(head.weight, 4)
    torch.nn.init.constant_(head.bias, 1)
    update(norm, torch.tensor([1.0, 3.0]), task, [head])
    assert (float(head.weight[0]), float(head.bias[0])) == (4, -1)
    update(norm, torch.tensor([6.0, 10.0]), task, [head])
    assert float(head.weight[0]) == pytest.approx(4 / math.sqrt(11.5))
    assert float(head.bias[0]) == pytest.approx(-4 / math.sqrt(11.5))
    assert (float(head.weight[1]), float(head.bias[1])) == (4, 1)


def test_a_task_is_its_own() -> None:
    """Statistics and rows of a task are bit for bit those it gets when the other tasks' targets are different."""
    g = torch.Generator().manual_seed(0)
    task = torch.randint(K, (50,), generator=g)
    target = torch.randn(50, generator=g)
    results = []
    for other in (1.0, 1e5):
        norm, heads = PopArt(K, beta=0.1), make_heads(torch.float32, 1)
        for i in range(3):
            update(norm, torch.where(task == 1, target + i, other * target), task, heads)
        results.append((norm.mu[1], norm.nu[1], heads[0].weight[1], heads[0].bias[1]))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_an_absent_task_stays_as_it_is() -> None:
    norm, (head,) = PopArt(K, beta=0.1), make_heads(torch.float32, 1)
    everyone = torch.arange(K).repeat(4)
    update(norm, torch.randn(12, generator=torch.Generator().manual_seed(0)), everyone, [head])
    before = [x[1].clone() for x in (norm.mu, norm.nu, norm.sigma, norm.updates, head.weight, head.bias)]
    moved = norm.mu.clone()
    update(norm, torch.full((4,), 7.0), torch.tensor([0, 2, 2, 0]), [head])
    after = [x[1] for x in (norm.mu, norm.nu, norm.sigma, norm.updates, head.weight, head.bias)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)
    assert (norm.mu != moved).tolist() == [True, False, True]
    assert torch.isfinite(head.weight).all()
    assert torch.isfinite(norm.sigma).all()


def test_the_first_update_of_a_late_task_sets_its_statistics() -> None:
    """The step size counts the updates of the task, not those of PopArt."""
    norm = PopArt(2, beta=1e-3)
    for _ in range(10):
        update(norm, torch.ones(2), torch.zeros(2, dtype=torch.int64), [])
    update(norm, torch.tensor([10.0, 30.0]), torch.ones(2, dtype=torch.int64), [])
    assert norm.mu.tolist() == [1, 20]
    assert float(norm.sigma[1]) == pytest.approx(10)


@pytest.mark.parametrize("value", [3.0, 1e-9, 0.1, 1e6])
def test_equal_targets_have_no_spread(value: float) -> None:
    """Rounding, of either sign, makes nothing of it and no NaN: sigma is a tenth of the reward."""
    norm, heads = PopArt(1), [PerTaskHead(H, 1, 1)]
    update(norm, torch.full((7,), value), torch.zeros(7, dtype=torch.int64), heads, reward=-value)
    assert float(norm.sigma) == pytest.approx(0.1 * value)
    assert torch.isfinite(heads[0].bias).all()


def test_the_floor_by_hand() -> None:
    """A tenth of sum r^2 / sum |r|, over all updates; of 1 while there is no reward. Sigma is no less.

    Task 0: (3^2 + 1^2) / (3 + 1) = 2.5, then (9 + 1 + 6^2) / (3 + 1 + 6) = 4.6. Task 1: none, then 1e-3.
    """
    norm, task = PopArt(2), torch.tensor([0, 0, 0, 1])
    targets = torch.tensor([5.0, 5.0, 5.0, 0.0])
    norm.update(targets, torch.tensor([3.0, 0.0, -1.0, 0.0]), task, [])
    torch.testing.assert_close(norm.floor, torch.tensor([0.25, 0.1], dtype=torch.float64))
    torch.testing.assert_close(norm.sigma, norm.floor)
    norm.update(targets, torch.tensor([0.0, -6.0, 0.0, 1e-3]), task, [])
    torch.testing.assert_close(norm.floor, torch.tensor([0.46, 1e-4], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.sigma, norm.floor)


def test_sigma_has_a_ceiling() -> None:
    norm = PopArt(1)
    update(norm, torch.tensor([-1e9, 1e9]), torch.zeros(2, dtype=torch.int64), [])
    assert float(norm.sigma) == 1e6


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.5])
def test_beta_is_a_step_size(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be in"):
        PopArt(2, beta=beta)


def test_a_shared_head_is_refused() -> None:
    with pytest.raises(ValueError, match="per-task value heads"):
        update(PopArt(2), torch.ones(2), torch.tensor([0, 1]), [SharedHead(H, 1)])


def test_a_bad_target_spoils_its_own_task_only() -> None:
    norm, heads = PopArt(K), make_heads(torch.float32, 1)
    update(norm, torch.tensor([1.0, 2.0, math.nan, 1.0, 2.0]), torch.tensor([0, 0, 1, 2, 2]), heads)
    assert torch.isfinite(norm.mu).tolist() == [True, False, True]
    assert torch.isfinite(heads[0].weight).flatten(1).all(1).tolist() == [True, False, True]


def test_sac_rescales_its_target_critics_too() -> None:
    """With no learning to speak of, an update changes the statistics and no denormalised value of any critic."""
    learner, batch = make_learner("popart", lr=1e-30, tau=1e-30), make_batch(reward_scale=30.0)
    features = torch.cat([batch.obs, batch.action], -1)
    networks = [*learner.critics, *learner.target_critics]

    def values() -> Tensor:
        with torch.no_grad():
            return torch.stack([learner.value_norm.denormalise(q(features, batch.task), batch.task) for q in networks])

    before, sigma = values(), learner.value_norm.sigma.clone()
    learner.update(batch, 0.0)
    assert ((learner.value_norm.sigma / sigma - 1).abs() > 0.1).all()
    torch.testing.assert_close(values(), before, rtol=1e-9, atol=1e-9)


def test_sac_learns_normalised_errors() -> None:
    """The critic's loss is of the size of one whatever the rewards' scale, and the target in units of the reward."""
    metrics = [make_learner("popart").update(make_batch(reward_scale=scale), 0.0) for scale in (1e3, 1e6)]
    for row in metrics:
        assert (row["critic_loss"] < 100).all()
    ratio = metrics[1]["value_scale"] / metrics[0]["value_scale"]
    torch.testing.assert_close(ratio, torch.full((3,), 1e3), rtol=0.05, atol=0)


def test_the_null_norm_does_nothing() -> None:
    norm, value, task = NoValueNorm(K), torch.randn(4), torch.tensor([0, 1, 2, 0])
    update(norm, 100 * value, task, [SharedHead(H, 1)])
    assert torch.equal(norm.normalise(value, task), value)
    assert torch.equal(norm.denormalise(value, task), value)
    assert norm.sigma.tolist() == [1, 1, 1]
