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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mtrl.checks import not_negative
from mtrl.files import replacing
from mtrl.registry import construct, unknown
from mtrl.run.reading import check_finite, check_inside, ordinary, read_json, read_tensors, reason
from mtrl.state import check_like, shown
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


def load_networks(folder: Path) -> dict[str, Tensor]:
    """The tensors of all networks in a learner's state. Raises `CheckpointError`."""
    networks = load_state(folder).get("networks")
    try:
        if not isinstance(networks, dict) or not all(isinstance(tensor, Tensor) for tensor in networks.values()):
            raise ValueError("networks: expected tensors")
        check_finite(networks)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be used: {error}.") from error
    return networks


def _decode(node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    """Raises `ValueError` with the path of what `save_state` does not write."""
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


def file_sha256(path: Path) -> str:
    """Of a file's content. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in paths
    }
    text = json.dumps(sealed({"step": step, "files": files}), indent=1, allow_nan=False)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    for path in (*paths, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync(path)


@dataclass(frozen=True)
class _File:
    """What a manifest says of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What a checkpoint says of itself."""

    step: int
    files: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        not_negative(step=self.step)

    def entries(self) -> dict[str, _File]:
        """Its files by name. Raises `UserError` for one that is not described as it must be."""
        return {name: construct(f"files: {shown(name)}", _File, entry) for name, entry in self.files.items()}


def _read_manifest(folder: Path) -> _Manifest:
    """Raises `OSError`, `ValueError` or `UserError`."""
    manifest = open_sealed(read_json(folder / "manifest.json", folder))
    return construct("manifest", _Manifest, manifest)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its own sha256 in it."""
    return {**document, "sha256": _digest(document)}


def open_sealed(document: Any) -> dict[str, Any]:
    """The document that was given to `sealed`. Raises `ValueError` if it is no longer the same."""
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, found {shown(document)}")
    content = {key: value for key, value in document.items() if key != "sha256"}
    if document.get("sha256") != _digest(content):
        raise ValueError("its content was altered (wrong sha256)")
    return content


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: Names the first damaged file and what is wrong with it.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}.")
    name = "manifest.json"
    try:
        if path.parent.name == "checkpoints":  # where a link may lead to another checkpoint, as `last` does
            check_inside(path, path.parent)
        for name, expected in _read_manifest(path).entries().items():
            check_file(path / name, path, expected.size, expected.sha256)
    except FileNotFoundError:
        raise _damaged(path, name, "missing") from None
    except (OSError, ValueError, UserError) as error:
        raise _damaged(path, name, reason(error)) from error


def _damaged(path: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"Checkpoint {path} is damaged: {shown(name).strip(chr(39))}: {what}.")


def check_file(path: Path, root: Path, size: int, sha256: str) -> None:
    """Raises `OSError` or `ValueError` unless a file in `root` has this content."""
    found = ordinary(path, root).stat().st_size
    if found != size:
        raise ValueError(f"{found} bytes instead of {size}")
    if file_sha256(path) != sha256:
        raise ValueError("its content was altered (wrong sha256)")


# ---------------------------------------------------------------------------------------------------------------------
# Many checkpoints in one folder
# ---------------------------------------------------------------------------------------------------------------------

_REPLACED = ".replaced"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, whole or not, newest first; a replaced one comes after its replacement."""
    found = [path for path in folder.glob("*") if re.fullmatch(rf"\d{{12,}}({_REPLACED})?", path.name)]
    return sorted(found, key=lambda path: (_step(path), not path.name.endswith(_REPLACED)), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removesuffix(_REPLACED))


def newest_valid(folder: Path, report: Report = _warn, use: Callable[[Path], Any] = lambda path: None) -> Path:
    """The checkpoint with the highest step that is whole. Damaged ones on the way are reported by name and reason.

    Args:
        folder: A run's `checkpoints` folder.
        report: Told about each damaged one, in one line.
        use: Called with each whole one; a `CheckpointError` from it counts as damage.

    Raises:
        CheckpointError: There is none; lists what was found.
    """
    problems = []
    for path in checkpoints(folder):
        try:
            verify(path)
            use(path)
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
    return bool(checkpoints(folder))


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

    def restore(self, check: Callable[[Path], None] = lambda path: None) -> int:
        """Loads the newest whole checkpoint into the savables. Returns its step.

        Args:
            check: Given the checkpoint's folder before anything is loaded; raises if it cannot be used.

        Raises:
            CheckpointError: There is none, or it does not hold the state of all savables.
        """
        # As they are new: what is left of a checkpoint that could only be loaded in part must not count.
        fresh = {name: savable.state_dict() for name, savable in self.savables.items()}

        def use(path: Path) -> None:
            check(path)
            self._load(path, fresh)

        path = newest_valid(self.folder, self.report, use)
        restored = _read_manifest(path).step
        # What lies after the step restored is not the past of what comes next.
        self._abandoned = [other for other in checkpoints(self.folder) if _step(other) > restored]
        return restored

    def _load(self, path: Path, fresh: Mapping[str, Mapping[str, Any]]) -> None:
        states = path / "training_state"
        listed = {name.split("/")[1] for name in _read_manifest(path).files if name.startswith("training_state/")}
        if lacking := sorted(self.savables.keys() - listed):
            has = ", ".join(sorted(listed)) or "none"
            raise CheckpointError(f"Checkpoint {path} has no state of {', '.join(lacking)}; it has {has}.")
        # All are looked at before any is loaded, and then loaded one after another: a replay is large.
        for name in self.savables:
            with _usable(states / name):
                check_like(load_state(states / name, headers_only=True), fresh[name])
        for name, savable in self.savables.items():
            with _usable(states / name):
                savable.load_state_dict(load_state(states / name))

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
        replaced = [path for path in checkpoints(self.folder) if path.name.endswith(_REPLACED)]
        past = [path for path in checkpoints(self.folder) if _step(path) <= step and path not in replaced]
        for path in {*replaced, *past[self.keep :], *self._abandoned} - {newest}:
            _remove(path)
        self._abandoned = []


@contextmanager
def _usable(state: Path) -> Iterator[None]:
    """What a state's own object does not take is an error that names it, like damage of the checkpoint."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{state / 'state.json'} cannot be used: {reason(error)}. If another version of mtrl made it: its policy "
            "can be evaluated, and init_from takes what both have (init_from_parts)."
        ) from error


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
        """Raises whatever the generators raise for what is no state of theirs."""
        fresh = self.state_dict()
        name, keys, position, has_gauss, cached = state["numpy"]
        version, words, gauss = state["python"]
        check_like(keys, fresh["numpy"][1], "numpy")
        check_like(words, fresh["python"][1], "python")
        torch.set_rng_state(state["torch"])
        for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
            torch.cuda.set_rng_state(state["cuda"][device], device)
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
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
