"""The parts of learners, built from the configuration: networks, value scaling and optimisers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import mtrl.data
import mtrl.nn
import mtrl.optim  # noqa: F401  # these three register components
from mtrl.agents.aux_loss import AuxLoss
from mtrl.checks import positive
from mtrl.data.experience import EpisodeStatistics
from mtrl.nn.networks import PolicyNetwork, ValueNetwork, build_policy, build_value
from mtrl.nn.value_norm import ValueNorm
from mtrl.optim.aggregation import JacobianAggregation
from mtrl.optim.multi_task import JointStep, MultiTaskOptimizer, SeparateSteps
from mtrl.registry import build
from mtrl.types import EnvSpec, Ranks, UserError

Node = Mapping[str, Any]

IMAGE_NORMS = {"none": "scaled_images", "running": "centred_images"}
"""The normalisation that an agent's `obs_norm` stands for if observations are images."""


@dataclass(frozen=True)
class Components:
    """Builds the parts of a learner from config nodes, which are the same for every agent."""

    network: Node
    torso: Node
    core: Node
    task_encoder: Node
    aggregation: Node
    weighting: Node
    value_norm: Node
    value_head: Node
    spec: EnvSpec
    episodes: EpisodeStatistics
    """Notifies weightings and value scalings of the results of episodes."""
    device: str
    batch_shape: tuple[int, ...] | None = None
    """See `DataSource`."""
    teacher: Any = None
    """See `DataSource`."""
    aux_losses: Mapping[str, AuxLoss] = field(default_factory=dict)
    """Losses that are added to the learner's policy loss, by name."""
    column: Node = field(default_factory=lambda: {"name": "none"})
    """What a policy adds to the outputs of its head: the choice of the learner."""
    compile: bool = False
    """Whether losses will be compiled."""

    @property
    def ranks(self) -> Ranks:
        """The processes that learn as one."""
        return self.episodes.ranks

    def policy(self, obs_norm: str = "none", action_head: Node | None = None) -> PolicyNetwork:
        """Builds the policy. Its `description` is the argument of `build_policy`.

        Args:
            obs_norm: Normalisation of flat observations; for images, see `IMAGE_NORMS`.
            action_head: By default a Gaussian, or a categorical distribution for discrete actions.
        """
        if action_head is None:
            action_head = {"name": "gaussian" if self.spec.action_kind == "continuous" else "categorical"}
        flat = len(self.spec.obs_shape) == 1
        description = {
            "obs_norm": {"name": obs_norm if flat else IMAGE_NORMS.get(obs_norm, obs_norm)},
            "torso": dict(self.torso),
            "core": dict(self.core),
            "task_encoder": dict(self.task_encoder),
            "trunk": dict(self.network["trunk"]),
            "head": self.network["head"],
            "action_head": dict(action_head),
            "column": dict(self.column),
        }
        json.dumps(description, allow_nan=False)  # raises for infinite settings now, not when the policy is saved
        policy = build_policy(description, self.spec).to(self.device)
        policy.obs_norm.ranks = self.ranks
        return policy

    def value(self, policy: PolicyNetwork, head: str, action: bool = False, gain: float = 1.0) -> ValueNetwork:
        """Builds a value network on the features of a policy; `network.value` overrides options of the trunk.

        Args:
            head: Registered name of the head.
            action: Whether the input includes an action besides the features (a Q-function).
            gain: Gain of the head's initial weights.
        """
        trunk = policy.description["trunk"] | (self.network.get("value") or {})
        features = policy.core.out_features + (self.spec.action_dim if action else 0)
        description = {**policy.description, "trunk": trunk}
        return build_value(description, self.spec, head, self.value_head, features, gain).to(self.device)

    def value_scaling(self, head: str, gamma: float, **runtime: Any) -> ValueNorm:
        """Builds the value scaling, which observes every episode.

        Args:
            head: Registered name of the value networks' head.
            gamma: Discount of the values.
            runtime: Further arguments that its constructor may request.

        Raises:
            UserError: The scaling rescales heads, and these are not per-task heads of scalar values.
        """
        runtime |= {"num_tasks": self.spec.num_tasks, "gamma": gamma}
        norm: ValueNorm = build("value_norm", self.value_norm, **runtime).to(self.device)
        norm.ranks = norm.rewards.ranks = self.ranks
        self.episodes.discount = norm.discount
        self.episodes.episode_listeners.append(norm.observe)
        name, value_head = self.value_norm["name"], self.value_head["name"]
        if norm.requires_per_task_head and head != "per_task":
            raise UserError(f"value_norm={name} needs network.head=per_task, not {head}.")
        if norm.requires_per_task_head and value_head != "scalar":
            raise UserError(f"value_norm={name} rescales values, not logits: use value_norm=none with {value_head}.")
        return norm

    def optimizer(
        self, module: nn.Module, optimizer: Node, max_grad_norm: float, has_positive: bool, **runtime: Any
    ) -> MultiTaskOptimizer:
        """Builds the optimiser of a module's parameters. Its weighting observes the statistics of episodes.

        Without positive losses, a weighting that requires them is replaced by uniform weights.

        Args:
            has_positive: Whether some of the losses are never negative.
            runtime: Further arguments that the weighting's constructor may request.

        Raises:
            UserError: The aggregation or the weighting needs per-task gradients, which compiled losses do not provide.
        """
        positive(max_grad_norm=max_grad_norm)
        num_tasks = self.spec.num_tasks
        runtime |= {"num_tasks": num_tasks, "silent_tasks": self.spec.silent_tasks}
        weighting = build("weighting", self.weighting, **runtime).to(self.device)
        if weighting.requires_positive and not has_positive:
            weighting = build("weighting", {"name": "uniform"}, num_tasks=num_tasks)
        self.episodes.listeners.append(weighting.observe)
        aggregation = build("aggregation", self.aggregation, num_tasks=num_tasks).to(self.device)
        aggregation.ranks = self.ranks
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
        return MultiTaskOptimizer(
            parameters,
            build("optimizer", optimizer, parameters=parameters),
            weighting,
            aggregation,
            max_grad_norm,
            has_positive,
        )

    def actor_critic_steps(
        self, policy: PolicyNetwork, value: ValueNetwork, optimizer: Node, max_grad_norm: float
    ) -> JointStep | SeparateSteps:
        """Builds the optimisers of a policy and a value network: one, if they share a torso or a core with weights."""
        if list(policy.torso.parameters()) + list(policy.core.parameters()):
            both = nn.ModuleList([policy, value])
            return JointStep(self.optimizer(both, optimizer, max_grad_norm, has_positive=True))
        return SeparateSteps(
            self.optimizer(policy, optimizer, max_grad_norm, has_positive=False),
            self.optimizer(value, optimizer, max_grad_norm, has_positive=True),
        )
