"""Loss weighting: (K,) losses to (K,) weighted losses."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.optim.optimizers import restore
from mtrl.registry import register
from mtrl.types import Metrics


class Weighting(nn.Module):
    """Base of the weightings."""

    requires_positive = False
    """Whether it is defined for positive losses only."""
    requires_task_norm = False
    """Whether `after_step` needs the `task_norm` of the gradients of the weighted losses, which costs another pass."""

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The losses multiplied by their weights, which have mean 1 and no gradient."""
        raise NotImplementedError

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        """Called after each optimiser step with the unweighted losses, detached, and the aggregation's diagnostics.

        The loss of a task without samples is 0. With `requires_task_norm`, `metrics["task_norm"]` holds the norms of
        the gradients of only the weighted losses, NaN for a task without one.
        """

    def observe(self, statistics: Metrics) -> None:
        """Receives `Experience.statistics()`: (K,) results of recent episodes, NaN where a task has none."""


@register("weighting", "uniform")
class Uniform(Weighting):
    """Every task weighs 1.

    Use it first, with a `value_norm` that makes the losses comparable.
    """

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses


class LearnedWeighting(Weighting):
    """Base of the weightings with a learned parameter per task. Their optimiser is part of their state."""

    def __init__(self, num_tasks: int, lr: float) -> None:
        super().__init__()
        positive(lr=lr)
        self.logits = nn.Parameter(torch.zeros(num_tasks))
        self.optimizer = torch.optim.Adam([self.logits], lr=lr)

    def descend(self, gradient: Float[Tensor, " K"]) -> None:
        """Updates the learned parameters."""
        self.logits.grad = gradient.to(self.logits.dtype)
        self.optimizer.step()

    def get_extra_state(self) -> dict[str, Any]:
        """For `state_dict`."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """For `load_state_dict`."""
        restore(self.optimizer, state)


def softmax_weights(log_weights: Float[Tensor, " K"], present: Bool[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Weights with mean 1 over the present tasks, from their logarithms; the absent ones get 1."""
    weights = log_weights.detach().masked_fill(~present, -torch.inf).softmax(0) * present.sum()
    return weights.where(present, 1.0)
