"""A-GEM's projection, applied to every task in turn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.registry import register


@register("aggregation", "agem")
class AGEM(GramianAggregation):
    """Projects each task's gradient so that it does not conflict with the mean gradient of the others.

    Chaudhry et al., "Efficient Lifelong Learning with A-GEM" (2019), equation 11. There the current task's gradient is
    projected and the reference comes from a memory of past tasks; here each task's gradient is projected with the other
    tasks as reference, and the projected gradients are averaged.

    Use it as a simpler `pcgrad`: one projection for each task, in no random order.
    """

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        num_tasks = len(gramian)
        identity = torch.eye(num_tasks, dtype=gramian.dtype, device=gramian.device)
        reference = (1 - identity) / max(num_tasks - 1, 1)  # (K, K): coefficients over the gradients
        inner = (reference * gramian).sum(1)
        squared_norm = ((reference @ gramian) * reference).sum(1)
        # The other gradients may cancel out; below the rounding of float32 gradients the norm is noise.
        floor = torch.finfo(torch.float32).eps * (reference.square() @ gramian.diagonal())
        squared_norm = torch.maximum(squared_norm, floor)
        step = (inner / squared_norm).where(inner < 0, 0)
        return (identity - step[:, None] * reference).mean(0)
