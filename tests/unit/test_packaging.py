"""What the package says of itself on an index."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`hatch_build.py`, without hatchling, which is only installed while the package is built."""
    for module, name in (("builders.hooks", "BuildHookInterface"), ("metadata", "MetadataHookInterface")):
        interface = ModuleType("interface")
        setattr(interface, name, type(name, (), {}))
        monkeypatch.setitem(sys.modules, f"hatchling.{module}.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metadata(hook: Any, root: Path) -> dict[str, Any]:
    links, found = hook.Links(), {}
    links.root = str(root)
    links.update(found)
    return found


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("git@example.org:lab/mtrl.git", "https://example.org/lab/mtrl"),
        ("https://me:secret@example.org/lab/group/mtrl.git", "https://example.org/lab/group/mtrl"),
        ("ssh://git@example.org:22/lab/mtrl", "https://example.org/lab/mtrl"),
        ("/srv/git/mtrl.git", ""),
        ("../mtrl", ""),
        ("", ""),
    ],
)
def test_address_of_the_repository(hook: Any, origin: str, address: str) -> None:
    assert hook.web_address(origin) == address


def test_links_lead_to_the_repository(hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert metadata(hook, tmp_path)["urls"] == {}
    for arguments in (["init", "-q"], ["remote", "add", "origin", "git@example.org:lab/mtrl.git"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-mx"],
        check=True,
    )
    found = metadata(hook, tmp_path)
    text = found["readme"]["text"]
    commit = found["urls"]["Changelog"].split("/")[-2]
    assert f"[protocol](https://example.org/lab/mtrl/blob/{commit}/docs/protocol.md)" in text
    assert re.search(r"\]\((?!https?:|#)", text) is None
    assert "git clone https://example.org/lab/mtrl mtrl" in text
    assert re.fullmatch("[0-9a-f]{40}", commit)
    monkeypatch.setenv("PATH", "")
    assert metadata(hook, tmp_path)["urls"] == {}  # as in a container without git
