"""Policies go to the Hugging Face hub and come back. Here a server on this machine stands for it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import mtrl.zoo.__main__ as zoo
from tests.system.commands import run, start, tiny

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as sending and fetching small files takes."""

    repositories: dict[str, dict[str, bytes]]

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://{self.headers['Host']}"
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                self.repositories.setdefault(name, {})
                self.answer({"url": f"{address}/{name}"})
            case ["api", "models", user, name, *action] if f"{user}/{name}" in self.repositories:
                self.about(f"{user}/{name}", action, body, address)
            case [user, name, "resolve", _, file] if file in self.repositories.get(f"{user}/{name}", {}):
                content = self.repositories[f"{user}/{name}"][file]
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
            case _:
                self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    def about(self, name: str, action: list[str], body: bytes, address: str) -> None:
        files = self.repositories[name]
        match action:
            case ["preupload", _]:
                asked = [entry["path"] for entry in json.loads(body)["files"]]
                self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
            case ["commit", _]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/{name}/commit/{COMMIT}"})
            case ["tree", _]:
                sizes = {path: (len(content), hashlib.sha1(content).hexdigest()) for path, content in files.items()}
                self.answer([{"type": "file", "path": p, "size": n, "oid": oid} for p, (n, oid) in sizes.items()])
            case _:
                siblings = [{"rfilename": path} for path in files]
                self.answer({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """What is on the hub, by repository and file."""
    Hub.repositories = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield Hub.repositories
        server.shutdown()


def outcome(module: str, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Exit code and output of a command: in a process of its own, because the hub's address is read at the start."""
    process = start(*arguments, cwd=cwd, module=module)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_there_and_back(run_dir: Path, hub: dict[str, dict[str, bytes]]) -> None:
    folder = run_dir.parent
    assert run(*tiny(total_steps=80), f"run_dir={run_dir}") == 0
    assert run("card", f"run={run_dir}", "name=toy", "out=toy", command=zoo) == 0
    code, out, err = outcome("mtrl.zoo", "push", "policy=toy", "repo=me/toy", cwd=folder)
    assert code == 0, err
    assert out.strip().endswith("/me/toy")
    assert hub["me/toy"] == {path.name: path.read_bytes() for path in (folder / "toy").iterdir()}

    code, out, err = outcome("mtrl.evaluate", "policy=me/toy", cwd=folder)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("Agrees with its card within the intervals.")

    code, _, err = outcome("mtrl.evaluate", "policy=me/top", cwd=folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "error: No policy in me/top: there is no such path, and no such repository on the Hugging Face hub:" in err
