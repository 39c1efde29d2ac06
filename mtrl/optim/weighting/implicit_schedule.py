"""Jean's implicit schedule."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.optim.weighting.success import SuccessWeighting
from mtrl.registry import register


@register("weighting", "implicit_schedule")
class ImplicitSchedule(SuccessWeighting):
    """Scales a task's gradients up if its score is below the mean score, and down if it is above.

    Jean et al., "Adaptive Scheduling for Multi-Task Learning" (2019), implicit schedules: the weight of a task is
    1 + sign(mean - s) min(gamma, max(s)^alpha |mean - s|^beta), with scores s relative to targets.

    Use it for the same purpose as `focal`, with weights that stay near 1.

    Differences from the paper:
        1. The score is the success rate in training, the target 1; the paper's is the translation quality on
           validation data, relative to that of a single-task model.
        2. The weights are divided by their mean.
        3. The values of alpha, beta and gamma are ours.

    Args:
        alpha: Exponent of the best score.
        beta: Exponent of the distance from the mean.
        gamma: Largest change of a weight.
    """

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.5,
        step_size: float = 0.3,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, step_size)
        not_negative(alpha=alpha, beta=beta)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must be in [0, 1), not {gamma}.")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def weights(self, success: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        behind = success.mean() - success
        size = success.max() ** self.alpha * behind.abs() ** self.beta
        return 1 + behind.sign() * size.clamp(max=self.gamma)
