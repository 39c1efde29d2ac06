"""Dynamic weight average."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import positive
from mtrl.optim.weighting.base import Weighting, softmax_weights
from mtrl.registry import register
from mtrl.types import Metrics


@register("weighting", "dwa")
class DWA(Weighting):
    """Gives more weight to tasks whose loss falls more slowly: K softmax(L(t - 1) / L(t - 2) / temperature).

    Liu et al., "End-to-End Multi-Task Learning with Attention" (2019).

    Use it where tasks learn at different speeds and the slow ones should catch up.

    Differences from the paper:
        1. L(t) is the mean loss of `window` updates; in the paper that of an epoch.
        2. The ratio is at most 100.

    Args:
        temperature: The higher, the more alike the weights.
        window: Updates whose losses are averaged.
    """

    requires_positive = True
    previous: Tensor
    ratio: Tensor
    total: Tensor
    count: Tensor
    updates: Tensor

    def __init__(self, num_tasks: int, temperature: float = 2.0, window: int = 1000) -> None:
        super().__init__()
        positive(temperature=temperature, window=window)
        self.temperature, self.window = temperature, window
        self.register_buffer("previous", torch.full((num_tasks,), torch.nan))
        self.register_buffer("ratio", torch.ones(num_tasks))
        self.register_buffer("total", torch.zeros(num_tasks))
        self.register_buffer("count", torch.zeros(num_tasks))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses * softmax_weights(self.ratio / self.temperature, losses > 0)

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        self.total += losses
        self.count += losses > 0
        self.updates += 1
        if int(self.updates) == self.window:
            mean = self.total / self.count  # NaN for a task that was always absent
            ratio = (mean / self.previous).clamp(max=100)
            self.ratio.copy_(ratio.where(ratio.isfinite(), 1))
            self.previous.copy_(mean.where(mean.isfinite(), self.previous))
            for tensor in (self.total, self.count, self.updates):
                tensor.zero_()
