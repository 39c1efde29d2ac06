"""Base of the weightings by success."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.optim.weighting.base import Weighting
from mtrl.types import Metrics


class SuccessWeighting(Weighting):
    """Base of the weightings by each task's success rate in training: a moving average over rows of the log.

    A task without finished episodes counts as unsolved.

    Args:
        silent_tasks: Names of the tasks that report no success.
        step_size: Step size of the moving average.

    Raises:
        ValueError: There are silent tasks, or the step size is outside (0, 1].
    """

    success: Tensor

    def __init__(self, num_tasks: int, silent_tasks: Sequence[str], step_size: float) -> None:
        super().__init__()
        if silent_tasks:
            names = ", ".join(silent_tasks)
            raise ValueError(f"no success is reported by {names}, but this weighting needs it for every task.")
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], not {step_size}.")
        self.step_size = step_size
        self.register_buffer("success", torch.zeros(num_tasks))

    def observe(self, statistics: Metrics) -> None:
        seen = statistics["success_rate"].to(self.success)
        self.success.lerp_(seen.where(seen.isfinite(), self.success), self.step_size)

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        weights = self.weights(self.success)
        return losses * (weights / weights.mean()).to(losses.dtype)

    def weights(self, success: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Weights of the tasks, up to a factor."""
        raise NotImplementedError
