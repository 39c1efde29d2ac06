"""What components are given of the agent around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mtrl.envs
from mtrl.agents.components import Components
from mtrl.agents.resets import Resets
from mtrl.build import build_episodes, build_learner
from mtrl.config import GROUPS, composed, config_dir
from mtrl.data.experience import EpisodeStatistics
from mtrl.envs.metaworld.catalog import MT10, MT50
from mtrl.parallel.actors import AsyncOnPolicy
from mtrl.types import UserError
from tests.helpers import no_timer


def make_learner(*overrides: str) -> tuple[Any, EpisodeStatistics]:
    """And what tells it of episodes."""
    config = composed(["env=toy_reach", *overrides], "train")
    env = mtrl.envs.make(**config["env"] | {"num_envs": 8}, seed=0)
    return make_learner_in(env, config)


def make_learner_in(env: Any, config: dict[str, Any]) -> tuple[Any, EpisodeStatistics]:
    slots = {slot: config[slot] for slot in GROUPS if slot not in ("env", "agent", "data", "task_sampling")}
    episodes = build_episodes(config["task_sampling"], env.spec, env.num_envs)
    components = Components(**slots, spec=env.spec, episodes=episodes, device="cpu")
    return build_learner(config["agent"], components, resets=config["resets"]), episodes


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_builds(name: str) -> None:
    """With narrow networks, for Meta-World's tasks and observations without Meta-World, or for one game."""
    config = composed([f"experiment={name}"], "train")
    if config["env"]["name"] == "atari":
        env = mtrl.envs.make(**config["env"] | {"games": "pong", "num_envs": 1, "num_workers": 1}, seed=0)
        learner, _ = make_learner_in(env, config)
        assert list(learner.optimizers) == ["joint"]
        return
    config["network"]["trunk"]["width"] = 8
    if "value" in config["network"]:
        config["network"]["value"]["width"] = 16
    tasks = MT10 if config["env"]["name"] == "mt10" else MT50
    env = mtrl.envs.make("toy_reach", num_tasks=len(tasks), num_envs=len(tasks), seed=0)
    env.spec = dataclasses.replace(env.spec, task_names=tasks, obs_shape=(39,))
    learner, _ = make_learner_in(env, config)
    if config["agent"]["name"] != "distill":
        values = learner.networks["critics"][0] if config["agent"]["name"] == "sac" else learner.networks["value"]
        ratio = 2 if "value" in config["network"] else 1
        assert values.trunk.out_features == ratio * learner.policy.trunk.out_features
    assert isinstance(learner, Resets) == (config["resets"] > 0)


def test_value_norms_hear_of_episodes() -> None:
    overrides = ("agent=sac", "value_norm=return_range", "agent.target_entropy=-0.5", "agent.initial_alpha=2")
    learner, episodes = make_learner(*overrides)
    # Two components of the action: 2 * |-0.5 * 2| / (1 - 0.99) / 2 = 100 of room for entropy.
    torch.testing.assert_close(learner.value_norm.sigma.float(), torch.full((4,), 10.0))
    task, results = torch.tensor([1]), {"largest_return": torch.tensor([50.0], dtype=torch.float64)}
    others = {name: torch.ones(1, dtype=torch.float64) for name in ("return", "success", "length")}
    episodes.add(task, {**results, **others})
    torch.testing.assert_close(learner.value_norm.sigma.float(), torch.tensor([10.0, 15.0, 10.0, 10.0]))


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_returns_of_episodes_are_discounted_as_values_are(name: str) -> None:
    """Where somebody asks for them. Also those of actors, which are told it when they are started."""
    assert make_learner(f"agent={name}")[1].discount is None
    learner, episodes = make_learner(f"agent={name}", "agent.gamma=0.5", "value_norm=return_range")
    assert episodes.discount == 0.5
    transport: Any = StartedError()
    source = AsyncOnPolicy(1, 4, lambda: None, episodes, transport, no_timer, {}, 1, print, 10)
    source.connect(learner.policy)
    with pytest.raises(StartedError):
        source.collect(learner)
    assert transport.recipe.discount == 0.5


class StartedError(Exception):
    """A transport that keeps the first recipe, and ends there."""

    version = 0

    def publish(self, weights: Any) -> None:
        pass

    def start(self, actor: int, recipe: Any) -> None:
        self.recipe = recipe
        raise self

    def receive(self, most: int) -> list[Any]:
        return []

    def close(self) -> None:
        pass


def steps(learner: Any) -> tuple[Any, Any]:
    """Of the policy, and of the critics or the value network."""
    policy, values, *_ = learner.optimizers.values()
    return policy, values


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_weightings_hear_of_success(name: str) -> None:
    learner, episodes = make_learner(f"agent={name}", "weighting=focal", "weighting.step_size=1")
    ones, success = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    results = {"return": ones, "length": ones, "largest_return": ones, "success": success}
    episodes.add(torch.ones(4, dtype=torch.int64), results)  # task 1: three of four succeeded
    episodes.statistics()
    for step in steps(learner):
        assert step.weighting.success.tolist() == [0, 0.75, 0, 0]


def test_alpha_softmax_reads_the_learners_temperatures() -> None:
    learner, _ = make_learner("agent=sac", "weighting=alpha_softmax")
    with torch.no_grad():
        learner.temperature.log_alpha.copy_(torch.tensor([0.0, 0.0, 0.0, 3.0]).log1p())  # alpha = 1, 1, 1, 4
    for step in steps(learner):
        weights = step.weighting(torch.ones(4))
        torch.testing.assert_close(weights, torch.tensor([4.0, 4.0, 4.0, 1.0]) * 4 / 13)
    assert torch.equal(learner.optimizers["temperature"].weighting(torch.ones(4)), torch.ones(4))


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_a_weighting_of_positive_losses_is_the_values(name: str) -> None:
    learner, _ = make_learner(f"agent={name}", "weighting=gradnorm", "aggregation=pcgrad")
    policy_step, value_step = steps(learner)
    assert type(policy_step.weighting).__name__ == "Uniform"
    assert type(value_step.weighting).__name__ == "GradNorm"
    assert {type(step.aggregation).__name__ for step in (policy_step, value_step)} == {"PCGrad"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agent=ppo", "weighting=alpha_softmax"], "only agent=sac has temperatures"),
        (["agent=sac", "value_norm=return_range", "agent.gamma=1"], "for gamma < 1 only, not for 1"),
    ],
)
def test_what_does_not_fit_is_an_error(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_learner(*overrides)
