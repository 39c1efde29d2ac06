"""Schedules: exact values, of each task, also over a resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mtrl.distill  # noqa: F401
from mtrl.data.experience import EpisodeStatistics
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.distill.schedules import Schedule, Value, as_schedule
from mtrl.types import UserError
from tests.helpers import make_spec

SPEC = make_spec(3)


def made(value: Value, spec: Any = SPEC) -> tuple[Schedule, EpisodeStatistics]:
    episodes = EpisodeStatistics(spec, Uniform(spec.num_tasks))
    return as_schedule(value, spec, episodes), episodes


def end_episodes(episodes: EpisodeStatistics, successes: list[list[int]]) -> None:
    """Of each task, its episodes; then a row of the log."""
    task = torch.tensor([k for k, own in enumerate(successes) for _ in own])
    success = torch.tensor([x for own in successes for x in own], dtype=torch.float64)
    results = {name: torch.ones_like(success) for name in ("return", "length", "largest_return")}
    episodes.add(task, {**results, "success": success})
    episodes.statistics()


@pytest.mark.parametrize("value", [0.3, 2, {"name": "constant", "value": 0.3}])
def test_a_number_is_constant(value: Value) -> None:
    schedule, _ = made(value)
    expected = value["value"] if isinstance(value, dict) else value
    assert [schedule(p).tolist() for p in (0.0, 0.4, 1.0)] == [expected] * 3
    assert schedule.start == schedule.end == expected


def test_a_line() -> None:
    """1 to .5 within half of training: .75 at a quarter."""
    schedule, _ = made({"name": "linear", "start": 1, "end": 0.5, "until": 0.5})
    assert [schedule(p).tolist() for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 0.75, 0.5, 0.5, 0.5]
    assert (schedule.start, schedule.end) == (1, 0.5)
    whole, _ = made({"name": "linear", "start": 0, "end": 1})
    assert [whole(p).tolist() for p in (0.0, 0.125, 1.0)] == [0, 0.125, 1]


def test_a_line_by_the_success_of_each_task() -> None:
    """Moving averages of step .5 over rows: (.25, .5, 0), then (.625, .25, 0) as the third has no episode.

    1 to 0 at a success rate of .5: 1 - rate / .5, at least 0.
    """
    schedule, episodes = made({"name": "success", "start": 1, "end": 0, "target": 0.5, "step_size": 0.5})
    assert schedule(0.9).tolist() == [1, 1, 1]
    end_episodes(episodes, [[1, 0], [1], []])
    assert schedule(0.1).tolist() == [0.5, 0, 1]
    end_episodes(episodes, [[1, 1], [0], []])
    assert schedule(0.1).tolist() == [0, 0.5, 1]


def test_a_resumed_schedule_goes_on_exactly() -> None:
    node = {"name": "success", "start": 0, "end": 2, "target": 0.9, "step_size": 0.3}
    (one, heard), (other, also) = made(node), made(node)
    end_episodes(heard, [[1, 0, 0], [0], [1, 1]])
    state = one.state_dict()
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    for episodes in (heard, also):
        end_episodes(episodes, [[1], [1, 0], []])
    assert torch.equal(one(0.5), other(0.5))
    assert not torch.equal(one(0.5), made(node)[0](0.5))


@pytest.mark.parametrize("value", [1.0, {"name": "linear", "start": 1, "end": 0}])
def test_others_have_no_state(value: Value) -> None:
    schedule, episodes = made(value)
    end_episodes(episodes, [[1], [1], [1]])
    assert schedule.state_dict() == {}
    schedule.load_state_dict({})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "linear", "start": 1, "end": 0, "until": 0}, "until must be a share of training"),
        ({"name": "linear", "start": 1, "end": 0, "until": 1.5}, "until must be a share of training"),
        ({"name": "linear", "start": 1}, "needs a value for: end"),
        ({"name": "success", "start": 1, "end": 0, "target": 0}, "target must be a success rate"),
        ({"name": "success", "start": 1, "end": 0, "target": 1, "step_size": 0}, "step_size must be"),
        ({"name": "cosine"}, "Unknown schedule 'cosine'.*Valid: constant, linear, success"),
        ({"start": 1, "end": 0}, "A schedule needs a name. Valid: constant, linear, success"),
    ],
)
def test_what_makes_no_sense(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(node)
    assert "\n" not in str(error.value)


def test_success_must_be_reported() -> None:
    spec = dataclasses.replace(SPEC, reports_success=(True, False, True))
    with pytest.raises(UserError, match="no success is reported by task-1: use a linear schedule"):
        made({"name": "success", "start": 1, "end": 0, "target": 1}, spec)
