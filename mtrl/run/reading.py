"""Reading files that may be damaged or untrusted.

A file is read only if it is a regular file inside the requested folder, and its content is compared with what is
expected before memory is allocated for it. Nothing in a file is executed, resolved or followed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mtrl.state import shown

DEEPEST = 100
"""Maximal nesting of lists and objects. Files of this package have about a dozen levels."""

_SMALL = 10_000
"""Integers up to this are never refused."""

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


def ordinary(path: Path, root: Path) -> Path:
    """Returns `path` if it is a regular file inside the folder `root`.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a regular file (reading a pipe could block forever), or a link leads outside of `root`.
    """
    mode = path.stat().st_mode
    check_inside(path, root)
    if stat.S_ISDIR(mode):
        raise ValueError("expected a file, found a folder")
    if not stat.S_ISREG(mode):
        raise ValueError("expected a file, found a device or a pipe")
    return path


def check_inside(path: Path, root: Path) -> None:
    """Raises `ValueError` if `path`, which need not exist, leads out of the folder `root` by links or by `..`."""
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"it leads outside of {root}, to {real}")


def read_text(path: Path, root: Path) -> str:
    """Text in UTF-8. Raises `OSError` or `ValueError`, also for files that `ordinary` refuses."""
    return ordinary(path, root).read_text(encoding="utf-8")


def read_json(path: Path, root: Path) -> Any:
    """A JSON document. Raises `OSError` or `ValueError`, like `read_text`."""
    try:
        value = json.loads(read_text(path, root), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"lists or objects more than {DEEPEST} levels deep") from None
    check_depth(value)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_depth(value: Any) -> None:
    """Raises `ValueError` for a document that is nested too deeply for recursive functions."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for node in level if isinstance(node, list | dict)
                 for inner in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
        if not level:
            return
    raise ValueError(f"lists or objects more than {DEEPEST} levels deep")


def read_tensors(path: Path, root: Path, headers_only: bool = False) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; they own their memory.

    Args:
        headers_only: They have dtype and shape but no memory: they are on the device "meta".

    Raises:
        OSError, ValueError: The file cannot be read, or `ordinary` refuses it.
    """
    try:
        with safe_open(ordinary(path, root), framework="pt") as file:
            names = file.keys()
            if headers_only:
                return {name: _header(file.get_slice(name)) for name in names}
            # A clone, because the tensors of the file are unaligned views of a memory map.
            return {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _header(tensor: Any) -> Tensor:
    dtype = tensor.get_dtype()
    if dtype not in _DTYPES:
        raise ValueError(f"tensors of {dtype} are not supported")
    return torch.empty(tensor.get_shape(), dtype=_DTYPES[dtype], device="meta")


def count(tensors: Mapping[str, Tensor]) -> int:
    """Total number of elements."""
    return sum(tensor.numel() for tensor in tensors.values())


def check_sizes(node: Any, most: int, entry: str) -> None:
    """Refuses a description of networks with an integer larger than the number of their parameters.

    No width or number of layers can be that large, and building such a network could exhaust the memory.

    Raises:
        ValueError: Names the first such integer.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            check_sizes(value, most, f"{entry}.{key}" if entry else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_sizes(value, most, f"{entry}[{index}]")
    elif isinstance(node, int) and abs(node) > max(most, _SMALL):
        raise ValueError(f"{entry}: {shown(node)} is too large for weights of {most:,} numbers")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for the first tensor that contains NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")


def reason(error: Exception) -> str:
    """The message of an error in one line, without the path, which the caller's message names."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
