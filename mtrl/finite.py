"""Checks of actions, observations and rewards, as early as possible so that the error can name their source."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mtrl.types import EnvSpec, Step, UserError


def invalid_actions(action: Tensor, spec: EnvSpec, task: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """The slots whose action is NaN, or does not exist in their task."""
    if spec.action_kind == "continuous":
        return action.isnan().any(dim=-1)
    mask = _action_mask(spec.action_mask, action.device)
    inside = (action >= 0) & (action < spec.action_dim)
    return ~(inside & mask[task.to(action.device), action.long().clamp(0, spec.action_dim - 1)])


@functools.cache
def _action_mask(mask: tuple[tuple[bool, ...], ...], device: torch.device) -> Bool[Tensor, "K A"]:
    return torch.tensor(mask, device=device)


def check_actions(action: Tensor, spec: EnvSpec, task: Int[Tensor, " B"]) -> None:
    """Raises `ValueError` if an action is NaN, or does not exist in its slot's task."""
    invalid = invalid_actions(action, spec, task)
    if not invalid.any():
        return
    slots = invalid.nonzero().flatten().tolist()
    if spec.action_kind == "continuous":
        raise ValueError(f"NaN in the actions of slots {slots}.")
    raise ValueError(f"Slots {slots} were given actions {action[invalid].tolist()}, which do not exist in their tasks.")


def check_step(step: Step, length: Shaped[Tensor, " B"], spec: EnvSpec) -> None:
    """Checks rewards and observations of a step.

    Args:
        length: Length of each slot's episode, including this step.

    Raises:
        UserError: A value is NaN or infinite.
    """
    _check("reward", step.reward, step.task, length, spec)
    _check("observation", step.final_obs, step.task, length, spec)


def check_first(obs: Shaped[Tensor, "B *obs"], task: Int[Tensor, " B"], spec: EnvSpec) -> None:
    """Checks the first observations of episodes. Raises `UserError` if one is NaN or infinite."""
    _check("observation", obs, task, torch.zeros_like(task), spec)


def _check(what: str, values: Tensor, task: Int[Tensor, " B"], length: Shaped[Tensor, " B"], spec: EnvSpec) -> None:
    # A sum is finite only if all values are, and takes an eighth of the time.
    if not values.is_floating_point() or values.sum().isfinite():
        return
    finite = values.isfinite()
    if finite.all():  # the sum has overflowed
        return
    slot, *index = (~finite).nonzero()[0].tolist()
    place = f"{what} at {index}" if index else what
    raise UserError(
        f"The environment of task {spec.task_names[int(task[slot])]!r} gave {values[(slot, *index)].item()} as the "
        f"{place}, in step {int(length[slot])} of an episode (slot {slot}): observations and rewards must be finite."
    )
