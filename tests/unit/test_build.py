"""What components are given of the agent around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mtrl.envs
from mtrl.agents.impala import Impala
from mtrl.agents.resets import Resets
from mtrl.build import Agent, Components, build_agent, build_episodes
from mtrl.config import GROUPS, composed, config_dir
from mtrl.data.experience import Collector
from mtrl.envs.metaworld.catalog import MT10, MT50
from mtrl.optim.step import JointStep
from mtrl.parallel.actors import Serial
from mtrl.types import UserError
from tests.helpers import no_timer


def make_agent(*overrides: str) -> Agent:
    config = composed(["env=toy_reach", *overrides], "train")
    env = mtrl.envs.make(**config["env"] | {"num_envs": 8}, seed=0)
    return make_agent_in(env, config)


def make_agent_in(env: Any, config: dict[str, Any]) -> Agent:
    slots = {slot: config[slot] for slot in GROUPS if slot not in ("env", "agent", "task_sampling")}
    components = Components(**slots, spec=env.spec, device="cpu")
    episodes = build_episodes(config["task_sampling"], env.spec, env.num_envs)
    return build_agent(config["agent"], components, Serial(Collector(env, episodes, "cpu", no_timer)))


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_builds(name: str) -> None:
    """With narrow networks, on a toy that calls its tasks by Meta-World's names, or on one game."""
    config = composed([f"experiment={name}"], "train")
    if config["env"]["name"] == "atari":
        env = mtrl.envs.make(**config["env"] | {"games": "pong", "num_envs": 1, "num_workers": 1}, seed=0)
        learner: Any = make_agent_in(env, config).learner
        assert isinstance(learner.steps, JointStep)
        return
    config["network"]["trunk"]["width"] = 8
    if "value" in config["network"]:
        config["network"]["value"]["width"] = 16
    if config["agent"]["name"] == "sac":
        config["agent"] |= {"replay_capacity": 50, "warmup": 0}
    tasks = MT10 if config["env"]["name"] == "mt10" else MT50
    env = mtrl.envs.make("toy_reach", num_tasks=len(tasks), num_envs=len(tasks), seed=0)
    env.spec = dataclasses.replace(env.spec, task_names=tasks)
    learner = make_agent_in(env, config).learner
    values = learner.networks["critics"][0] if config["agent"]["name"] == "sac" else learner.networks["value"]
    ratio = 2 if "value" in config["network"] else 1
    assert values.trunk.out_features == ratio * learner.policy.trunk.out_features
    assert isinstance(learner, Resets) == (config["agent"]["resets"] > 0)


def test_value_norms_hear_of_episodes() -> None:
    agent = make_agent("agent=sac", "value_norm=return_range", "agent.target_entropy=-0.5", "agent.initial_alpha=2")
    learner: Any = agent.learner
    # Two components of the action: 2 * |-0.5 * 2| / (1 - 0.99) / 2 = 100 of room for entropy.
    torch.testing.assert_close(learner.value_norm.sigma.float(), torch.full((4,), 10.0))
    experience: Any = agent.experience
    task, results = torch.tensor([1]), {"largest_return": torch.tensor([50.0], dtype=torch.float64)}
    others = {name: torch.ones(1, dtype=torch.float64) for name in ("return", "success", "length")}
    experience.collector.episodes.add(task, {**results, **others})
    torch.testing.assert_close(learner.value_norm.sigma.float(), torch.tensor([10.0, 15.0, 10.0, 10.0]))


def steps(agent: Agent) -> tuple[Any, Any]:
    """Of the policy, and of the critics or the value network."""
    learner: Any = agent.learner
    if isinstance(learner, Impala):
        return learner.steps.policy, learner.steps.value
    return learner.policy_step, learner.critic_step


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_weightings_hear_of_success(name: str) -> None:
    agent = make_agent(f"agent={name}", "weighting=focal", "weighting.step_size=1")
    experience: Any = agent.experience
    experience.collector.episodes._finished[:3, 1] = torch.tensor([4.0, 10.0, 3.0])  # task 1: three of four succeeded
    experience.statistics()
    for step in steps(agent):
        assert step.weighting.success.tolist() == [0, 0.75, 0, 0]


def test_alpha_softmax_reads_the_learners_temperatures() -> None:
    agent = make_agent("agent=sac", "weighting=alpha_softmax")
    learner: Any = agent.learner
    with torch.no_grad():
        learner.temperature.log_alpha.copy_(torch.tensor([0.0, 0.0, 0.0, 3.0]).log1p())  # alpha = 1, 1, 1, 4
    for step in steps(agent):
        weights = step.weighting(torch.ones(4))
        torch.testing.assert_close(weights, torch.tensor([4.0, 4.0, 4.0, 1.0]) * 4 / 13)
    assert torch.equal(learner.temperature_step.weighting(torch.ones(4)), torch.ones(4))


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_a_weighting_of_positive_losses_is_the_values(name: str) -> None:
    policy_step, value_step = steps(make_agent(f"agent={name}", "weighting=gradnorm", "aggregation=pcgrad"))
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
        make_agent(*overrides)
