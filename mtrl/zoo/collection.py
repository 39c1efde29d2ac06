"""Where the policies are that come with the package. Imports nothing of it: `mtrl.policy` looks names up here."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "policies"


def shipped_names() -> list[str]:
    """Names of the shipped policies, sorted."""
    return sorted(file.parent.name for file in FOLDER.glob("*/config.json"))


def shipped_folder(name: str | os.PathLike[str]) -> Path | None:
    """The folder of a shipped policy; None if there is none of that name."""
    return FOLDER / name if os.fspath(name) in shipped_names() else None
