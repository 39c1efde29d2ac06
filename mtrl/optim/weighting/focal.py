"""Dynamic task prioritisation."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.optim.weighting.success import SuccessWeighting
from mtrl.registry import register


@register("weighting", "focal")
class Focal(SuccessWeighting):
    """Weights a task by -(1 - p)^gamma log p, p its success rate: tasks that mostly fail get the most weight.

    Guo et al., "Dynamic Task Prioritization for Multitask Learning" (2018), with one level, that of tasks.

    Use it where tasks that succeed should make room for those that fail.

    Differences from the paper:
        1. p is clipped to [0.01, 0.99], so that all weights are positive and finite.
        2. The weights are divided by their mean.

    Args:
        gamma: The higher, the less weight for tasks that succeed.
    """

    def __init__(self, num_tasks: int, silent_tasks: Sequence[str], gamma: float = 1.0, step_size: float = 0.3) -> None:
        super().__init__(num_tasks, silent_tasks, step_size)
        not_negative(gamma=gamma)
        self.gamma = gamma

    def weights(self, success: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        p = success.clamp(0.01, 0.99)
        return -((1 - p) ** self.gamma) * p.log()
