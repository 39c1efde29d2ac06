"""Complete networks of a torso, core, task encoder, trunk and head: policies and value functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mtrl.nn.cores import Core
from mtrl.nn.diagnostics import some, usage
from mtrl.nn.distributions import Distribution
from mtrl.nn.heads import ActionHead
from mtrl.nn.obs_norm import ObsNorm
from mtrl.nn.task_encoders import TaskEncoder
from mtrl.nn.torsos import Torso
from mtrl.nn.trunks.base import Trunk
from mtrl.nn.value_heads import ValueHead
from mtrl.registry import build
from mtrl.types import EnvSpec, Metrics, TaskAxes, TaskContext, UserError

AUX_STRIDE = 8
"""`aux` uses one in this many samples, since it repeats part of the forward pass."""


class _ConditionedTrunk(nn.Module):
    """Base of all networks: a trunk conditioned on the task."""

    def __init__(self, task_encoder: TaskEncoder, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.task_encoder: TaskEncoder = task_encoder
        self.trunk: Trunk = trunk
        self.head = head

    @property
    def task_axes(self) -> TaskAxes:
        """With a one-hot embedding, the columns of the layers that read it."""
        if not self.task_encoder.one_hot:
            return {}
        layers = self.trunk.named_modules(prefix="trunk")
        reading = [name for name, x in layers if isinstance(x, nn.Linear) and "task_input" in name.split(".")]
        return {f"{name}.weight": (1,) for name in reading}

    def _trunk_inputs(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch G"], TaskContext]:
        """Features and context for the trunk. The first features may be a history, which the encoder reads."""
        size = self.task_encoder.history_size
        return features[..., size:], self.task_encoder(task, features[..., :size])

    def _hidden(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch H"], TaskContext]:
        """The last hidden layer and the context, which the head reads."""
        trunk_features, context = self._trunk_inputs(features, task)
        return self.trunk(trunk_features, context), context

    def _head_output(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Any:
        return self.head(*self._hidden(features, task))

    def aux(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Loss and diagnostics of the trunk (`Trunk.aux`), from some of the samples."""
        return self.trunk.aux(*self._trunk_inputs(features[..., ::AUX_STRIDE, :], task[..., ::AUX_STRIDE]))

    @torch.no_grad()
    def usage(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Metrics:
        """How much of the last hidden layer is in use (`mtrl.nn.diagnostics`)."""
        return usage(self.trunk(*self._trunk_inputs(some(features, 1), some(task, 0))))


class PolicyNetwork(_ConditionedTrunk):
    """The deployable module: raw observations and task ids to a distribution over actions.

    Torso and core do not depend on the task. Learners also pass their features to the value networks, and a column
    (`mtrl.nn.columns`) may add to what the head says.
    """

    def __init__(
        self,
        obs_norm: ObsNorm,
        torso: Torso,
        core: Core,
        task_encoder: TaskEncoder,
        trunk: Trunk,
        head: nn.Module,
        column: nn.Module,
    ) -> None:
        super().__init__(task_encoder, trunk, head)
        self.column = column
        self.obs_norm: ObsNorm = obs_norm
        self.torso: Torso = torso
        self.core: Core = core
        self.description: dict[str, Any] = {}
        """The arguments of `build_policy`."""

    @property
    def distribution_class(self) -> type[Distribution]:
        """Class of the distributions over actions."""
        return cast(ActionHead, self.head).distribution_class

    @property
    def task_readers(self) -> tuple[str, ...]:
        """The parts that make the mode of the distribution depend on the task's id, apart from the action mask."""
        readers = {
            "obs_norm": self.obs_norm.reads_task,
            "task_encoder": self.trunk.reads_embedding and self.task_encoder.reads_task,
            "trunk": self.trunk.reads_task,
            "head": getattr(self.head, "reads_task", True),
        }
        return tuple(part for part, reads in readers.items() if reads)

    def torso_features(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch F"]:
        """Features of raw observations (*batch, *obs), each by itself."""
        return self.torso(self.obs_norm(obs, task), obs)

    def unroll(
        self,
        obs: Shaped[Tensor, "L N *obs"],
        task: Int[Tensor, "L N"],
        is_first: Bool[Tensor, "L N"],
        state: Float[Tensor, "N S"],
    ) -> tuple[Float[Tensor, "L N F"], Float[Tensor, "L N S"]]:
        """Features of N sequences of raw observations, and the core's state after each step: see `Core.forward`."""
        return self.core(self.torso_features(obs, task), is_first, state)

    def distribution(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Distribution:
        """Like `forward`, from the features of `unroll`."""
        return self.distribution_and_hidden(features, task)[0]

    def distribution_and_hidden(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> tuple[Distribution, Float[Tensor, "*batch H"]]:
        """`distribution`, and the last hidden layer from which it is made."""
        hidden, context = self._hidden(features, task)
        return self.column(self.head(hidden, context), features, task), hidden

    def forward(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> Distribution:
        """The distribution for each observation (*batch, *obs), as if an episode began with it."""
        N = task.numel()
        alone = obs.reshape(1, N, *obs.shape[task.ndim :])
        is_first = task.new_ones(1, N, dtype=torch.bool)
        features, _ = self.unroll(alone, task.reshape(1, N), is_first, self.initial_state(N))
        return self.distribution(features.reshape(*task.shape, -1), task)

    def initial_state(self, num: int) -> Float[Tensor, "{num} S"]:
        """State at the beginning of episodes: zeros. S is 0 without memory."""
        parameter = next(self.head.parameters())
        return parameter.new_zeros(num, self.core.state_size)

    @torch.no_grad()
    def act(
        self, obs: Shaped[Tensor, "B *obs"], task: Int[Tensor, " B"], state: Float[Tensor, "B S"], explore: bool
    ) -> tuple[Tensor, Float[Tensor, " B"], Float[Tensor, "B S"]]:
        """Actions (sampled if `explore`, else the mode), their log-probabilities, and the state for the next call."""
        features, states = self.unroll(obs[None], task[None], torch.zeros_like(task, dtype=torch.bool)[None], state)
        distribution = self.distribution(features[0], task)
        if explore:
            return *distribution.sample(), states[0]
        action = distribution.mode()
        return action, distribution.log_prob(action), states[0]


class ValueNetwork(_ConditionedTrunk):
    """A policy's features (concatenated with the action for a Q-function) and task ids to values."""

    def __init__(self, task_encoder: TaskEncoder, trunk: Trunk, head: nn.Module, value_head: ValueHead) -> None:
        super().__init__(task_encoder, trunk, head)
        self.value_head: ValueHead = value_head

    def forward(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.value_head(self._head_output(features, task))

    def loss(
        self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"], target: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """The loss of each sample, for a target in the units of the output."""
        return self.value_head.loss(self._head_output(features, task), target)


class Ensemble(nn.ModuleList):
    """N value networks with the same inputs."""

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
    known = {"num_tasks": spec.num_tasks, "task_names": spec.task_names, "history": spec.history}
    encoder = build("task_encoder", description["task_encoder"], **known)
    sizes = {"features": features - encoder.history_size, "context": encoder.dim}
    return encoder, build("trunk", description["trunk"], **sizes, **known)


def build_policy(description: Mapping[str, Any], spec: EnvSpec) -> PolicyNetwork:
    """Builds a policy from nodes: obs_norm, torso, core, task_encoder, trunk, head (a name), action_head and column."""
    torso = build("torso", description["torso"], obs_shape=spec.obs_shape, history=spec.history)
    core = build("core", description["core"], features=torso.out_features)
    encoder, trunk = _encoder_and_trunk(description, core.out_features, spec)
    if encoder.history_size and not (torso.begins_with_obs and description["core"]["name"] == "none"):
        name = description["task_encoder"]["name"]
        raise UserError(f"task_encoder={name} reads observations: use core=none, and a torso that passes them on.")
    head = build(
        "action_head", description["action_head"], head=description["head"], features=trunk.out_features, spec=spec
    )
    column = build("column", description["column"], features=core.out_features, spec=spec)
    obs_norm = build("obs_norm", description["obs_norm"], obs_shape=spec.obs_shape, num_tasks=spec.num_tasks)
    policy = PolicyNetwork(obs_norm, torso, core, encoder, trunk, head, column)
    policy.description = dict(description)
    return policy


def build_value(
    description: Mapping[str, Any],
    spec: EnvSpec,
    head: str,
    value_head: Mapping[str, Any],
    features: int,
    gain: float = 1.0,
) -> ValueNetwork:
    """Builds a value network from the same nodes as a policy. `features` is its input size, `gain` that of its head."""
    encoder, trunk = _encoder_and_trunk(description, features, spec)
    value = build("value_head", value_head)
    sizes = {"features": trunk.out_features, "outputs": value.outputs, "num_tasks": spec.num_tasks, "gain": gain}
    return ValueNetwork(encoder, trunk, build("head", {"name": head}, **sizes), value)
