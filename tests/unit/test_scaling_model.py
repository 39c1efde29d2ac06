"""The queues of benchmarks/scaling_model.py by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from scaling_model import Constants, on_cores, predict

FREE = Constants(
    rollout_steps=100,
    act_s=1.0,
    rollout_bytes=0,
    weights_bytes=0,
    receive_s=0.1,
    update_s=0.2,
    publish_s=0.0,
    gradient_bytes=0,
    gradient_steps=1,
    latency_s=0.0,
    exchange_bytes_per_s=1.0,
)


def test_one_saturated_actor() -> None:
    """A rollout of 100 steps takes 1 s, and .1 s until it is received; the next one is made during the update of .2 s.

    It began before that update, with weights that are one update old when it is learned from.
    """
    found = predict(FREE, actors=1, learners=1, rollouts=1)
    assert found.steps_per_s == pytest.approx(100 / 1.1)
    assert found.lag == 1
    assert found.bottleneck == "actors"
    assert found.busy["actors"] == pytest.approx(1 / 1.1)
    assert found.busy["update"] == pytest.approx(0.2 / 1.1)


def test_fewer_cores_than_processes() -> None:
    """A rollout of 100 steps is 1 + .1 + .2 s of work. With cores for all, the learner needs 4 (.1 + .2) s for four."""
    assert on_cores(FREE, actors=4, cores=5) == pytest.approx(400 / 1.2)
    assert on_cores(FREE, actors=4, cores=2) == pytest.approx(2 * 100 / 1.3)


def test_one_saturated_learner() -> None:
    """Eight actors make a rollout in .1 s, and the learner takes .1 + .9 s for each: 100 steps per second.

    All eight rollouts wait, in turn, so that each is learned from eight updates after it began.
    """
    found = predict(replace(FREE, act_s=0.1, update_s=0.9), actors=8, learners=1, rollouts=1)
    assert found.steps_per_s == pytest.approx(100)
    assert found.lag == 8
    assert found.bottleneck == "update"
    assert found.busy["update"] == pytest.approx(0.9)


def test_an_update_of_four_rollouts_from_eight_actors() -> None:
    """4 (.1 + .2) + .05 s for 400 steps; eight rollouts are two updates."""
    found = predict(replace(FREE, act_s=0.1, publish_s=0.05), actors=8, learners=1, rollouts=4)
    assert found.steps_per_s == pytest.approx(400 / 1.25)
    assert found.lag == pytest.approx(2)


def test_a_saturated_link() -> None:
    """Weights of 300 and a rollout of 200 bytes pass a link of 500 bytes per second, once a second."""
    found = predict(replace(FREE, rollout_bytes=200, weights_bytes=300), 100, 1, rollouts=10, link=500.0)
    assert found.steps_per_s == pytest.approx(100, rel=0.02)
    assert found.bottleneck == "link"


def test_four_learners() -> None:
    """Each has two of eight actors, and one of the four rollouts of an update.

    A gradient of 4 MB in parts of 1 MB passes six times at 100 MB/s, after .005 s each: 6 * .015 = .09 s, for each of
    two steps. With reception and update, .1 + .2 + .18 s for 400 steps.
    """
    c = replace(FREE, act_s=0.1, gradient_bytes=4_000_000, gradient_steps=2)
    c = replace(c, latency_s=0.005, exchange_bytes_per_s=1e8)
    found = predict(c, actors=8, learners=4, rollouts=4)
    assert c.exchange_s(4) == pytest.approx(0.18)
    assert c.exchange_s(1) == 0
    assert found.steps_per_s == pytest.approx(400 / 0.48)
    assert found.busy["exchange"] == pytest.approx(0.18 / 0.48)
