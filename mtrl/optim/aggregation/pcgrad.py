"""PCGrad: gradient surgery."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.registry import register


@register("aggregation", "pcgrad")
class PCGrad(GramianAggregation):
    """Projects each task's gradient onto the normal plane of every gradient that it conflicts with.

    Yu et al., "Gradient Surgery for Multi-Task Learning" (2020), algorithm 1: g_i is compared with the (unprojected)
    gradients of the other tasks one after another, in a random order for each i. A projected gradient is represented by
    its K coefficients C_i over the original ones, so that projections only need inner products from the Gramian. The
    t-th steps of all tasks are computed at once.

    Use it where gradients conflict often (`grad/<network>_conflict_rate`, which `measured_mean` logs, too).

    Differences from the paper:
        1. The projected gradients are averaged, not summed.
    """

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        task = torch.arange(len(gramian), device=gramian.device)
        coefficients = torch.eye(len(gramian), dtype=gramian.dtype, device=gramian.device)
        squared_norm = gramian.diagonal()
        for other in random_orders(gramian):
            inner = (coefficients * gramian[other]).sum(1)  # <g_i', g_j>
            conflicts = inner < 0  # never with the zero gradient of an absent task
            step = torch.where(conflicts, inner / squared_norm[other].where(conflicts, 1), 0)
            coefficients[task, other] -= step
        return coefficients.mean(0)


def random_orders(gramian: Float[Tensor, "K K"]) -> Int[Tensor, "K-1 K"]:
    """For each task (column) the other tasks in random order."""
    key = torch.rand_like(gramian).fill_diagonal_(2)  # the task itself comes last and is left out
    return key.argsort(dim=0)[:-1]
