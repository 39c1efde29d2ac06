"""A file lock that one process holds at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtrl.types import UserError


@contextmanager
def locked(path: Path, new: bool = False) -> Iterator[int]:
    """Locks a file for the block against other processes, and yields its descriptor. It is made if it is missing.

    The system releases the lock when the process ends, however that happens, and the processes that it let inherit the
    descriptor. On file systems without locks, only `new` keeps other processes out.

    Args:
        new: The file must not exist yet. Only one of several processes can make it.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file cannot be opened; `FileExistsError` if it exists and should be new.
    """
    # Non-blocking: opening a pipe would wait for a reader.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | (os.O_EXCL if new else 0), 0o644)
    try:
        _lock(file, path)
        yield file
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. Raises `OSError` if it cannot be opened."""
    try:
        with locked(path):
            return False
    except UserError:
        return True


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another process is training in {path.parent}: wait until it has ended, or stop it.") from None
    except (ImportError, OSError):  # the system has no locks
        pass
