"""Runtime checks of shapes and types in every test, and what the tests share."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import annotations

assert "mtrl" not in sys.modules, "mtrl was imported before its annotations could be checked"
annotations.check("mtrl")

settings.register_profile("mtrl", deadline=None)  # the machine may be busy
settings.load_profile("mtrl")

os.fsync = lambda descriptor: None  # no test cuts the power, and a busy disk takes longer over it than over the test

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that does not exist yet. The working directory is its parent: nothing lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"
