"""A file that one process has at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtrl.types import UserError


@contextmanager
def locked(path: Path, new: bool = False) -> Iterator[None]:
    """Within, no other process gets past here with the same file, which is made if it is missing.

    The system unlocks it when the process ends, however that happens. Where a file system has no locks, only `new`
    keeps others away.

    Args:
        new: The file must not be there yet: of several processes, one makes it.

    Raises:
        UserError: Another process has it.
        OSError: It cannot be opened; `FileExistsError` if it is there and should be new.
    """
    # Not blocking: a pipe in its place would wait for a reader.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | (os.O_EXCL if new else 0), 0o644)
    try:
        _lock(file, path)
        yield
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another process is training in {path.parent}: wait until it has ended, or stop it.") from None
    except (ImportError, OSError):  # no locks here
        pass
