"""Processes that serve this one over a pipe, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path


class ServingProcess:
    """Runs `main(fd)` of a module in a process of its own, with one thread; `fd` is its end of the pipe.

    It must end when the pipe closes, which also happens when this process is killed.

    Started with `subprocess` rather than `multiprocessing`, whose start methods either copy a parent that has threads
    (fork) or import its main script again (spawn, forkserver): slow, and wrong where that script has no guard.

    Attributes:
        connection: This end of the pipe.
        pid: Process id.
    """

    def __init__(self, module: str) -> None:
        self.connection, child = Pipe()
        single_threaded = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main({child.fileno()})"],
            pass_fds=[child.fileno()],
            env={**os.environ, **single_threaded, "PYTHONPATH": path},
            start_new_session=True,  # a terminal's Ctrl-C does not reach it, not even while it starts
        )
        child.close()
        self.pid = self._process.pid

    def how_it_ended(self) -> str:
        """In words, of a process that no longer answers."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        hint = " (SIGKILL: often a lack of memory)" if code == -signal.SIGKILL else ""
        return f"ended with exit code {code}{hint}"

    def close(self) -> None:
        """Ends the process, by force if closing the pipe does not."""
        self.connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
