"""Every component can be made without memory for its tensors, so that what is stored can be looked at before it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mtrl.build import build_episodes
from mtrl.config import TrainConfig, composed, options, registered, train_config
from mtrl.envs import make
from mtrl.state import check_like, planned
from mtrl.train import make_learner
from mtrl.types import EnvSpec

PICTURES = EnvSpec(("a", "b"), (4, 84, 84), torch.uint8, "discrete", 3, ((True,) * 3,) * 2, None, (False,) * 2, False)
GROUPS = ("network", "torso", "core", "task_encoder", "aggregation", "weighting", "value_norm", "value_head")
LOOKS_AT_VALUES = "torchjd"  # of its weights when it is made: there is no plan of it
CHOICES = [(group, choice) for group in GROUPS for choice in options(group) if choice != LOOKS_AT_VALUES]
NEEDS = {
    "gradnorm": ["aggregation=pcgrad"],
    "context": ["env.history=2"],
    "language": ["env=mt10"],
    "differences": ["env=mt10"],
    "two_hot": ["value_norm=none"],
    "hl_gauss": ["value_norm=none"],
    "alpha_softmax": ["agent=sac"],
    "grouped": ["network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]"],
    "branched": ["network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]"],
}
OF_FLAT = ("none", "differences")
"""Torsos that are not for images."""
SIZES = {"ppo": ["agent.num_minibatches=2"]}


def of_agent(agent: str) -> list[Any]:
    return [
        pytest.param(agent, group, choice)
        for group, choice in CHOICES
        if not (agent == "sac" and (group == "core" or (group == "torso" and choice not in OF_FLAT)))
        and not (agent == "distill" and group == "core")
        and not (agent != "sac" and choice == "alpha_softmax")
    ]


@pytest.mark.parametrize(
    ("agent", "group", "choice"), [case for agent in registered("agent") for case in of_agent(agent)]
)
def test_what_is_planned_is_what_is_made(agent: str, group: str, choice: str) -> None:
    arguments = ["env=toy_reach", f"agent={agent}", *SIZES.get(agent, []), "resets=1", f"{group}={choice}"]
    config = train_config(composed([*arguments, *NEEDS.get(choice, [])], "train"))
    spec = PICTURES if group == "torso" and choice not in OF_FLAT else make(**config.env).spec
    plan = planned(lambda: learner(config, spec, "meta").state_dict(), 1000)
    assert plan is not None
    made = learner(config, spec, "cpu").state_dict()
    check_like(plan, made)
    check_like(made, plan)


@pytest.mark.parametrize("env", ["toy_reach", "toy_grid"])
def test_what_is_planned_has_both_columns(env: str) -> None:
    config = train_config(composed([f"env={env}", "agent=distral", "agent.columns=2"], "train"))
    spec = make(**config.env).spec
    plan = planned(lambda: learner(config, spec, "meta").state_dict(), 1000)
    made = learner(config, spec, "cpu").state_dict()
    assert any("column.shared_policy" in name for name in made["networks"])
    assert plan is not None
    check_like(plan, made)
    check_like(made, plan)


def learner(config: TrainConfig, spec: EnvSpec, device: str) -> Any:
    num_envs = 2 * spec.num_tasks
    return make_learner(replace(config, device=device), build_episodes(config.task_sampling, spec, num_envs))
