"""The checkpoints of a run: saving, restoring, and removing all but the newest."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtrl.files import sync, write_atomic
from mtrl.run.checkpoint.codec import CheckpointError, load_state, save_state
from mtrl.run.checkpoint.manifest import read_manifest, verify, write_manifest
from mtrl.run.reading import reason
from mtrl.state import check_like
from mtrl.types import ONE_PROCESS, Ranks, State

Report = Callable[[str], None]
"""Takes a one-line warning about something that went wrong but could be worked around."""

_warn: Report = logging.getLogger(__name__).warning


@runtime_checkable
class Savable(Protocol):
    """Anything with state that a resumed run needs."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: State) -> Any: ...


_REPLACED = ".replaced"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, complete or not, newest first; a replaced one comes after its replacement."""
    paths = [path for path in folder.glob("*") if re.fullmatch(rf"\d{{12,}}({_REPLACED})?", path.name)]
    return sorted(paths, key=lambda path: (_step(path), not path.name.endswith(_REPLACED)), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removesuffix(_REPLACED))


def newest_valid(folder: Path, report: Report = _warn, use: Callable[[Path], Any] = lambda path: None) -> Path:
    """The newest checkpoint that is intact.

    Args:
        folder: A run's `checkpoints` folder.
        report: Called with one line, name and reason, for each damaged checkpoint that is skipped.
        use: Called with each intact checkpoint; a `CheckpointError` from it counts as damage.

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
    content = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else "no such folder"
    raise CheckpointError(f"No checkpoint in {folder}. Found: {content or 'an empty folder'}.")


def any_checkpoint(folder: Path) -> bool:
    """Whether a run's `checkpoints` folder has a checkpoint, intact or damaged."""
    return bool(checkpoints(folder))


class Checkpointer:
    """Saves and restores a run's savables. Must be the only writer of its folder.

    Args:
        folder: Where the checkpoints are; made if missing. All ranks must see it.
        savables: What to save, by name. Pass compiled modules uncompiled, so that names stay the same.
        keep: How many of the newest checkpoints to keep.
        report: Called with a line for each damaged checkpoint that is skipped.
        per_rank: Names of savables that each rank saves for itself. Others are the same in all: the first saves them.
        ranks: The processes that save and restore together.

    Raises:
        CheckpointError: The folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        savables: Mapping[str, Savable],
        keep: int = 2,
        report: Report = _warn,
        per_rank: Collection[str] = (),
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}.")
        self.folder, self.savables, self.keep, self.report = folder, dict(savables), keep, report
        self.per_rank, self.ranks = per_rank, ranks
        self._abandoned: list[Path] = []
        try:
            ranks.first(self._probe)
        except OSError as error:
            raise CheckpointError(f"Cannot write to {folder}: {error.strerror or error}.") from error

    def _probe(self) -> None:
        """Fails now rather than after hours of training."""
        write_atomic(self.folder / ".tmp-probe", "0" * 4096)
        (self.folder / ".tmp-probe").unlink()

    def save(self, step: int, extra: Callable[[Path], None] | None = None) -> Path:
        """Writes the checkpoint of a step (replacing one of the same step) and removes old ones.

        Args:
            step: Environment steps so far.
            extra: Called with the folder of the unfinished checkpoint, to write more files into it.

        Raises:
            CheckpointError: The disk is full or cannot be written. Earlier checkpoints are untouched.
        """
        temporary = self.folder / f".tmp-{step:012d}-{self.ranks.first(os.getpid)}"
        try:
            self.ranks.first(self._clean)
            self._write(temporary / "training_state")
            path = self.ranks.first(lambda: self._complete(temporary, step, extra))
        except OSError as error:
            raise CheckpointError(
                f"Could not save the checkpoint of step {step} in {self.folder}: {error.strerror or error}. "
                "Earlier checkpoints are intact."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._abandoned = []
        return path

    def _clean(self) -> None:
        for leftover in self.folder.glob(".tmp-*"):
            _remove(leftover)

    def _write(self, folder: Path) -> None:
        """Writes what this rank saves. Raises `OSError` in all ranks if one fails."""
        failure = None
        try:
            for name, savable in self.savables.items():
                if name in self.per_rank or self.ranks.rank == 0:
                    save_state(folder / _of_rank(name, self._rank_of(name)), savable.state_dict())
        except OSError as error:
            failure = error
        for failed in self.ranks.gather(failure):
            if failed is not None:
                raise failed

    def _rank_of(self, name: str) -> int:
        return self.ranks.rank if name in self.per_rank else 0

    def _complete(self, temporary: Path, step: int, extra: Callable[[Path], None] | None) -> Path:
        if extra is not None:
            extra(temporary)
        write_manifest(temporary, step)
        path = self._publish(temporary, step)
        self._prune(path)
        return path

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step that belongs to this run's past."""
        path = self.folder / f"{step:012d}"
        return path.is_dir() and path not in self._abandoned

    def restore(self, check: Callable[[Path], None] = lambda path: None) -> int:
        """Loads the newest intact checkpoint into the savables. Returns its step.

        Args:
            check: Called with the checkpoint's folder before anything is loaded; raises if it cannot be used.

        Raises:
            CheckpointError: There is none, or it does not hold the state of all savables.
        """
        # Taken before anything is loaded: a checkpoint that loads only in part must not change what is expected.
        fresh = {name: savable.state_dict() for name, savable in self.savables.items()}

        def use(path: Path) -> None:
            check(path)
            self._load(path, fresh)

        path = newest_valid(self.folder, self.report, use)
        restored = read_manifest(path).step
        if len(set(self.ranks.gather(restored))) > 1:
            raise CheckpointError(
                f"The ranks found different checkpoints in {self.folder}: do all see the same folder?"
            )
        # Checkpoints after the restored step do not belong to the past of the steps that follow.
        self._abandoned = [path for path in checkpoints(self.folder) if _step(path) > restored]
        return restored

    def _load(self, path: Path, fresh: Mapping[str, Mapping[str, Any]]) -> None:
        states = path / "training_state"
        listed = {name.split("/")[1] for name in read_manifest(path).files if name.startswith("training_state/")}
        saved_by = number_of_ranks(listed)
        unshared = self.per_rank if saved_by != self.ranks.size else ()
        names = {name: _of_rank(name, self._rank_of(name)) for name in self.savables if name not in unshared}
        if lacking := sorted(set(names.values()) - listed):
            has = ", ".join(sorted(listed)) or "none"
            raise CheckpointError(f"Checkpoint {path} has no state of {', '.join(lacking)}; it has {has}.")
        # All are checked before any is loaded. They are loaded one at a time because a replay is large.
        for name, stored in names.items():
            with _usable(states / stored):
                check_like(load_state(states / stored, headers_only=True), fresh[name])
        for name, stored in names.items():
            with _usable(states / stored):
                self.savables[name].load_state_dict(load_state(states / stored))
        if unshared:
            self.report(
                f"Saved by {saved_by} rank{'s' if saved_by > 1 else ''}, resumed by {self.ranks.size}: networks, "
                "optimisers and their statistics go on exactly; environments, replay, task sampling and random numbers "
                "start fresh."
            )

    def _publish(self, temporary: Path, step: int) -> Path:
        path = self.folder / f"{step:012d}"
        if path.exists():
            # Kept until its replacement is in place: it may be the only checkpoint.
            replaced = path.with_name(path.name + _REPLACED)
            _remove(replaced)
            path.rename(replaced)
        temporary.rename(path)
        sync(self.folder)
        pointer = self.folder / ".tmp-last"
        pointer.symlink_to(path.name)
        pointer.replace(self.folder / "last")
        sync(self.folder)
        return path

    def _prune(self, newest: Path) -> None:
        step = _step(newest)
        replaced = [path for path in checkpoints(self.folder) if path.name.endswith(_REPLACED)]
        past = [path for path in checkpoints(self.folder) if _step(path) <= step and path not in replaced]
        for path in {*replaced, *past[self.keep :], *self._abandoned} - {newest}:
            _remove(path)


_OF_RANK = re.compile(r"(.+)-rank(\d+)")


def _of_rank(name: str, rank: int) -> str:
    """Name of a rank's own savable in a checkpoint. That of the first one, like that of a process alone, is `name`."""
    return f"{name}-rank{rank}" if rank else name


def number_of_ranks(stored: Iterable[str]) -> int:
    """Number of ranks that saved a checkpoint, from the names in its `training_state`."""
    return 1 + max((int(match[2]) for name in stored if (match := _OF_RANK.fullmatch(name))), default=0)


@contextmanager
def _usable(state: Path) -> Iterator[None]:
    """Turns an error of `load_state_dict` into a `CheckpointError` that names the file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{state / 'state.json'} cannot be used: {reason(error)}. If another version of mtrl made it: its policy "
            "can be evaluated, and init_from takes what both have (init_from_parts)."
        ) from error


def _remove(path: Path) -> None:
    """Removes a file or folder if it exists. A kill half-way leaves nothing that looks like a checkpoint."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".tmp-{path.name.removeprefix('.tmp-')}-removed")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
