"""From config nodes to built objects: what `agent=...` names, a learner and its experience, is put together here.

Each function's signature is the schema of `configs/agent/*.yaml`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import mtrl.data
import mtrl.nn
import mtrl.optim  # noqa: F401  # these three register what nodes can name
from mtrl.agents.acceleration import compile_losses, set_precision
from mtrl.agents.impala import Impala
from mtrl.agents.resets import Resets
from mtrl.agents.sac import Sac, Temperature
from mtrl.checks import positive
from mtrl.data.experience import Episodes
from mtrl.data.replay import Replay
from mtrl.nn.networks import Ensemble, build_policy, build_value
from mtrl.nn.scaling import ValueNorm
from mtrl.optim.aggregation import JacobianAggregation
from mtrl.optim.step import JointStep, SeparateSteps, TaskStep
from mtrl.parallel.actors import Actors
from mtrl.registry import build, register
from mtrl.types import EnvSpec, Experience, Learner, UserError

Node = Mapping[str, Any]


PICTURE_NORMS = {"none": "scaled_pictures", "running": "centred_pictures"}
"""What an agent's `obs_norm` means where observations are pictures."""


@dataclass(frozen=True)
class Components:
    """The config nodes of the slots, which are the same for every agent, and how the learner computes."""

    network: Node
    torso: Node
    core: Node
    task_encoder: Node
    aggregation: Node
    weighting: Node
    value_norm: Node
    value_head: Node
    spec: EnvSpec
    device: str
    precision: str = "float32"
    compile: bool = False

    def policy_description(self, obs_norm: str, action_head: Node) -> dict[str, Any]:
        """What `build_policy` needs, and what is stored with the weights of a policy."""
        flat = len(self.spec.obs_shape) == 1
        description = {
            "obs_norm": {"name": obs_norm if flat else PICTURE_NORMS.get(obs_norm, obs_norm)},
            "torso": dict(self.torso),
            "core": dict(self.core),
            "task_encoder": dict(self.task_encoder),
            "trunk": dict(self.network["trunk"]),
            "head": self.network["head"],
            "action_head": dict(action_head),
        }
        json.dumps(description, allow_nan=False)  # an infinite setting is an error now, not when the policy is saved
        return description

    def value_description(self, policy_description: Mapping[str, Any]) -> dict[str, Any]:
        """The same for critics and value networks: with the options of the trunk that are theirs alone."""
        trunk = policy_description["trunk"] | (self.network.get("value") or {})
        return {**policy_description, "trunk": trunk}

    def scaling_for(self, head: str, episodes: Episodes, **runtime: Any) -> ValueNorm:
        """The value scaling, which is told of every episode.

        Args:
            runtime: What it can read of the learner.

        Raises:
            UserError: It would rescale a value network that has no such rows.
        """
        norm = build("value_norm", self.value_norm, num_tasks=self.spec.num_tasks, **runtime).to(self.device)
        episodes.episode_listeners.append(norm.observe)
        name, value_head = self.value_norm["name"], self.value_head["name"]
        if norm.requires_per_task_head and head != "per_task":
            raise UserError(f"value_norm={name} needs network.head=per_task, not {head}.")
        if norm.requires_per_task_head and value_head != "scalar":
            raise UserError(f"value_norm={name} rescales values, not logits: use value_norm=none with {value_head}.")
        return norm

    def task_step(
        self,
        module: nn.Module,
        optimizer: Node,
        max_grad_norm: float,
        episodes: Episodes,
        has_positive: bool,
        **runtime: Any,
    ) -> TaskStep:
        """A step on a module's parameters, whose weighting is told the statistics of episodes.

        Losses of either sign get the weighting only if it can take them.

        Args:
            runtime: What a weighting can read of the learner.

        Raises:
            UserError: The aggregation or the weighting needs gradients that a compiled loss does not give.
        """
        positive(max_grad_norm=max_grad_norm)
        num_tasks = self.spec.num_tasks
        runtime |= {"num_tasks": num_tasks, "silent_tasks": self.spec.silent_tasks}
        weighting = build("weighting", self.weighting, **runtime).to(self.device)
        if weighting.requires_positive and not has_positive:
            weighting = build("weighting", {"name": "uniform"}, num_tasks=num_tasks)
        episodes.listeners.append(weighting.observe)
        aggregation = build("aggregation", self.aggregation, num_tasks=num_tasks).to(self.device)
        if self.compile and isinstance(aggregation, JacobianAggregation):
            raise UserError(
                f"compile=true has one gradient for all tasks, but aggregation={self.aggregation['name']} takes each "
                "task's: use aggregation=mean or sum, or compile=false."
            )
        if self.compile and weighting.requires_task_norm:
            raise UserError(
                f"compile=true has one gradient for all tasks, but weighting={self.weighting['name']} takes each "
                "task's: use another weighting, or compile=false."
            )
        parameters = list(module.parameters())
        return TaskStep(
            parameters,
            build("optimizer", optimizer, parameters=parameters),
            weighting,
            aggregation,
            max_grad_norm,
            has_positive,
        )


@dataclass(frozen=True)
class Agent:
    """A learner, the experience it learns from, and the description that rebuilds its policy."""

    learner: Learner
    experience: Experience
    policy_description: dict[str, Any]


def build_episodes(task_sampling: Node, spec: EnvSpec, num_slots: int) -> Episodes:
    """Builds the task sampler, and what tells it of episodes."""
    runtime = {"num_tasks": spec.num_tasks, "num_slots": num_slots, "silent_tasks": spec.silent_tasks}
    return Episodes(spec, build("task_sampling", task_sampling, **runtime))


def build_agent(node: Node, components: Components, actors: Actors) -> Agent:
    """Builds what `agent=...` names, to learn from what the actors do."""
    others = ("slots_per_task", "random_start", "resets")
    keywords = {key: value for key, value in node.items() if key not in others}
    agent = build("agent", keywords, c=components, actors=actors)
    set_precision(agent.learner.networks, components.precision)
    if components.compile:
        compile_losses(agent.learner)
    if not node["resets"]:
        return agent
    return replace(agent, learner=Resets(agent.learner, node["resets"], actors.episodes.sampler))


@register("agent", "impala")
def impala(
    c: Components,
    actors: Actors,
    rollout_length: int,
    optimizer: dict[str, Any],
    gamma: float,
    lambda_: float,
    clip_rho: float,
    clip_c: float,
    clip_pg_rho: float,
    clip_range: float,
    reward_clip: float,
    epochs: int,
    minibatches: int,
    normalise_advantage: bool,
    value_coef: float,
    entropy_coef: float,
    final_factor: float,
    max_grad_norm: float,
    obs_norm: str,
    initial_std: float,
) -> Agent:
    """`agent=impala` and `agent=ppo`: two presets of one learner."""
    spec = c.spec
    gaussian = {"name": "gaussian", "initial_std": initial_std}
    head = gaussian if spec.action_kind == "continuous" else {"name": "categorical"}
    description = c.policy_description(obs_norm, head)
    policy = build_policy(description, spec).to(c.device)
    # A value head per task whatever the policy has: values differ between tasks far more than good actions do.
    of_values, features = c.value_description(description), policy.core.out_features
    # Values are zero at first: others would be advantages before there is any reward, and of no reward's size.
    value = build_value(of_values, spec, "per_task", c.value_head, features, gain=0.0).to(c.device)
    _, samples = policy.core.sequences(torch.empty(rollout_length, actors.num_envs)).shape
    if minibatches > samples:
        kind = "sequences (one per slot)" if policy.core.state_size else "samples (rollout_length times slots)"
        raise ValueError(f"{minibatches} minibatches cannot be made of {samples} {kind}.")
    steps: JointStep | SeparateSteps
    if list(policy.torso.parameters()) + list(policy.core.parameters()):
        both = nn.ModuleList([policy, value])
        steps = JointStep(c.task_step(both, optimizer, max_grad_norm, actors.episodes, has_positive=True))
    else:
        steps = SeparateSteps(
            c.task_step(policy, optimizer, max_grad_norm, actors.episodes, has_positive=False),
            c.task_step(value, optimizer, max_grad_norm, actors.episodes, has_positive=True),
        )
    learner = Impala(
        policy,
        value,
        c.scaling_for("per_task", actors.episodes, gamma=gamma),
        steps,
        spec.num_tasks,
        gamma=gamma,
        lambda_=lambda_,
        clip_rho=clip_rho,
        clip_c=clip_c,
        clip_pg_rho=clip_pg_rho,
        clip_range=clip_range,
        reward_clip=reward_clip,
        epochs=epochs,
        minibatches=minibatches,
        normalise_advantage=normalise_advantage,
        value_coef=value_coef,
        entropy_coef=entropy_coef,
        final_factor=final_factor,
    )
    return Agent(learner, actors.on_policy(policy, description, rollout_length), description)


@register("agent", "sac")
def sac(
    c: Components,
    actors: Actors,
    batch_size: int,
    replay_ratio: float,
    replay_capacity: int,
    warmup: int,
    optimizer: dict[str, Any],
    gamma: float,
    tau: float,
    initial_alpha: float,
    target_entropy: float,
    max_grad_norm: float,
    obs_norm: str,
) -> Agent:
    """`agent=sac`."""
    spec = c.spec
    if spec.action_kind != "continuous":
        raise UserError(
            "agent=sac needs continuous actions, but this environment's are discrete: use agent=impala or ppo."
        )
    if {c.torso["name"], c.core["name"]} != {"none"}:
        raise UserError("agent=sac learns from flat observations and without memory: use torso=none and core=none.")
    description = c.policy_description(obs_norm, {"name": "tanh_gaussian"})
    policy = build_policy(description, spec).to(c.device)
    head = description["head"]
    of_values, features = c.value_description(description), policy.core.out_features + spec.action_dim
    critics = Ensemble(build_value(of_values, spec, head, c.value_head, features) for _ in range(2))
    critics = critics.to(c.device)
    temperature = Temperature(spec.num_tasks, initial_alpha).to(c.device)
    goal_entropy = target_entropy * torch.tensor(spec.action_mask, device=c.device).float().sum(1)

    def entropy() -> Tensor:
        return temperature.log_alpha.detach().exp() * goal_entropy.abs()

    value_norm = c.scaling_for(head, actors.episodes, gamma=gamma, entropy=entropy)
    runtime = {"log_alpha": lambda: temperature.log_alpha}
    policy_step = c.task_step(policy, optimizer, max_grad_norm, actors.episodes, has_positive=False, **runtime)
    critic_step = c.task_step(critics, optimizer, max_grad_norm, actors.episodes, has_positive=True, **runtime)
    # Each temperature is one task's own, so that there is nothing to weigh or to aggregate.
    alone = replace(c, weighting={"name": "uniform"}, aggregation={"name": "sum"})
    learner = Sac(
        policy,
        critics,
        copy.deepcopy(critics),
        temperature,
        value_norm,
        policy_step,
        critic_step,
        alone.task_step(temperature, optimizer, float("inf"), actors.episodes, has_positive=False),
        goal_entropy,
        gamma=gamma,
        tau=tau,
    )
    if replay_capacity < max(warmup, actors.num_envs):
        raise ValueError(f"replay_capacity={replay_capacity} is less than the warmup or the number of slots.")
    replay = Replay(spec, replay_capacity, c.device)
    return Agent(learner, actors.off_policy(replay, batch_size, replay_ratio, warmup), description)
