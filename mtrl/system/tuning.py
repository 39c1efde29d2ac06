"""Settings of this process that make torch faster and leave its results as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtrl.system.cores import available_cores


def keep_freed_memory() -> None:
    """Keeps freed memory in this process instead of returning it to the system.

    By default glibc returns large blocks, and the system fills every block that it hands out with zeros, page by page,
    again in each update.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    mallopt(mmap_threshold, 2**30)


@contextmanager
def threads_beside(actors: int) -> Iterator[None]:
    """Limits torch's threads to the cores that `actors` processes leave free; at least one.

    All threads of an operation wait for the one that shares its core with an actor, which costs more than the extra
    thread gains (see `benchmarks/actors.py`).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, available_cores() - actors)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
