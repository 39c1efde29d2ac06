"""Policies on the Hugging Face hub: a repository holds one, with its card."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtrl.registry import missing_extra
from mtrl.types import UserError

FILES = ("config.json", "model.safetensors", "card.json", "README.md")
"""What belongs to a policy. Nothing else is sent or fetched."""
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether something that is no path can be the name of a repository: `user/name`, and there is no folder `user`."""
    name = os.fspath(name)
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).parent.exists()


def fetch(repository: str) -> Path:
    """The folder of a policy, fetched into the cache of the hub if it is not there as it is now.

    Raises:
        UserError: There is no such repository, it cannot be reached, or `huggingface-hub` is not installed.
    """
    hub = _hub(f"No policy in {repository}: there is no such path. A repository of the Hugging Face hub")
    # Not in the hub's own cache, whose files are links to another folder: policies are read from regular files.
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "mtrl" / repository.replace("/", "--")
    with _one_line(f"No policy in {repository}: there is no such path, and no such repository on the Hugging Face hub"):
        hub.snapshot_download(repository, local_dir=folder, allow_patterns=FILES)
    return folder


def push_to_hub(folder: Path, repository: str, private: bool = False) -> str:
    """Sends a policy with its card, and makes the repository if there is none. Returns its address.

    Raises:
        UserError: It cannot be sent, or `huggingface-hub` is not installed.
    """
    hub = _hub("Sending a policy to the Hugging Face hub")
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"repo must be the name of a repository, user/name, not {repository!r}.")
    with _one_line(f"Cannot send the policy to {repository}"):
        address: str = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=FILES, commit_message="mtrl policy")
    return str(address)


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_extra(what, "huggingface-hub", "hub") from error
    return huggingface_hub


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns what goes wrong on the way into a `UserError`."""
    try:
        yield
    except Exception as error:  # of the hub, of its HTTP client, or of the disk
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what}: {lines[0].rstrip('.') if lines else type(error).__name__}.") from error
