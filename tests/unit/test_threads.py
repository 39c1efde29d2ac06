"""How long torch's idle threads spin is settled before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Finder)
import mtrl.train
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_when_torch_is_imported(given: dict[str, str], expected: str) -> None:
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run([sys.executable, "-c", SHOW], env=others | given, capture_output=True, text=True)
    assert shown.stdout.strip() == expected, shown.stderr
