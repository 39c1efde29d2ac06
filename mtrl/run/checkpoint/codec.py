"""A state as files: nothing is pickled, tensors go to safetensors and the rest to JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtrl.run.reading import read_json, read_tensors, reason
from mtrl.state import shown
from mtrl.types import State, UserError


class CheckpointError(UserError):
    """A checkpoint cannot be written, or is damaged, or does not fit the run."""


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and JSON scalars as `state.json` and `state.safetensors` in `folder`.

    `load_state` returns the same structure, values and dtypes, with tensors on the CPU; tuples come back as lists.
    Views and shared tensors are written as separate tensors.

    Raises:
        TypeError: A value of another type; the message names its path.
        OSError: The files cannot be written.
    """
    # The name is reserved by safetensors.
    tensors: dict[str, Tensor] = {"__metadata__": torch.empty(0)}
    storages: set[int] = set()

    def encode(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            if node.layout != torch.strided or node.is_quantized:
                raise TypeError(f"Cannot save {path}: a tensor must be dense, not {node.layout} {node.dtype}.")
            dense = node.detach().cpu().resolve_conj().resolve_neg().contiguous()
            # safetensors refuses tensors that share memory; a second one is copied.
            storage = dense.untyped_storage().data_ptr()
            tensors[name := _unused(path, tensors)] = dense.clone() if storage in storages else dense
            storages.add(storage)
            return {"$tensor": name}
        if isinstance(node, Mapping):
            for key in node:
                if not isinstance(key, (str, int, float, bool, type(None))):
                    raise TypeError(f"Cannot save {path or 'the state'}: its key {key!r} is a {type(key).__name__}.")
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: encode(value, f"{path}/{key}" if path else key) for key, value in node.items()}
            items = [[encode(key, path), encode(value, f"{path}/{key}")] for key, value in node.items()]
            return {"$items": items}
        if isinstance(node, (list, tuple)):
            return [encode(value, f"{path}/{index}") for index, value in enumerate(node)]
        if isinstance(node, float) and not math.isfinite(node):
            return {"$float": repr(float(node))}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(
            f"Cannot save {path}: a state holds tensors, int, float, str, bool, None, and dicts and lists of them, "
            f"not {type(node).__module__}.{type(node).__qualname__}."
        )

    text = json.dumps(encode(state, ""), allow_nan=False)
    del tensors["__metadata__"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(text, encoding="utf-8")
    try:
        save_file(tensors, folder / "state.safetensors")
    except SafetensorError as error:
        raise _os_error(error, folder / "state.safetensors") from error


def load_state(folder: Path, headers_only: bool = False) -> State:
    """Reads what `save_state` wrote. Tensors are on the CPU and own their memory.

    Args:
        headers_only: Tensors have dtype and shape but no memory: they are on the device "meta".

    Raises:
        CheckpointError: A file is missing, unreadable, or not what `save_state` writes; names file and entry.
    """
    file = "state.safetensors"
    try:
        tensors = read_tensors(folder / file, folder, headers_only)
        file = "state.json"
        state = _decode(read_json(folder / file, folder), tensors, "")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / file} cannot be read: {reason(error)}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / file} cannot be read: expected an object, found {shown(state)}.")
    return state


def _decode(node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    """Raises `ValueError`, with the path, for an entry that `save_state` would not write."""
    if isinstance(node, list):
        return [_decode(value, tensors, f"{path}/{index}") for index, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    match list(node.items()):
        case [("$tensor", str(name))] if name in tensors:
            return tensors[name]
        case [("$float", "nan" | "inf" | "-inf" as name)]:
            return float(name)
        case [("$items", list(items))]:
            return dict(_decode_item(item, tensors, path) for item in items)
        case [(str(key), value), *_] if key.startswith("$"):
            raise ValueError(f"{path.removeprefix('/')}: expected a tensor, float or items, found {key} {shown(value)}")
    return {key: _decode(value, tensors, f"{path}/{key}") for key, value in node.items()}


def _decode_item(item: Any, tensors: Mapping[str, Tensor], path: str) -> tuple[Any, Any]:
    if isinstance(item, list) and len(item) == 2:
        key = _decode(item[0], tensors, path)
        if isinstance(key, str | int | float | None):
            return key, _decode(item[1], tensors, f"{path}/{key}")
    raise ValueError(f"{path.removeprefix('/')}: expected a key and its value, found {shown(item)}")


def _unused(path: str, taken: Mapping[str, Any]) -> str:
    """A name for a tensor: its path, made unique where keys contain slashes or differ in type only."""
    path = path.encode("utf-8", errors="backslashreplace").decode()
    name, count = path, 1
    while name in taken:
        name, count = f"{path}#{count}", count + 1
    return name


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """The `OSError` behind a disk failure, which safetensors reports as text: `... (os error 28)`."""
    code = re.search(r"\b(?:os error|code:) (\d+)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else OSError(str(error))
