"""Worker processes that serve this one through a pipe and end with it."""

from __future__ import annotations

import importlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mtrl.output import unbreakable_output

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that users, terminals and schedulers send to end a program."""

T = TypeVar("T")


class EnvironmentFailedError(RuntimeError):
    """An environment, or a process that acts in one, failed. The state of the run is the one before the failed step."""


class ServingProcess:
    """Runs `main(fd)` of a module in a separate process with one thread; `fd` is its end of the pipe.

    The process must end when the pipe closes, which also happens when the parent is killed. It ignores stop signals:
    schedulers send them to every process of a job, and the parent decides what to do.

    Started with `subprocess` rather than `multiprocessing`, whose start methods either copy a parent that has threads
    (fork) or import its main script again (spawn, forkserver), which is slow, and wrong if the script has no guard.

    Attributes:
        connection: This end of the pipe.
        pid: Process id.
    """

    patience: ClassVar[float] = math.inf
    """Seconds to wait for any reply; finite after this process was asked to stop."""

    def __init__(self, module: str) -> None:
        self.connection, child = Pipe()
        self._poll = select.poll()
        self._poll.register(self.connection.fileno(), select.POLLIN)
        single_threaded = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        # The child inherits the mask, so that no signal can end it before it has installed its handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({module!r}, {child.fileno()})"],
                pass_fds=[child.fileno()],
                env={**os.environ, **single_threaded, "PYTHONPATH": path},
                start_new_session=True,  # a terminal can neither suspend it (Ctrl-Z) nor hang it up
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child.close()
        self.pid = self._process.pid

    def next_message(self) -> Any:
        """The next message.

        Raises:
            TimeoutError: There was none within `patience`.
            EOFError, OSError: The process has ended.
        """
        patiently(lambda seconds: self._poll.poll(1000 * seconds))
        return self.connection.recv()

    def how_it_ended(self) -> str:
        """Describes how a process that no longer answers has ended."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        hint = " (SIGKILL: often a lack of memory)" if code == -signal.SIGKILL else ""
        return f"ended with exit code {code}{hint}"

    def close(self) -> None:
        """Closes the pipe, and kills the process if that does not end it."""
        close_all([self])

    def end(self, seconds: float) -> None:
        """Waits for the process to end, and kills it after `seconds`."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def patiently(look: Callable[[float], T]) -> T:
    """Calls `look(seconds)`, which waits that long, until its result is true. Returns the result.

    Raises:
        TimeoutError: After `ServingProcess.patience`.
    """
    began = time.monotonic()
    while not (result := look(1.0)):
        if time.monotonic() - began > ServingProcess.patience:
            raise TimeoutError
    return result


def close_all(processes: Iterable[ServingProcess]) -> None:
    """Closes the pipes of processes together, and kills those that have not ended two seconds later."""
    processes = list(processes)
    for process in processes:
        process.connection.close()
    deadline = time.monotonic() + 2
    for process in processes:
        process.end(max(0.0, deadline - time.monotonic()))


def serve(module: str, fd: int) -> None:
    """Main function of the process."""
    for number in STOP_SIGNALS:
        # Not SIG_IGN: programs started by an environment would inherit it, and could no longer be ended.
        signal.signal(number, lambda number, frame: None)
        signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with unbreakable_output():
        importlib.import_module(module).main(fd)
