"""What components are given of the agent around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mtrl.envs
from mtrl.build import Agent, Components, build_agent, build_episodes
from mtrl.config import composed
from mtrl.data.experience import Collector
from mtrl.parallel.actors import Serial
from mtrl.types import UserError
from tests.helpers import no_timer


def make_agent(*overrides: str) -> Agent:
    config = composed(["env=toy_reach", *overrides], "train")
    env = mtrl.envs.make(**config["env"] | {"num_envs": 8}, seed=0)
    slots = ("network", "task_encoder", "aggregation", "weighting", "value_norm", "value_head")
    components = Components(**{slot: config[slot] for slot in slots}, spec=env.spec, device="cpu")
    episodes = build_episodes(config["task_sampling"], env.spec, env.num_envs)
    return build_agent(config["agent"], components, Serial(Collector(env, episodes, "cpu", no_timer)))


def steps(agent: Agent) -> tuple[Any, Any]:
    """Of the policy, and of the critics or the value network."""
    learner: Any = agent.learner
    return learner.policy_step, getattr(learner, "critic_step", None) or learner.value_step


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
        (["agent=sac", "weighting=gradnorm"], "aggregation=measured_mean"),
    ],
)
def test_what_does_not_fit_is_an_error(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_agent(*overrides)
