"""Checksums that detect damaged or edited files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.checks import not_negative
from mtrl.files import sync
from mtrl.registry import construct
from mtrl.run.checkpoint.codec import CheckpointError
from mtrl.run.reading import check_inside, ordinary, read_json, reason
from mtrl.state import shown
from mtrl.types import UserError


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Content:
    """Size and checksum of a file."""

    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Content:
        """The size and checksum of a file as it is now. Raises `OSError`."""
        return cls(path.stat().st_size, _sha256(path))

    def check(self, path: Path, root: Path) -> None:
        """Raises `OSError` or `ValueError` unless a file in `root` has this content."""
        size = ordinary(path, root).stat().st_size
        if size != self.size:
            raise ValueError(f"{size} bytes instead of {self.size}")
        if _sha256(path) != self.sha256:
            raise ValueError("its content was altered (wrong sha256)")


def write_manifest(folder: Path, step: int) -> None:
    """Writes the manifest of a checkpoint, and returns once all its files are on the disk. Raises `OSError`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): vars(Content.of(path)) for path in paths}
    text = json.dumps(sealed({"step": step, "files": files}), indent=1, allow_nan=False)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    for path in (*paths, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(path)


@dataclass(frozen=True)
class Manifest:
    """The step of a checkpoint and its files."""

    step: int
    files: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        not_negative(step=self.step)

    def entries(self) -> dict[str, Content]:
        """The files by name. Raises `UserError` for an invalid entry."""
        return {name: construct(f"files: {shown(name)}", Content, entry) for name, entry in self.files.items()}


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint. Raises `OSError`, `ValueError` or `UserError`."""
    manifest = open_sealed(read_json(folder / "manifest.json", folder))
    return construct("manifest", Manifest, manifest)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a document its sha256."""
    return {**document, "sha256": _digest(document)}


def open_sealed(document: Any) -> dict[str, Any]:
    """The inverse of `sealed`. Raises `ValueError` if the document was changed."""
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, found {shown(document)}")
    content = {key: value for key, value in document.items() if key != "sha256"}
    if document.get("sha256") != _digest(content):
        raise ValueError("its content was altered (wrong sha256)")
    return content


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: Names the first damaged file and what is wrong with it.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}.")
    name = "manifest.json"
    try:
        if path.parent.name == "checkpoints":  # links to another checkpoint are fine there: `last` is one
            check_inside(path, path.parent)
        for name, expected in read_manifest(path).entries().items():
            expected.check(path / name, path)
    except FileNotFoundError:
        raise _damaged(path, name, "missing") from None
    except (OSError, ValueError, UserError) as error:
        raise _damaged(path, name, reason(error)) from error


def _damaged(path: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"Checkpoint {path} is damaged: {shown(name).strip(chr(39))}: {what}.")
