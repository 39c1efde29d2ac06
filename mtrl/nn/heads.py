"""Last layers: shared or one per task, and the action heads that turn their outputs into a distribution."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.nn.distributions import Categorical, Distribution, Gaussian, TanhGaussian
from mtrl.nn.layers import mark_per_task, select
from mtrl.registry import build, register
from mtrl.types import EnvSpec, TaskAxes, TaskContext


@register("head", "shared")
class SharedHead(nn.Module):
    """One linear layer for all tasks. `gain` scales the orthogonal initial weights; biases start at zero.

    Use it where the trunk already tells tasks apart, or where policies should act in tasks that are new to them.
    """

    reads_task = False

    def __init__(self, features: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)
        nn.init.orthogonal_(self.linear.weight, gain)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "*batch H"], context: TaskContext) -> Float[Tensor, "*batch O"]:
        return self.linear(features)


@register("head", "per_task")
class PerTaskHead(nn.Module):
    """One linear layer for each task: weight (K, O, H), bias (K, O).

    All K layers are applied to every sample and the one of its task is selected. That costs K times the FLOPs of one
    head, little compared with a trunk, and keeps shapes static.

    Use it where tasks need outputs of their own, as many published multi-task policies have them.
    """

    reads_task = True
    task_axes: ClassVar[TaskAxes] = {"weight": (0,), "bias": (0,)}

    def __init__(self, features: int, outputs: int, num_tasks: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, outputs, features))
        self.bias = nn.Parameter(torch.zeros(num_tasks, outputs))
        for weight in self.weight:
            nn.init.orthogonal_(weight, gain)
        mark_per_task(self.weight, self.bias)

    def forward(self, features: Float[Tensor, "*batch H"], context: TaskContext) -> Float[Tensor, "*batch O"]:
        every = functional.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
        return select(every.unflatten(-1, self.bias.shape), context.task)


class ActionHead(nn.Module):
    """Turns features into a distribution over actions. Components that a task does not have are masked."""

    distribution_class: ClassVar[type[Distribution]]
    """Class of the outputs."""
    action_mask: Tensor

    def __init__(self, head: str, features: int, outputs: int, spec: EnvSpec, gain: float) -> None:
        super().__init__()
        self.head = build(
            "head", {"name": head}, features=features, outputs=outputs, num_tasks=spec.num_tasks, gain=gain
        )
        self.register_buffer("action_mask", torch.tensor(spec.action_mask), persistent=False)

    @property
    def reads_task(self) -> bool:
        """Whether the mode depends on the task's id, apart from the mask. True for a head that does not declare it."""
        return getattr(self.head, "reads_task", True)


@register("action_head", "gaussian")
class GaussianHead(ActionHead):
    """Gaussian whose standard deviation depends only on the task: a parameter `log_std` (K, A)."""

    distribution_class = Gaussian
    task_axes: ClassVar[TaskAxes] = {"log_std": (0,)}

    def __init__(
        self, head: str, features: int, spec: EnvSpec, initial_std: float = 1.0, min_std: float = 1e-3
    ) -> None:
        super().__init__(head, features, spec.action_dim, spec, gain=0.01)
        if not 0 < min_std < initial_std:
            raise ValueError(f"0 < min_std < initial_std is needed, not {min_std} and {initial_std}.")
        self.min_log_std = float(torch.tensor(min_std, device="cpu").log())
        self.log_std = nn.Parameter(torch.full((spec.num_tasks, spec.action_dim), initial_std).log())
        mark_per_task(self.log_std)

    @torch.no_grad()
    def set_std(self, std: float) -> None:
        """Sets the standard deviation in all tasks."""
        self.log_std.copy_(torch.full_like(self.log_std, std).log())

    def forward(self, features: Float[Tensor, "*batch H"], context: TaskContext) -> Distribution:
        log_std = self.log_std[context.task].clamp(min=self.min_log_std)
        return Gaussian(self.head(features, context), log_std, self.action_mask[context.task])


@register("action_head", "tanh_gaussian")
class TanhGaussianHead(ActionHead):
    """Gaussian squashed by tanh, mean and standard deviation from the features (SAC, Haarnoja et al. 2018)."""

    distribution_class = TanhGaussian

    def __init__(
        self, head: str, features: int, spec: EnvSpec, log_std_min: float = -20.0, log_std_max: float = 2.0
    ) -> None:
        super().__init__(head, features, 2 * spec.action_dim, spec, gain=0.01)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max

    def forward(self, features: Float[Tensor, "*batch H"], context: TaskContext) -> Distribution:
        mean, log_std = self.head(features, context).chunk(2, dim=-1)
        log_std = log_std.clamp(self.log_std_min, self.log_std_max)
        return TanhGaussian(mean, log_std, self.action_mask[context.task])


@register("action_head", "categorical")
class CategoricalHead(ActionHead):
    """Softmax over the discrete actions that the task has."""

    distribution_class = Categorical

    def __init__(self, head: str, features: int, spec: EnvSpec) -> None:
        super().__init__(head, features, spec.action_dim, spec, gain=0.01)

    def forward(self, features: Float[Tensor, "*batch H"], context: TaskContext) -> Distribution:
        return Categorical(self.head(features, context), self.action_mask[context.task])
