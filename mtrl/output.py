"""Standard output and error that cannot end a program. No torch here: workers import it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class Unbreakable:
    """A text stream of which reports are lost, rather than the program, while nobody reads it or its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # ValueError: it was closed, or cannot encode the text. RuntimeError: a signal's handler writes amid a write.
        with suppress(OSError, ValueError, RuntimeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, RuntimeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unbreakable_output() -> Iterator[None]:
    """Within, what becomes of standard output and error is no matter to the program, nor is it when it ends."""
    before = sys.stdout, sys.stderr
    # None: it was closed before the program began.
    streams = [stream or Path(os.devnull).open("w") for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = (cast(TextIO, Unbreakable(stream)) for stream in streams)
    try:
        yield
    finally:
        for stream in streams:
            _give_up_what_is_left(stream)
        sys.stdout, sys.stderr = before


def _give_up_what_is_left(stream: Any) -> None:
    """What cannot be written is dropped: the interpreter would try again at its end, and exit with code 120."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except ValueError:  # closed
        pass
