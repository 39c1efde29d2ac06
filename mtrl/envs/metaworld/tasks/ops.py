"""The array functions of the tasks, named as in torch, for torch tensors on any device and for numpy arrays.

The arrays of a step are small, (16, 3) for example, and there are a thousand operations on them: on a CPU numpy does
them in a quarter of torch's time. What both understand needs no function here: arithmetic, comparisons, `&`, `|`, `~`,
`abs(x)`, `x.clip(low, high)`, slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = Any
"""A torch tensor, or a numpy array. All arrays of a call are of one kind.

Torch gives `0.1 * mask` and `where(mask, 0.1, 0.2)` its default dtype: write `where(mask, 0.1 + x, x)`.
"""


def where(condition: Array, a: Array | float, b: Array | float) -> Array:
    """`a` where the condition holds, else `b`; one of them may be a number."""
    return np.where(condition, a, b) if isinstance(condition, np.ndarray) else torch.where(condition, a, b)


def norm(x: Array) -> Array:
    """Euclidean length along the last axis."""
    return np.sqrt(_squared(x, x)) if isinstance(x, np.ndarray) else torch.linalg.vector_norm(x, dim=-1)


# The former, of numpy 2, rounds as `np.linalg.norm` does for one vector in the official code.
_squared = getattr(np, "vecdot", None) or functools.partial(np.einsum, "...i,...i")


def minimum(a: Array, b: Array) -> Array:
    """The lesser of each pair."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) else torch.minimum(a, b)


def maximum(a: Array, b: Array) -> Array:
    """The greater of each pair."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) else torch.maximum(a, b)


def stack(arrays: Sequence[Array]) -> Array:
    """Joined along a new last axis."""
    return np.stack(arrays, axis=-1) if isinstance(arrays[0], np.ndarray) else torch.stack(tuple(arrays), dim=-1)


def cat(arrays: Sequence[Array], axis: int = -1) -> Array:
    """Joined along an axis."""
    return np.concatenate(arrays, axis=axis) if isinstance(arrays[0], np.ndarray) else torch.cat(tuple(arrays), axis)


def take(x: Array, index: Array) -> Array:
    """`x[n, index[n]]` for every n: (N, K, ...) and (N,) to (N, ...)."""
    rows = np.arange(len(x)) if isinstance(x, np.ndarray) else torch.arange(len(x), device=x.device)
    return x[rows, index]


def zeros(like: Array, *shape: int) -> Array:
    """Zeros of the kind, dtype and device of `like`."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def full_like(x: Array, value: float) -> Array:
    """The shape of `x`, filled with a number."""
    return np.full_like(x, value) if isinstance(x, np.ndarray) else torch.full_like(x, value)


def _elementwise(name: str) -> Callable[[Array], Array]:
    for_numpy, for_torch = getattr(np, name), getattr(torch, name)
    return lambda x: for_numpy(x) if isinstance(x, np.ndarray) else for_torch(x)


exp, log, sin, cos = (_elementwise(name) for name in ("exp", "log", "sin", "cos"))


def vector(like: Array, *values: float) -> Array:
    """Constant (size,) of the kind, dtype and device of `like`, made once."""
    return _vector(like.dtype, None if isinstance(like, np.ndarray) else like.device, values)


@functools.cache
def _vector(dtype: Any, device: torch.device | None, values: tuple[float, ...]) -> Array:
    return np.array(values, dtype) if device is None else torch.tensor(values, dtype=dtype, device=device)
