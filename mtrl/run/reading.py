"""Reading files that may be damaged, or made by strangers.

A file is read only if it is an ordinary one inside the folder that was asked for, and what is in it is compared with
what is expected before memory is taken for it. Nothing in a file is run, resolved or followed.
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
"""Levels of lists and objects within one another; what this package writes has a dozen."""

_SMALL = 10_000
"""Integers up to this are not worth a question."""

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


def ordinary(path: Path, root: Path) -> Path:
    """The path itself, of an ordinary file inside the folder `root`.

    Raises:
        OSError: There is none.
        ValueError: It is something else (a pipe would be waited for without end), or a link leads outside.
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
    """Text in UTF-8. Raises `OSError` or `ValueError`, also for what `ordinary` refuses."""
    return ordinary(path, root).read_text(encoding="utf-8")


def read_json(path: Path, root: Path) -> Any:
    """A JSON document. Raises `OSError` or `ValueError`, as `read_text`."""
    try:
        value = json.loads(read_text(path, root), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"lists or objects more than {DEEPEST} levels deep") from None
    check_depth(value)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_depth(value: Any) -> None:
    """Raises `ValueError` for a document that functions which call themselves could not go through."""
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
        OSError, ValueError: The file cannot be read, also for what `ordinary` refuses.
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
    """Numbers in all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())


def check_sizes(node: Any, most: int, entry: str) -> None:
    """Refuses a description of networks with an integer that is larger than the number of their parameters.

    Neither a width nor a number of layers can be, and a list of a billion widths would be memory taken.

    Raises:
        ValueError: Names the first.
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
    """Raises `ValueError` for the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")


def reason(error: Exception) -> str:
    """What an error says, in one line and without the path that a message names anyway."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
