"""Standard output and error whose failures do not end the program. No torch here, because workers import this."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class Unbreakable:
    """A text stream that drops output instead of raising when its reader is gone or its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # ValueError: it was closed, or cannot encode the text. RuntimeError: a signal handler writes during a write.
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
    """Ignores failures of standard output and error inside the block, and when the program ends."""
    before = sys.stdout, sys.stderr
    # None: it was closed before the program began.
    streams = [stream or Path(os.devnull).open("w") for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = (cast(TextIO, Unbreakable(stream)) for stream in streams)
    try:
        yield
    finally:
        for stream in streams:
            _flush_or_drop(stream)
        sys.stdout, sys.stderr = before


def _flush_or_drop(stream: Any) -> None:
    """Drops output that cannot be written: the interpreter would try again at exit, and end with code 120."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except ValueError:  # closed
        pass
