"""What a number means, as it is stored beside it: results of different versions must stay comparable."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

import mtrl.envs
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.types import EpisodeResult, EvalResult
from tests.helpers import make_spec

EVERY = {
    "truncated after": "27000 steps",
    "horizon": None,
    "episodes per task": 50,
    "policy": "deterministic",
    "success": "at any step",
}
METAWORLD = {
    "physics": "official (metaworld 3.1.1, mujoco 3.3.0)",
    "reward": "v2",
    "goals": "the fixed goals of seed 3, goal i in episode i",
}


def atari() -> dict[str, Any]:
    return {
        "env": "atari",
        "emulator": f"ale-py {version('ale-py')}",
        "sticky actions": 0.25,
        "no-op starts": "fewer than 30",
        "action set": "minimal",
        "seeds": "seed i in episode i of a game",
        "return": "raw score",
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"name": "mt10", "num_envs": 160, "physics": "rollout"},
            {"env": "mt10", **METAWORLD, "goal in the observation": "yes"},
        ),
        (
            {"name": "ml10", "split": "test"},
            {"env": "ml10", **METAWORLD, "goal in the observation": "no", "split": "test"},
        ),
        (
            {"name": "metaworld", "tasks": ["reach-v3"], "goal_seed": 7, "reward_version": "v1"},
            {
                "env": "metaworld",
                **METAWORLD,
                "reward": "v1",
                "goals": "the fixed goals of seed 7, goal i in episode i",
                "goal in the observation": "yes",
            },
        ),
        ({"name": "gym", "envs": ["CartPole-v1"]}, {"env": "gym"}),
        ({"name": "toy_reach"}, {"env": "toy_reach"}),
    ],
    ids=lambda value: value.get("name"),
)
def test_the_protocol_in_words(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    check(settings, expected)


def test_the_protocol_of_atari_in_words() -> None:
    pytest.importorskip("ale_py")
    check({"name": "atari", "games": "pong"}, atari())
    options = {"repeat_action_probability": 0.0, "noop_max": 1, "action_set": "full"}
    changed = {"sticky actions": 0.0, "no-op starts": "fewer than 1", "action set": "full"}
    check({"name": "atari", "games": "pong", **options}, {**atari(), **changed})


def check(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """The order counts, too: it is that of the table."""
    protocol = mtrl.envs.evaluation_protocol(settings, seed=3)
    words = Evaluator(protocol, mtrl.envs.make, 3, 50, 27_000).protocol(make_spec())
    assert list(words.items()) == list({**expected, **EVERY}.items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "mt10", "physics": "rollout", "horizon": 20}, {"physics": "official", "horizon": 20}),
        ({"name": "ml1", "task": "reach-v3", "num_envs": 4}, {"physics": "official", "task": "reach-v3"}),
        ({"name": "atari", "games": "pong", "backend": "envpool"}, {"backend": "ale", "games": "pong"}),
        ({"name": "gym", "envs": ["CartPole-v1"], "num_envs": 2}, {"envs": ["CartPole-v1"]}),
    ],
    ids=lambda value: value.get("name"),
)
def test_the_environment_of_record(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    protocol = mtrl.envs.evaluation_protocol(settings, seed=0)
    assert protocol.record_settings() == {"name": settings["name"], **expected}


def test_scores() -> None:
    """Pong's references are -20.7 and 14.6: a mean of 10 is 30.7 / 35.3. Carnival has none."""
    episodes = [EpisodeResult("pong", i, None, 8.0 + 4 * i, 100) for i in range(2)]
    result = EvalResult({}, (*episodes, EpisodeResult("carnival", 0, None, 500.0, 100)))
    scores = mtrl.envs.evaluation_protocol({"name": "atari", "games": ["pong", "carnival"]}, seed=0).scores(result)
    assert scores["human_normalised/pong"] == scores["human_normalised_iqm"] == pytest.approx(30.7 / 35.3)
    assert "human_normalised/carnival" not in scores
    assert mtrl.envs.evaluation_protocol({"name": "mt10"}, seed=0).scores(result) == {}
