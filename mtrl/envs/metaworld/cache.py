"""Disk cache of arrays: written atomically, checked when read, and computed again if missing or damaged."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.files import replacing

log = logging.getLogger(__name__)


def cache_dir() -> Path | None:
    """Folder of the cache: `$MTRL_CACHE`, or `~/.cache/mtrl`; None if there is no home folder."""
    if given := os.environ.get("MTRL_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "mtrl"
    except RuntimeError:  # a container may run as a user who has neither $HOME nor an entry in its passwd
        _warn_of_no_cache()
        return None


@functools.cache
def _warn_of_no_cache() -> None:
    log.warning("No home folder to keep Meta-World's goals and resets in: set MTRL_CACHE to a folder for them.")


def cache_path(kind: str, key: Mapping[str, Any]) -> Path | None:
    """File for arrays that depend on `key` (JSON) and on the versions of Meta-World and MuJoCo.

    None if there is no cache folder; nothing is read or written then.
    """
    folder = cache_dir()
    versions = {"metaworld": version("metaworld"), "mujoco": version("mujoco")}
    digest = hashlib.sha256(json.dumps({**versions, **key}).encode()).hexdigest()[:16]
    return folder and folder / f"metaworld_{kind}_{digest}.npz"


def read_arrays(path: Path | None) -> dict[str, NDArray[Any]] | None:
    """All arrays of the file; None if there is no file or it is damaged (zip members carry checksums)."""
    if path is None:
        return None
    try:
        # Opened here because `np.load` leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s) and will be made again.", path, error)
        return None


def write_arrays(path: Path | None, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes a file atomically: another process sees all of it or nothing."""
    if path is None:
        return
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.warning("%s could not be cached (%s): it will be made again next time.", path, error)
