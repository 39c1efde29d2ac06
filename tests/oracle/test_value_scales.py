"""Scales of values by returns and by mean rewards, and resets, against hand arithmetic and dividing the rewards."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.agents.resets import Resets
from mtrl.data.returns import ReturnTracker
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.nn.value_norm import MeanReward, ReturnRange
from tests.oracle import test_impala, test_sac

K = 3
ALL = torch.tensor([True, True])


def test_largest_return_by_hand() -> None:
    """Gamma = 1/2. G = 3, 2 + 1.5 = 3.5, 1 + 1.75 = 2.75, from the end; and with a mean of -1 for ever, which is worth
    -2 after the last step, G = 1 - 1 = 0, 0, -4."""
    tracker = ReturnTracker(2)
    for rewards in ((1.0, -4.0), (2.0, 0.0), (3.0, 1.0)):
        tracker.add(torch.tensor(rewards))
    assert tracker.end(ALL, torch.tensor([True, False]), 0.5).tolist() == [3.5, 4.0]


def test_largest_return_of_slots_that_end_at_different_times() -> None:
    """One slot ends after two steps (G = 8, 1 + 4) and again after two (6, 3); the other after four (1, 1/2, ...)."""
    tracker = ReturnTracker(2)
    first, second = torch.tensor([True, False]), torch.tensor([True, True])
    tracker.add(torch.tensor([1.0, 0.0]))
    tracker.add(torch.tensor([8.0, 0.0]))
    assert tracker.end(first, first, 0.5).tolist() == [8.0]
    saved = copy.deepcopy(tracker.state_dict())
    for one in (tracker, ReturnTracker(2)):
        one.load_state_dict(saved)
        one.add(torch.tensor([0.0, 0.0]))
        one.add(torch.tensor([6.0, 1.0]))
        assert one.end(second, second, 0.5).tolist() == [6.0, 1.0]


@pytest.mark.parametrize(("gamma", "expected"), [(0.9, 10.0), (1.0, 300.0)])
def test_largest_return_of_a_long_episode(gamma: float, expected: float) -> None:
    """A reward of 1 for ever is worth 1 / (1 - gamma) at every step; without discount, 300 steps are worth 300."""
    tracker = ReturnTracker(1)
    for _ in range(300):
        tracker.add(torch.ones(1))
    assert float(tracker.end(ALL[:1], ~ALL[:1], gamma)) == pytest.approx(expected)


def episodes(task: list[int], **results: list[float]) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.tensor(task), {key: torch.tensor(value, dtype=torch.float64) for key, value in results.items()}


def test_return_range_by_hand() -> None:
    """The largest so far over v_max = 10; 1 for a task that has earned nothing. 2 / (2 * 0.25) for entropy is added."""
    norm = ReturnRange(K, gamma=0.75, v_max=10.0)
    norm.observe(*episodes([0, 1, 0], largest_return=[5.0, 20.0, 30.0]))
    norm.observe(*episodes([0, 2], largest_return=[7.0, 0.0]))
    assert norm.sigma.tolist() == [3.0, 2.0, 1.0]
    norm.entropy = lambda: torch.full((K,), 2.0)
    torch.testing.assert_close(norm.sigma, torch.tensor([3.4, 2.4, 0.4], dtype=torch.float64))
    value, task = torch.tensor([6.8, -2.4]), torch.tensor([0, 1])
    torch.testing.assert_close(norm.normalise(value, task), torch.tensor([2.0, -1.0]))


def test_mean_reward_by_hand() -> None:
    """Means: 30 / 10 = 3 and 6 / 4 = 1.5. Task 2 is at first unknown, then at 0.003 / 10 = 3e-4, below the minimum."""
    norm = MeanReward(K, minimum=1e-3)
    norm.observe(*episodes([0, 1, 0], **{"return": [10.0, -6.0, 20.0], "length": [5.0, 4.0, 5.0]}))
    assert norm.sigma.tolist() == [1.0, 0.5, 1.0]
    norm.observe(*episodes([2], **{"return": [0.003], "length": [10.0]}))
    assert norm.sigma.tolist() == [1.0, 0.5, 1e-3]
    # All are known: only a reset changes it. 36 / 8 = 4.5 becomes the largest.
    norm.observe(*episodes([1], **{"return": [30.0], "length": [4.0]}))
    assert norm.sigma.tolist() == [1.0, 0.5, 1e-3]
    norm.restart()
    torch.testing.assert_close(norm.sigma, torch.tensor([2 / 3, 1.0, 1e-3], dtype=torch.float64))


SIGMA = torch.tensor([0.5, 4.0, 20.0], dtype=torch.float64)


def test_sac_with_divided_values_is_sac_with_divided_rewards() -> None:
    """And temperatures, which are in the units of the reward."""
    ours, plain = test_sac.make_learner("return_range"), test_sac.make_learner()
    ours.value_norm.largest.copy_(10 * SIGMA)
    plain.temperature.log_alpha.data -= SIGMA.log()
    batch = test_sac.make_batch(reward_scale=3.0)
    compare(ours, plain, batch, dataclasses.replace(batch, reward=batch.reward / SIGMA[:, None]), "critic_loss")


def test_impala_with_divided_values_is_impala_with_divided_rewards() -> None:
    ours, plain = test_impala.make_learner(value_norm="return_range"), test_impala.make_learner()
    ours.value_norm.largest.copy_(10 * SIGMA)
    rollout = test_impala.make_rollout()
    compare(
        ours, plain, rollout, dataclasses.replace(rollout, reward=rollout.reward / SIGMA[rollout.task]), "value_loss"
    )


def compare(ours: Any, plain: Any, data: Any, divided: Any, loss: str) -> None:
    metrics = []
    for learner, batch in ((ours, data), (plain, divided)):
        torch.manual_seed(0)
        metrics.append(learner.update(batch, 0.0))
    assert torch.equal(metrics[0]["value_scale"], SIGMA.float())
    for key in (loss, "policy_loss"):
        torch.testing.assert_close(metrics[0][key], metrics[1][key])
    for key in ("policy", "critics" if loss == "critic_loss" else "value"):
        for mine, theirs in zip(ours.networks[key].parameters(), plain.networks[key].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("module", [test_sac, test_impala], ids=["sac", "impala"])
def test_a_reset_learner_is_a_new_one(module: Any) -> None:
    """At half of training, and only there; its next update is the first of a new learner."""
    data = module.make_batch() if module is test_sac else module.make_rollout()

    def update(learner: Any, progress: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        learner.update(data, progress)
        return {key: tensor.detach().clone() for key, tensor in learner.networks.named_parameters()}

    def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[key], two[key]) for key in one)

    learner = Resets(module.make_learner(), count=1, sampler=Uniform(K))
    first = update(learner, 0.0)
    assert same(first, update(module.make_learner(), 0.0))
    assert not same(first, update(learner, 0.49))
    assert same(first, update(learner, 0.5))
    saved = copy.deepcopy(learner.state_dict())
    assert not same(first, update(learner, 1.0))

    other = Resets(module.make_learner(), count=1, sampler=Uniform(K))
    other.load_state_dict(saved)
    assert same(update(other, 1.0), dict(learner.networks.named_parameters()))


def test_a_reset_lets_the_scale_change() -> None:
    learner = test_sac.make_learner("mean_reward")
    learner.value_norm.observe(*episodes([0, 1, 2], **{"return": [1.0, 1.0, 1.0], "length": [1.0, 1.0, 1.0]}))
    learner.value_norm.observe(*episodes([0], **{"return": [3.0], "length": [1.0]}))
    resets = Resets(learner, count=1, sampler=Uniform(K))
    for progress, expected in ((0.4, [1.0, 1.0, 1.0]), (0.5, [1.0, 0.5, 0.5])):
        resets.update(test_sac.make_batch(), progress)
        assert learner.value_norm.sigma.tolist() == expected
