"""Checks that observations and rewards are finite, as early as possible, so that the error can name their source."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mtrl.types import EnvSpec, Step, UserError


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
