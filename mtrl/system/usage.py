"""Memory usage of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Peak resident memory of this process plus that of each live descendant, in bytes.

    An upper bound of the memory that the run used: shared pages are counted for each process, and the peaks need not
    coincide. Without a Linux `/proc`: the peak of this process plus that of its finished children.
    """
    try:
        return sum(map(_high_water_mark, _family(os.getpid())))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return unit * sum(resource.getrusage(user).ru_maxrss for user in users)


def _family(root: int) -> list[int]:
    """A process and its live descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:  # it has ended in the meantime
                continue
            # pid (name, which may hold anything) state ppid ...
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def _high_water_mark(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text(errors="replace")
    except OSError:
        if process == os.getpid():
            raise
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
