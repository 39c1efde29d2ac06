"""torch's optimisers, registered so that a config can name them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.checks import not_negative, positive
from mtrl.registry import register
from mtrl.state import check_like


@register("optimizer", "adam")
def adam(parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Adam. The parameter groups keep the initial rate as `initial_lr` for schedules.

    Rows of a task that is absent from a batch have no gradient, but momentum still moves them: by about nine learning
    rates in total, if their previous gradients had one direction. The same holds for a shared parameter whose gradient
    becomes zero.

    Use it first.

    Args:
        lr: Learning rate.
        eps: Added to the denominator.
    """
    positive(lr=lr, eps=eps)
    return torch.optim.Adam([{"params": list(parameters), "initial_lr": lr}], lr=lr, eps=eps, fused=True)


@register("optimizer", "adamw")
def adamw(
    parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8, weight_decay: float = 1e-4
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay.

    Use it where weights should stay small, as in networks that were published with weight decay.

    Args:
        lr: Learning rate.
        eps: Added to the denominator.
        weight_decay: Strength of the decay.
    """
    positive(lr=lr, eps=eps)
    not_negative(weight_decay=weight_decay)
    group = {"params": list(parameters), "initial_lr": lr}
    return torch.optim.AdamW([group], lr=lr, eps=eps, weight_decay=weight_decay, fused=True)


@register("optimizer", "rmsprop")
def rmsprop(
    parameters: Iterable[nn.Parameter], lr: float, eps: float = 0.01, alpha: float = 0.99, momentum: float = 0.0
) -> torch.optim.Optimizer:
    """RMSProp with epsilon outside the square root (torch's form, IMPALA's defaults).

    Use it to repeat IMPALA.

    Args:
        lr: Learning rate.
        eps: Added to the square root.
        alpha: Decay of the mean square.
        momentum: Of the steps.
    """
    positive(lr=lr, eps=eps, alpha=alpha)
    not_negative(momentum=momentum)
    group = {"params": list(parameters), "initial_lr": lr}
    return torch.optim.RMSprop([group], lr=lr, eps=eps, alpha=alpha, momentum=momentum)


def restore(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """`optimizer.load_state_dict` with checks that torch lacks. Settings of other versions are ignored.

    Raises:
        ValueError: The state does not fit this optimiser and its parameters; names the entry.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("param_groups"), list):
        raise ValueError("optimizer: expected state and param_groups")
    expected, groups = optimizer.state_dict()["param_groups"], state["param_groups"]
    parameter_ids = [group.get("params") for group in groups if isinstance(group, Mapping)]
    if parameter_ids != [group["params"] for group in expected]:
        raise ValueError("optimizer/param_groups: expected other parameters")
    for fresh, group in zip(expected, groups, strict=True):
        known = {key: group.get(key, value) for key, value in fresh.items()}
        check_like(_numbered(known), _numbered(fresh), "optimizer/param_groups")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    like = _after_a_step(optimizer)
    for number, stored in state["state"].items():
        if number not in parameters:
            raise ValueError(f"optimizer/state: there is no parameter {number!r}")
        moment = torch.empty_like(parameters[number], device="meta")
        fresh = {key: moment if value.ndim else value for key, value in like.items()}
        check_like(stored, fresh, f"optimizer/state/{number}")
    optimizer.load_state_dict(dict(state))


def _numbered(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings with lists as dicts, whose elements `check_like` compares."""
    return {key: dict(enumerate(value)) if isinstance(value, list | tuple) else value for key, value in group.items()}


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state that an optimiser of this kind keeps for a parameter of one axis."""
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    options = inspect.signature(type(optimizer)).parameters
    twin = type(optimizer)([probe], **{key: value for key, value in optimizer.defaults.items() if key in options})
    twin.step()
    return twin.state[probe]
