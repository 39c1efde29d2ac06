"""Columns: what a policy adds to the outputs of its head. Nothing, or those of a policy that does not know the task.

Two columns are those of Distral (Teh et al., "Distral: Robust Multitask Reinforcement Learning", 2017, section 2.3).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl.checks import not_negative, positive
from mtrl.nn.distributions import Categorical, Distribution, Gaussian
from mtrl.nn.layers import mlp
from mtrl.registry import register
from mtrl.types import EnvSpec

MIN_LOG_STD = math.log(1e-3)
"""Of a shared Gaussian."""


class SharedPolicy(nn.Module):
    """pi_0: a multi-layer perceptron from features to a distribution. Of the task it knows the action mask only.

    Args:
        features: F, the size of its input.
        spec: Says which kind of distribution, and over what.
        width: Of its hidden layers.
        depth: Their number.
    """

    action_mask: Tensor

    def __init__(self, features: int, spec: EnvSpec, width: int, depth: int) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        self.network = mlp([features, *[width] * depth, spec.action_dim], "tanh", "orthogonal")
        with torch.no_grad():
            for parameter in self.network[-1].parameters():
                parameter.mul_(0.01)  # as in the heads of task policies: nearly the same in all states
        self.discrete = spec.action_kind == "discrete"
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(spec.action_dim))
        self.register_buffer("action_mask", torch.tensor(spec.action_mask), persistent=False)

    def forward(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Distribution:
        outputs, mask = self.network(features), self.action_mask[task]
        if self.discrete:
            return Categorical(outputs, mask)
        log_std = self.log_std.clamp(min=MIN_LOG_STD)
        return Gaussian(outputs, log_std.expand_as(outputs), mask)

    @torch.no_grad()
    def set_std(self, std: float) -> None:
        """Sets the standard deviation of a Gaussian; a categorical distribution has none."""
        if not self.discrete:
            self.log_std.copy_(torch.full_like(self.log_std, std).log())


@register("column", "none")
class NoColumn(nn.Module):
    """Adds nothing: the policy is that of its head."""

    def forward(
        self, task_policy: Distribution, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> Distribution:
        """The policy of each sample.

        Args:
            task_policy: What the head says.
            features: Of the policy's torso and core, which do not know the task.
            task: Ids.
        """
        return task_policy


@register("column", "shared")
class SharedColumn(nn.Module):
    """Adds `alpha` times the outputs of a shared policy: its logits, or the means of its Gaussian.

    Args:
        alpha: Factor of the shared policy's outputs.
        width: Of the hidden layers of the shared policy.
        depth: Their number.
    """

    def __init__(self, features: int, spec: EnvSpec, alpha: float, width: int, depth: int) -> None:
        super().__init__()
        not_negative(alpha=alpha)
        self.alpha = alpha
        self.shared_policy = SharedPolicy(features, spec, width, depth)

    def forward(
        self, task_policy: Distribution, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]
    ) -> Distribution:
        """See `NoColumn`."""
        return task_policy.shifted(self.alpha * self.shared_policy.network(features))
