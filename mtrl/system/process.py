"""Processes that serve this one over a pipe, and end with it."""

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
"""What people, terminals and schedulers send to end a program."""

T = TypeVar("T")


class EnvironmentFailedError(RuntimeError):
    """An environment failed, or a process that acts in one. The state of the run is that before the step it was at."""


class ServingProcess:
    """Runs `main(fd)` of a module in a process of its own, with one thread; `fd` is its end of the pipe.

    It must end when the pipe closes, which also happens when this process is killed. Signals that ask for a stop do
    nothing to it: schedulers send them to every process of a job, and this one decides what becomes of them.

    Started with `subprocess` rather than `multiprocessing`, whose start methods either copy a parent that has threads
    (fork) or import its main script again (spawn, forkserver): slow, and wrong where that script has no guard.

    Attributes:
        connection: This end of the pipe.
        pid: Process id.
    """

    patience: ClassVar[float] = math.inf
    """Seconds that any reply is waited for; finite once this process has been asked to stop."""

    def __init__(self, module: str) -> None:
        self.connection, child = Pipe()
        self._poll = select.poll()
        self._poll.register(self.connection.fileno(), select.POLLIN)
        single_threaded = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        # The child inherits the mask, and with it nothing can end it before it has handlers of its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({module!r}, {child.fileno()})"],
                pass_fds=[child.fileno()],
                env={**os.environ, **single_threaded, "PYTHONPATH": path},
                start_new_session=True,  # no terminal can stop it (Ctrl-Z) or hang it up
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
        """In words, of a process that no longer answers."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        hint = " (SIGKILL: often a lack of memory)" if code == -signal.SIGKILL else ""
        return f"ended with exit code {code}{hint}"

    def close(self) -> None:
        """Ends the process, by force if closing the pipe does not."""
        close_all([self])

    def end(self, seconds: float) -> None:
        """Waits for its end as long, and then forces it."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def patiently(look: Callable[[float], T]) -> T:
    """What `look(seconds)` finds, which waits for it as long. Raises `TimeoutError` after `ServingProcess.patience`."""
    began = time.monotonic()
    while not (found := look(1.0)):
        if time.monotonic() - began > ServingProcess.patience:
            raise TimeoutError
    return found


def close_all(processes: Iterable[ServingProcess]) -> None:
    """Ends processes together, by force those that are there two seconds after their pipes were closed."""
    processes = list(processes)
    for process in processes:
        process.connection.close()
    deadline = time.monotonic() + 2
    for process in processes:
        process.end(max(0.0, deadline - time.monotonic()))


def serve(module: str, fd: int) -> None:
    """What the process runs."""
    for number in STOP_SIGNALS:
        # Not SIG_IGN, which programs that an environment starts would inherit: it could not end them any more.
        signal.signal(number, lambda number, frame: None)
        signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with unbreakable_output():
        importlib.import_module(module).main(fd)
