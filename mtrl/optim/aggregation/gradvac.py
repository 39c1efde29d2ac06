"""GradVac: gradient vaccine."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.optim.aggregation.pcgrad import random_orders
from mtrl.registry import register


@register("aggregation", "gradvac")
class GradVac(GramianAggregation):
    """Turns each task's gradient towards those with which its cosine is below its average.

    Wang et al., "Gradient Vaccine" (2021), algorithm 1, with one target per pair for the whole network.
    The targets are moving averages of the cosines, with step size `beta`; with targets of zero it is PCGrad.

    Use it where tasks are related and yet learn past each other: it also changes pairs that do not conflict.

    Differences from the paper:
        1. The changed gradients are averaged, not summed.
        2. The sine of the target has a floor of 1e-3: a target cosine of 1 cannot be reached.

    Args:
        beta: Step size of the average cosines.
    """

    target: Tensor

    def __init__(self, num_tasks: int, beta: float = 0.01) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], not {beta}.")
        self.beta = beta
        self.register_buffer("target", torch.zeros(num_tasks, num_tasks, dtype=torch.float64))

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        task = torch.arange(len(gramian), device=gramian.device)
        coefficients = torch.eye(len(gramian), dtype=gramian.dtype, device=gramian.device)
        original_norm = gramian.diagonal().sqrt()
        for other in random_orders(gramian):
            norm = ((coefficients @ gramian) * coefficients).sum(1).clamp(min=0).sqrt()  # |g_i'|
            other_norm = original_norm[other]
            product = norm * other_norm
            present = product > 0
            inner = (coefficients * gramian[other]).sum(1)
            cosine = (inner / product.where(present, 1)).clamp(-1, 1)
            target = self.target[task, other]
            sine, target_sine = ((1 - c.square()).sqrt() for c in (cosine, target))
            target_sine = target_sine.clamp(min=1e-3)
            step = norm * (target * sine - cosine * target_sine) / (other_norm.where(present, 1) * target_sine)
            coefficients[task, other] += step.where(present & (cosine < target), 0)
            self.target[task, other] = torch.lerp(target, cosine, self.beta * present.double())
        return coefficients.mean(0)
