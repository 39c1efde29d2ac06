"""Comparison of saved states with the objects that load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

T = TypeVar("T")


def check_like(saved: Any, fresh: Any, entry: str = "") -> None:
    """Compares a saved state with the `state_dict` of a new object.

    Keys, types, dtypes and shapes must be the same, except where the new object is empty: an empty dict, None and an
    axis of length 0 match anything of their kind. Elements of lists are not compared; `load_state_dict` must check
    them.

    Args:
        saved: The saved state; its tensors may be on the device "meta".

    Raises:
        ValueError: Names the first difference by its path of keys.
    """
    if fresh is None and not isinstance(saved, Tensor | Mapping | list | tuple):
        return
    if _kind(saved) != _kind(fresh):
        raise ValueError(_differ(entry, fresh, saved))
    if isinstance(fresh, Tensor):
        same_axes = len(saved.shape) == len(fresh.shape) and all(
            old in (new, 0) for old, new in zip(fresh.shape, saved.shape, strict=True)
        )
        if saved.dtype != fresh.dtype or not (same_axes or fresh.shape == (0,)):
            raise ValueError(_differ(entry, fresh, saved))
    elif isinstance(fresh, Mapping) and fresh:
        for key in [*fresh, *saved]:
            path = f"{entry}/{key}" if entry else str(key)
            if key not in saved:
                raise ValueError(f"{path}: expected {described(fresh[key])}, found nothing")
            if key not in fresh:
                raise ValueError(f"{path}: expected nothing, found {described(saved[key])}")
            check_like(saved[key], fresh[key], path)


def described(value: Any) -> str:
    """A short description of a value in a state."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple) or value is None:
        return _kind(value)
    return f"{_kind(value)} ({shown(value)})"


def shown(value: Any) -> str:
    """The `repr` of a value from a file, shortened to fit a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _differ(entry: str, expected: Any, saved: Any) -> str:
    return f"{entry or 'the state'}: expected {described(expected)}, found {described(saved)}"


def _kind(value: Any) -> str:
    kinds = (
        (Tensor, "a tensor"),
        (Mapping, "an object"),
        ((list, tuple), "a list"),
        (bool, "true or false"),
        (int, "an integer"),
        (float, "a number"),
        (str, "text"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "nothing")


def planned(build: Callable[[], T], parameters: int) -> T | None:
    """Calls `build` without allocating memory for tensors, so that their shapes can be checked first.

    Args:
        build: Makes modules on torch's default device.
        parameters: Approximate number of parameters to expect; a description of a billion layers would never finish.

    Returns:
        The result, on the device "meta"; None if `build` reads values of tensors, which do not exist there.

    Raises:
        ValueError: There are more parameters, or a tensor is larger than torch allows.
    """
    try:
        with torch.device("meta"), _at_most(parameters):
            return build()
    except RuntimeError as error:
        if "meta" in str(error):
            return None
        raise ValueError(str(error).split("\n")[0]) from error


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    remaining = 10 * parameters + 100  # some modules may be temporary

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise ValueError("it describes far more parameters than there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
