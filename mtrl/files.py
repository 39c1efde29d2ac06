"""Atomic writing of files, and standard JSON. No torch here, because workers import this."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, and moves that file to `path` on exit. Makes the folder.

    After an error the temporary file is removed and `path` is unchanged. Temporary names are random: if two processes
    write `path` at the same time, the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Atomically replaces the content of a file with `text`. Makes the folder. Raises `OSError`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(values: Any, indent: int | None = None) -> str:
    """Plain values as JSON, with null for NaN and infinity."""
    return json.dumps(_finite(values), allow_nan=False, indent=indent)


def stored_number(stored: float | None) -> float:
    """A number from such JSON, with NaN for null."""
    return math.nan if stored is None else stored


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return node
