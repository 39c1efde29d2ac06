"""Files that appear whole or not at all, and JSON that every reader takes. No torch here: workers import it."""

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
    """Gives a name beside `path` to write to; that file takes the place of `path` at the end. Makes the folder.

    After an error it vanishes, and what `path` was stays. The name is another each time, so that two processes that
    write `path` at once do not meet: the last one wins.
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
    """Replaces a file with `text`; a kill leaves the old content or the new. Makes the folder. Raises `OSError`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file or folder is on the disk, as far as the system knows. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(values: Any, indent: int | None = None) -> str:
    """Plain values as JSON; NaN and infinity, for which it has no words, become null."""
    return json.dumps(_finite(values), allow_nan=False, indent=indent)


def stored_number(stored: float | None) -> float:
    """A number out of such JSON: NaN for null."""
    return math.nan if stored is None else stored


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return node
