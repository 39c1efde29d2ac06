"""Build hooks: `configs/` goes into the wheel as `mtrl/configs`; on an index, links lead to the repository.

Not the static force-include table: that also copies the files on `pip install -e`, where they would go stale.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class Configs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["configs"] = "mtrl/configs"


class Links(MetadataHookInterface):
    """README and URLs of the project, which has the address of the repository that it is built in a clone of."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        origin, commit = self._git("remote", "get-url", "origin"), self._git("rev-parse", "HEAD")
        address = web_address(origin)
        metadata["urls"] = {}
        if address:
            text = text.replace("<address of this repository>", address)
            text = re.sub(r"\]\((?!https?:|#)", f"]({address}/blob/{commit}/", text)
            changes = f"{address}/blob/{commit}/CHANGELOG.md"
            docs = f"{address}/tree/{commit}/docs"
            metadata["urls"] = {"Repository": address, "Documentation": docs, "Changelog": changes}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}

    def _git(self, *arguments: str) -> str:
        """What git says of the clone; "" if this is none, or a machine without git builds it."""
        if not Path(self.root, ".git").exists() or shutil.which("git") is None:
            return ""
        done = subprocess.run(["git", "-C", self.root, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()


def web_address(origin: str) -> str:
    """The page of a repository from the address that it was cloned from, without user and password; "" for a folder."""
    found = re.fullmatch(r"(?:https?://|ssh://)?(?:[^@/]*@)?([\w.-]+\.\w+)(?::\d+)?[:/]([\w./-]+?)(?:\.git)?/?", origin)
    return f"https://{found[1]}/{found[2]}" if found else ""
