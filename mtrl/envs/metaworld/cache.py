"""Arrays kept on disk that can be computed again: written whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Folder for what can be computed again: `$MTRL_CACHE`, or `~/.cache/mtrl`."""
    return Path(os.environ.get("MTRL_CACHE") or Path.home() / ".cache" / "mtrl")


def cache_path(kind: str, key: Mapping[str, Any]) -> Path:
    """File for arrays that depend on `key` (JSON) and on the versions of Meta-World and MuJoCo."""
    versions = {"metaworld": version("metaworld"), "mujoco": version("mujoco")}
    digest = hashlib.sha256(json.dumps({**versions, **key}).encode()).hexdigest()[:16]
    return cache_dir() / f"metaworld_{kind}_{digest}.npz"


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """All arrays of the file; None if there is no file or it is damaged (zip members carry checksums)."""
    try:
        # Opened here: `np.load` leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s) and will be made again.", path, error)
        return None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes to a temporary file and renames it: another process sees all of it or nothing."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        log.warning("%s could not be cached (%s): it will be made again next time.", path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
