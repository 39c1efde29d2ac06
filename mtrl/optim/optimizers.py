"""torch's optimisers under the registry, so that a config can name them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mtrl.registry import not_negative, positive, register


@register("optimizer", "adam")
def adam(parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Adam. The parameter groups keep the initial rate as `initial_lr` for schedules.

    Rows of a task that is absent from a batch have no gradient, but go on by their momentum: about nine learning rates
    in all, if their gradient had one direction before. So does a shared parameter whose gradient ends.
    """
    positive(lr=lr, eps=eps)
    return torch.optim.Adam([{"params": list(parameters), "initial_lr": lr}], lr=lr, eps=eps, fused=True)


@register("optimizer", "adamw")
def adamw(
    parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8, weight_decay: float = 1e-4
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    positive(lr=lr, eps=eps)
    not_negative(weight_decay=weight_decay)
    group = {"params": list(parameters), "initial_lr": lr}
    return torch.optim.AdamW([group], lr=lr, eps=eps, weight_decay=weight_decay, fused=True)


@register("optimizer", "rmsprop")
def rmsprop(
    parameters: Iterable[nn.Parameter], lr: float, eps: float = 0.01, alpha: float = 0.99, momentum: float = 0.0
) -> torch.optim.Optimizer:
    """RMSProp with epsilon outside the square root (torch's form, IMPALA's defaults)."""
    positive(lr=lr, eps=eps, alpha=alpha)
    not_negative(momentum=momentum)
    group = {"params": list(parameters), "initial_lr": lr}
    return torch.optim.RMSprop([group], lr=lr, eps=eps, alpha=alpha, momentum=momentum)
