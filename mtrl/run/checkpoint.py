"""Checkpoints: an explicit list of savables, written beside the old ones and renamed, so that a kill loses nothing.

    checkpoints/
      000000400000/
        manifest.json                       size and sha256 of every other file
        training_state/<savable>/state.json, state.safetensors
        policy/...                          whatever `extra` writes
      last -> 000000400000

Nothing is pickled: tensors go to safetensors, the rest to JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mtrl.files import replacing
from mtrl.registry import unknown
from mtrl.types import State, UserError, match_tasks

Report = Callable[[str], None]
"""Where to say that something was wrong though it could be worked around: takes one line."""

_warn: Report = logging.getLogger(__name__).warning


class CheckpointError(UserError):
    """A checkpoint cannot be written, or what was found cannot be used."""


@runtime_checkable
class Savable(Protocol):
    """Anything with state that a resumed run needs."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: State) -> Any: ...


# ---------------------------------------------------------------------------------------------------------------------
# One state in one folder
# ---------------------------------------------------------------------------------------------------------------------


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and JSON scalars as `state.json` and `state.safetensors` in `folder`.

    `load_state` returns the same structure, values and dtypes, with tensors on the CPU; tuples come back as lists.
    Views and shared tensors are written as separate tensors.

    Raises:
        TypeError: Something that is neither; the message names its path.
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


def load_state(folder: Path) -> State:
    """Reads what `save_state` wrote. Tensors are on the CPU and own their memory.

    Raises:
        OSError, ValueError, SafetensorError: A file is missing or unreadable.
    """
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        # A clone, because the tensors of the file are unaligned views of a memory map.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118

    def decode(node: Any) -> Any:
        if isinstance(node, list):
            return [decode(value) for value in node]
        if not isinstance(node, dict):
            return node
        match next(iter(node), None):
            case "$tensor":
                return tensors[node["$tensor"]]
            case "$float":
                return float(node["$float"])
            case "$items":
                return {decode(key): decode(value) for key, value in node["$items"]}
            case _:
                return {key: decode(value) for key, value in node.items()}

    state: State = decode(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    return state


def _unused(path: str, taken: Mapping[str, Any]) -> str:
    """A name for a tensor: its path, made unique where keys contain slashes or differ in type only."""
    path = path.encode("utf-8", errors="backslashreplace").decode()
    name, count = path, 1
    while name in taken:
        name, count = f"{path}#{count}", count + 1
    return name


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """The error behind a failure of the disk, which safetensors reports in words: `... (os error 28)`."""
    code = re.search(r"\b(?:os error|code:) (\d+)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else OSError(str(error))


# ---------------------------------------------------------------------------------------------------------------------
# Files that appear whole or not at all
# ---------------------------------------------------------------------------------------------------------------------


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file with `text`; a kill leaves the old content or the new. Makes the folder. Raises `OSError`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }
    manifest = {"step": step, "files": files}
    text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1, allow_nan=False)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    for path in (*paths, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Raises `OSError` or `ValueError`."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise ValueError("it was altered")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: Names the first damaged file and what is wrong with it.
    """

    def damaged(name: str, reason: object) -> CheckpointError:
        return CheckpointError(f"Checkpoint {path} is damaged: {name}: {reason}.")

    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        files = _read_manifest(path)["files"]
    except FileNotFoundError:
        raise damaged("manifest.json", "missing") from None
    except (OSError, ValueError) as error:
        raise damaged("manifest.json", f"unreadable ({error})") from error
    for name, expected in files.items():
        try:
            size = (path / name).stat().st_size
            if size != expected["size"]:
                raise damaged(name, f"{size} bytes instead of {expected['size']}")
            if _sha256(path / name) != expected["sha256"]:
                raise damaged(name, "its content was altered (wrong sha256)")
        except FileNotFoundError:
            raise damaged(name, "missing") from None
        except OSError as error:
            raise damaged(name, f"unreadable ({error.strerror})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Many checkpoints in one folder
# ---------------------------------------------------------------------------------------------------------------------

_REPLACED = ".replaced"


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first; a replaced one comes after its replacement."""
    found = [path for path in folder.glob("*") if re.fullmatch(rf"\d{{12,}}({_REPLACED})?", path.name)]
    return sorted(found, key=lambda path: (_step(path), not path.name.endswith(_REPLACED)), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removesuffix(_REPLACED))


def newest_valid(folder: Path, report: Report = _warn) -> Path:
    """The checkpoint with the highest step that is whole. Damaged ones on the way are reported by name and reason.

    Args:
        folder: A run's `checkpoints` folder.
        report: Told about each damaged one, in one line.

    Raises:
        CheckpointError: There is none; lists what was found.
    """
    problems = []
    for path in _checkpoints(folder):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            report(f"{error} Using the one before it.")
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"No usable checkpoint in {folder}. {' '.join(problems)}")
    found = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else "no such folder"
    raise CheckpointError(f"No checkpoint in {folder}. Found: {found or 'an empty folder'}.")


def any_checkpoint(folder: Path) -> bool:
    """Whether a run's `checkpoints` folder has a checkpoint, be it damaged."""
    return bool(_checkpoints(folder))


class Checkpointer:
    """Saves and restores a run's savables in one folder, of which it is the only writer.

    Args:
        folder: Where the checkpoints are; made if missing.
        savables: What to save, by name. Compiled modules are given uncompiled, so that names stay.
        keep: How many of the newest checkpoints to keep.
        report: Told about damaged checkpoints that were passed over.

    Raises:
        CheckpointError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, savables: Mapping[str, Savable], keep: int = 2, report: Report = _warn) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}.")
        self.folder, self.savables, self.keep, self.report = folder, dict(savables), keep, report
        self._abandoned: list[Path] = []
        try:
            # Better now than after hours of training.
            write_atomic(folder / ".tmp-probe", "0" * 4096)
            (folder / ".tmp-probe").unlink()
        except OSError as error:
            raise CheckpointError(f"Cannot write to {folder}: {error.strerror or error}.") from error

    def save(self, step: int, extra: Callable[[Path], None] | None = None) -> Path:
        """Writes the checkpoint of a step (replacing one of the same step) and removes old ones.

        Args:
            step: Environment steps so far.
            extra: Given the unfinished checkpoint's folder, writes more files into it.

        Raises:
            CheckpointError: The disk is full or cannot be written. Earlier checkpoints are untouched.
        """
        temporary = self.folder / f".tmp-{step:012d}-{os.getpid()}"
        try:
            for leftover in self.folder.glob(".tmp-*"):
                _remove(leftover)
            for name, savable in self.savables.items():
                save_state(temporary / "training_state" / name, savable.state_dict())
            if extra is not None:
                extra(temporary)
            _write_manifest(temporary, step)
            path = self._publish(temporary, step)
            self._prune(path)
        except OSError as error:
            raise CheckpointError(
                f"Could not save the checkpoint of step {step} in {self.folder}: {error.strerror or error}. "
                "Earlier checkpoints are intact."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step that is of this run's past."""
        path = self.folder / f"{step:012d}"
        return path.is_dir() and path not in self._abandoned

    def restore(self, step: int | None = None, check: Callable[[Path], None] = lambda path: None) -> int:
        """Loads the newest whole checkpoint, or that of `step`, into the savables. Returns its step.

        Args:
            check: Given the checkpoint's folder before anything is loaded; raises if it cannot be used.

        Raises:
            CheckpointError: There is none, or it does not hold the state of all savables.
        """
        if step is None:
            path = newest_valid(self.folder, self.report)
        else:
            path = self.folder / f"{step:012d}"
            if not path.is_dir():
                raise CheckpointError(f"{self.folder} has no checkpoint of step {step}. {self._list()}")
            verify(path)
        check(path)
        states = path / "training_state"
        held = sorted(entry.name for entry in states.glob("*"))
        if lacking := sorted(self.savables.keys() - held):
            raise CheckpointError(f"Checkpoint {path} has no state of {', '.join(lacking)}; it has {', '.join(held)}.")
        # One after another: a replay is large.
        for name, savable in self.savables.items():
            try:
                savable.load_state_dict(load_state(states / name))
            except (RuntimeError, LookupError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"Checkpoint {path} cannot be resumed: its state of {name} could not be loaded "
                    f"({' '.join(str(error).split())[:200]}). If another version of mtrl made it: its policy can be "
                    "evaluated, and init_from takes what both have (init_from_parts)."
                ) from error
        restored: int = _read_manifest(path)["step"]
        # What lies after the step restored is not the past of what comes next.
        self._abandoned = [other for other in _checkpoints(self.folder) if _step(other) > restored]
        return restored

    def _list(self) -> str:
        return f"It has: {', '.join(str(_step(path)) for path in _checkpoints(self.folder)) or 'none'}."

    def _publish(self, temporary: Path, step: int) -> Path:
        path = self.folder / f"{step:012d}"
        if path.exists():
            # Not removed before its replacement is in place: it may be the only one.
            replaced = path.with_name(path.name + _REPLACED)
            _remove(replaced)
            path.rename(replaced)
        temporary.rename(path)
        _sync(self.folder)
        pointer = self.folder / ".tmp-last"
        pointer.symlink_to(path.name)
        pointer.replace(self.folder / "last")
        _sync(self.folder)
        return path

    def _prune(self, newest: Path) -> None:
        step = _step(newest)
        replaced = [path for path in _checkpoints(self.folder) if path.name.endswith(_REPLACED)]
        past = [path for path in _checkpoints(self.folder) if _step(path) <= step and path not in replaced]
        for path in {*replaced, *past[self.keep :], *self._abandoned} - {newest}:
            _remove(path)
        self._abandoned = []


def _remove(path: Path) -> None:
    """Removes a file or folder, if it exists; a kill on the way leaves nothing that looks like a checkpoint."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".tmp-{path.name.removeprefix('.tmp-')}-removed")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers, and parts of a network
# ---------------------------------------------------------------------------------------------------------------------


class RngStates:
    """Savable: the global random number generators of torch (CPU and every CUDA device), numpy and Python."""

    def state_dict(self) -> State:
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        numpy_words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
        version, words, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(name), numpy_words, int(position), int(has_gauss), float(cached)],
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        }

    def load_state_dict(self, state: State) -> None:
        torch.set_rng_state(state["torch"])
        for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
            torch.cuda.set_rng_state(state["cuda"][device], device)
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))


def task_axes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a module and its parts say of their numbers per task (`TaskAxes`), by the names of `module.state_dict()`."""
    return {
        f"{prefix}.{name}" if prefix else name: axes
        for prefix, part in module.named_modules()
        for name, axes in getattr(part, "task_axes", {}).items()
    }


def load_parts(
    module: nn.Module, tensors: Mapping[str, Tensor], parts: list[str] | None, have: Sequence[str], want: Sequence[str]
) -> list[str]:
    """Copies the tensors of another network of the same make into `module`, or some parts of it.

    Numbers per task go to the task of the same name. Those of a task that the other network has not stay as they are.

    Args:
        module: What to load into.
        tensors: By the names of `module.state_dict()`.
        parts: Names of submodules: "trunk" selects every tensor with a component `trunk` in its dotted name
            (`actor.trunk.input.weight`), but not a `task_input` in it, which has a column for each task and is a part
            of its own. None: all tensors.
        have: Names of the other network's tasks, in the order of their ids.
        want: Names of the tasks of `module`.

    Returns:
        Names of the tensors that were loaded.

    Raises:
        UserError: A part that does not exist, or tensors that are missing, left over or of another shape. Nothing
            has been loaded then.
    """
    target = module.state_dict()
    valid = sorted(set(_parts(tensors)) & set(_parts(target)))
    for part in parts or []:
        if part not in valid:
            raise UserError(unknown("part", part, valid))

    def selected(name: str) -> bool:
        if parts is None:
            return True
        modules = name.split(".")[:-1]
        return not set(parts).isdisjoint(modules) and ("task_input" not in modules or "task_input" in parts)

    names = [name for name in target if selected(name)]
    axes = task_axes(module)

    def of_have(name: str) -> tuple[int, ...]:
        """The shape that a tensor of `module` would have with the tasks of the other network."""
        along = axes.get(name, ())
        return tuple(n // len(want) * len(have) if i in along else n for i, n in enumerate(target[name].shape))

    expected = {name: str(of_have(name)) for name in names}
    found = {name: str(tuple(tensor.shape)) for name, tensor in tensors.items() if selected(name)}
    problems = [f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
                for name in {**expected, **found} if expected.get(name) != found.get(name)]  # fmt: skip
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"The networks differ. {'; '.join(problems[:3])}{more}. Parts that can be loaded alone: {', '.join(valid)}."
        )
    places = [(new, old) for new, old in enumerate(match_tasks(have, want)) if old is not None]
    with torch.no_grad():
        for name in names:
            ours, theirs = target[name], tensors[name]
            if name in axes:
                of_new = _entries(ours.shape, axes[name], [new for new, _ in places], len(want))
                of_old = _entries(theirs.shape, axes[name], [old for _, old in places], len(have))
                ours[of_new] = theirs[of_old].to(ours)
            else:
                ours.copy_(theirs)
    return names


def _entries(shape: Sequence[int], axes: Sequence[int], tasks: list[int], num_tasks: int) -> tuple[Tensor, ...]:
    """Index of the entries of some tasks in a tensor that has the tasks along `axes`."""
    index = [torch.arange(size) for size in shape]
    for axis in axes:
        index[axis] = index[axis].reshape(num_tasks, -1)[tasks].flatten()
    return torch.meshgrid(*index, indexing="ij")


def _parts(names: Mapping[str, Tensor]) -> Iterator[str]:
    for name in names:
        yield from (part for part in name.split(".")[:-1] if not part.isdigit())
