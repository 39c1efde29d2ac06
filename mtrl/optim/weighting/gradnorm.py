"""GradNorm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.optim.weighting.base import LearnedWeighting, softmax_weights
from mtrl.registry import register
from mtrl.types import Metrics


@register("weighting", "gradnorm")
class GradNorm(LearnedWeighting):
    """Learns weights that make the gradients of all tasks about equally long, longer for tasks that learn more slowly.

    Chen et al., "GradNorm" (2018), algorithm 1: the weights descend on the sum of |G_k - mean(G) r_k^alpha|, where G_k
    is the norm of task k's weighted gradient and r_k the ratio of its loss to its first, divided by the mean ratio.

    Use it where the gradients of some tasks are much longer than those of others.

    Differences from the paper:
        1. The gradients are those of all shared parameters; in the paper those of the last shared layer.
        2. The weights are K softmax(logits), and the learned logits descend on the sum divided by mean(G); the paper
           learns weights and divides them by their mean.

    Args:
        alpha: 0: all gradients equally long; the higher, the longer those of tasks that learn slowly.
        lr: Learning rate of the weights.
    """

    requires_positive = True
    requires_task_norm = True
    first: Tensor

    def __init__(self, num_tasks: int, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(num_tasks, lr)
        not_negative(alpha=alpha)
        self.alpha = alpha
        self.register_buffer("first", torch.full((num_tasks,), torch.nan))

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses * softmax_weights(self.logits, losses > 0)

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        norm = metrics["task_norm"].to(losses.dtype)
        present = (losses > 0) & norm.isfinite()
        self.first.copy_(self.first.where(self.first > 0, losses))
        share = (losses / self.first).where(present, torch.nan)
        relative = norm / norm.nanmean()
        target = (share / share.nanmean()) ** self.alpha
        # d|w_k n_k - target| / d logit_k: the weight w_k = exp(logit_k) / ... grows with it by w_k, but for the mean.
        gradient = ((relative - target).sign() * relative).where(present, 0)
        weights = softmax_weights(self.logits, present).where(present, 0)
        self.descend(gradient - weights * gradient.sum() / present.sum().clamp(min=1))
