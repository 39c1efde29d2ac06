"""The folder of a run: made for one process at a time, described, and prepared when the run is resumed."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mtrl.files import write_atomic
from mtrl.run.lock import locked
from mtrl.system.cores import available_cores
from mtrl.types import UserError

WRITTEN = ("metrics.jsonl", "tensorboard", "wandb", "eval", "checkpoints", "nan_batch", "env.txt", "config.yaml")
"""What a run writes into its folder. The files that identify the folder come last."""

SWEEP = "sweep.json"
"""What tells the folder of a sweep, which holds those of its runs."""


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turns an `OSError` inside the block into a `UserError`."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or run_dir)
        where = "" if path == run_dir else f"{path.name}: "
        raise UserError(f"Cannot write the run folder {run_dir}: {where}{error.strerror or error}.") from error


def check_unused(run_dir: Path) -> None:
    """Raises `UserError` if there is something in the folder named for a new run."""
    with writing(run_dir):
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise _in_use(run_dir)


def _in_use(run_dir: Path) -> UserError:
    resume = shlex.quote(f"resume={run_dir}")
    return UserError(f"run_dir={run_dir} is not empty: choose another, or {resume} to go on with that run.")


def new_run_dir(run_dir: Path | None, name: str, held: ExitStack, lock: str = "env.txt") -> Path:
    """Makes the folder of a new run, locked against other processes until `held` closes.

    Args:
        run_dir: The folder; None for one in `runs`, called by the time and `name`.
        lock: The file in it that is locked.

    Raises:
        UserError: Another run has the folder, or it cannot be written.
    """
    stem, number = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}", 0
    while True:
        path = run_dir or Path("runs") / (f"{stem}-{number}" if number else stem)
        with writing(path), suppress(FileExistsError):
            path.mkdir(parents=True, exist_ok=run_dir is not None)
            held.enter_context(locked(path / lock, new=True))
            return path
        if run_dir is not None:
            raise _in_use(run_dir)
        number += 1


def describe_run(run_dir: Path, config: str) -> None:
    """Writes `config.yaml`, and appends the environment of this session to `env.txt`. Raises `UserError`."""
    with writing(run_dir):
        write_atomic(run_dir / "config.yaml", config)
        with (run_dir / "env.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(("\n" if file.tell() else "") + environment_description())


def drop_evaluations(run_dir: Path, step: int) -> None:
    """Deletes the evaluations after `step`, where the run resumes. Raises `UserError`."""
    with writing(run_dir):
        for path in (run_dir / "eval").glob("*.json"):
            if path.name.startswith(".tmp-") or (path.stem.isdecimal() and int(path.stem) > step):
                path.unlink()


def clear_dead_start(run_dir: Path, check_config: Callable[[Path], object]) -> None:
    """Empties the folder of a run that was killed before its first checkpoint.

    Args:
        check_config: Raises `UserError` unless a file is the configuration of a run.

    Raises:
        UserError: It holds something that no run writes, another process is training in it, or it cannot be changed.
    """
    if not run_dir.is_dir():
        return
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".tmp-")}
    if unknown := names - set(WRITTEN):
        raise UserError(f"run_dir={run_dir} holds {', '.join(sorted(unknown))}, which no run writes: choose another.")
    lock = run_dir / "env.txt"
    try:
        # A run makes an empty env.txt, and writes config.yaml before anything else.
        if names - {lock.name} or (lock.exists() and lock.stat().st_size):
            check_config(run_dir / "config.yaml")
    except UserError as error:
        raise UserError(f"run_dir={run_dir} is not empty, and not the folder of a run: {error}") from error
    with writing(run_dir), locked(lock):
        for path in (*run_dir.glob(".tmp-*"), *(run_dir / name for name in WRITTEN)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def environment_description() -> str:
    """Versions, device and git state."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "not a checkout"

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("mtrl-suite", "torch", "numpy", "gymnasium", "metaworld", "mujoco", "ale-py")
    lines = [
        f"time: {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
        f"command: python -m mtrl.train {shlex.join(sys.argv[1:])}",
        f"git commit: {git('rev-parse', 'HEAD')}",
        f"git changes: {len(git('status', '--porcelain').splitlines())} files",
        f"python: {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package}: {installed(package)}" for package in packages),
        f"cores: {available_cores()}, torch threads: {torch.get_num_threads()}",
        f"gpu: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
    ]
    return "\n".join(lines) + "\n"
