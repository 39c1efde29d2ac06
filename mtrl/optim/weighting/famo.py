"""FAMO: fast adaptive multitask optimisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.optim.weighting.base import LearnedWeighting, softmax_weights
from mtrl.registry import register
from mtrl.types import Metrics


@register("weighting", "famo")
class FAMO(LearnedWeighting):
    """Decreases the logarithms of all losses at one rate, without per-task gradients.

    Liu et al., "FAMO" (2023), algorithm 1: the direction is that of sum_k z_k log(loss_k), z = softmax(logits), and the
    logits follow the decrease of the logarithms, with decay `gamma`; Adam as in the authors' code.

    Use it where all tasks should improve alike and per-task gradients, as of `mgda`, cost too much.

    Differences from the paper:
        1. The decrease is from one update's batch to the next one's, not on the same batch again, which would need
           another forward pass.
        2. The lower bound of the losses is zero, and their weights are divided by their mean.

    Args:
        lr: Learning rate of the logits.
        gamma: Their decay.
    """

    requires_positive = True
    previous: Tensor

    def __init__(self, num_tasks: int, lr: float = 0.025, gamma: float = 0.01) -> None:
        super().__init__(num_tasks, lr)
        not_negative(gamma=gamma)
        self.gamma = gamma
        self.register_buffer("previous", torch.full((num_tasks,), torch.nan))

    def forward(self, losses: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return losses * softmax_weights(self.logits - losses.log(), losses > 0)

    def after_step(self, losses: Float[Tensor, " K"], metrics: Metrics) -> None:
        decrease = self.previous.log() - losses.log()
        decrease = decrease.where(decrease.isfinite(), 0)  # a task that is or was absent
        logits = self.logits.detach()
        z = logits.softmax(0)
        self.descend(z * (decrease - z @ decrease.to(z.dtype)) + self.gamma * logits)
        self.previous.copy_(losses.where(losses > 0, self.previous))
