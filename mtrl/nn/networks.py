"""Whole networks: task encoder, trunk and head put together, for a policy and for values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mtrl.nn.diagnostics import some, usage
from mtrl.nn.distributions import Distribution
from mtrl.nn.scaling import ObsNorm
from mtrl.nn.trunks.base import Trunk
from mtrl.nn.value_heads import ValueHead
from mtrl.registry import build
from mtrl.types import EnvSpec, Metrics

AUX_STRIDE = 8
"""`aux` looks at one in this many samples: it computes anew what the forward pass already had."""


class PolicyNetwork(nn.Module):
    """The deployable module: raw observations and task ids to a distribution over actions.

    Args:
        obs_norm: Observation normaliser; learners pass its output to their critics too.
    """

    def __init__(self, obs_norm: ObsNorm, task_encoder: nn.Module, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.obs_norm: ObsNorm = obs_norm
        self.task_encoder, self.head = task_encoder, head
        self.trunk: Trunk = trunk

    def forward(self, obs: Shaped[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Distribution:
        context = self.task_encoder(task)
        return self.head(self.trunk(self.obs_norm(obs), context), context)

    def aux(self, obs: Shaped[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and diagnostics of the trunk (`Trunk.aux`), from some of the samples."""
        return self.trunk.aux(self.obs_norm(obs[..., ::AUX_STRIDE, :]), self.task_encoder(task[..., ::AUX_STRIDE]))

    @torch.no_grad()
    def usage(self, obs: Shaped[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Metrics:
        """How much of the last hidden layer is in use (`mtrl.nn.diagnostics`)."""
        return usage(self.trunk(self.obs_norm(some(obs, 1)), self.task_encoder(some(task, 0))))

    @torch.no_grad()
    def act(self, obs: Tensor, task: Tensor, explore: bool) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities: sampled when exploring, else the mode."""
        distribution = self(obs, task)
        if explore:
            return distribution.sample()
        action = distribution.mode()
        return action, distribution.log_prob(action)


class ValueNetwork(nn.Module):
    """Normalised observations (with the action beside them for a Q-function) and task ids to one value each."""

    def __init__(self, task_encoder: nn.Module, trunk: Trunk, head: nn.Module, value_head: ValueHead) -> None:
        super().__init__()
        self.task_encoder, self.head = task_encoder, head
        self.trunk: Trunk = trunk
        self.value_head: ValueHead = value_head

    def forward(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.value_head(self._raw(features, task))

    def loss(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"], target: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Of each sample, for a target in the units of the output."""
        return self.value_head.loss(self._raw(features, task), target)

    def _raw(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch O"]:
        context = self.task_encoder(task)
        return self.head(self.trunk(features, context), context)

    def aux(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and diagnostics of the trunk (`Trunk.aux`), from some of the samples."""
        return self.trunk.aux(features[..., ::AUX_STRIDE, :], self.task_encoder(task[..., ::AUX_STRIDE]))

    @torch.no_grad()
    def usage(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Metrics:
        """How much of the last hidden layer is in use (`mtrl.nn.diagnostics`)."""
        return usage(self.trunk(some(features, 1), self.task_encoder(some(task, 0))))


class Ensemble(nn.ModuleList):
    """N value networks that all see the same."""

    def __iter__(self) -> Iterator[ValueNetwork]:
        return cast(Iterator[ValueNetwork], super().__iter__())

    def forward(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "N *batch"]:
        """The value of each network."""
        return torch.stack([network(features, task) for network in self])

    def loss(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"], target: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Sum of the networks' losses for one target."""
        return torch.stack([network.loss(features, task, target) for network in self]).sum(0)

    def aux(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Sum of the trunks' losses (`Trunk.aux`), and the diagnostics of the first network."""
        losses, diagnostics = zip(*(network.aux(features, task) for network in self), strict=True)
        return torch.stack(losses).sum(), diagnostics[0]

    def usage(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Metrics:
        """How much of the first network's last hidden layer is in use."""
        return next(iter(self)).usage(features, task)


def _encoder_and_trunk(description: Mapping[str, Any], features: int, spec: EnvSpec) -> tuple[Any, Any]:
    encoder = build("task_encoder", description["task_encoder"], num_tasks=spec.num_tasks, task_names=spec.task_names)
    sizes = {"features": features, "context": encoder.dim, "num_tasks": spec.num_tasks}
    return encoder, build("trunk", description["trunk"], **sizes)


def build_policy(description: Mapping[str, Any], spec: EnvSpec) -> PolicyNetwork:
    """Builds a policy from nodes: obs_norm, task_encoder, trunk, head (a name) and action_head."""
    (obs_dim,) = spec.obs_shape
    encoder, trunk = _encoder_and_trunk(description, obs_dim, spec)
    head = build(
        "action_head", description["action_head"], head=description["head"], features=trunk.out_features, spec=spec
    )
    return PolicyNetwork(build("obs_norm", description["obs_norm"], obs_dim=obs_dim), encoder, trunk, head)


def build_value(
    description: Mapping[str, Any], spec: EnvSpec, head: str, value_head: Mapping[str, Any], with_action: bool
) -> ValueNetwork:
    """Builds a state value or, `with_action`, a Q-function from the same nodes as a policy."""
    features = spec.obs_shape[0] + (spec.action_dim if with_action else 0)
    encoder, trunk = _encoder_and_trunk(description, features, spec)
    value = build("value_head", value_head)
    sizes = {"features": trunk.out_features, "outputs": value.outputs, "num_tasks": spec.num_tasks}
    return ValueNetwork(encoder, trunk, build("head", {"name": head}, **sizes), value)
