"""How long torch's idle threads spin, and how many there are beside actors; and what becomes of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from mtrl.system import tuning

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


@pytest.mark.parametrize(("actors", "expected"), [(0, 4), (3, 4), (6, 2), (20, 1)])
def test_beside_actors(actors: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 cores, 4 are torch's."""
    before = torch.get_num_threads()
    monkeypatch.setattr(tuning, "available_cores", lambda: 8)
    torch.set_num_threads(4)
    try:
        with tuning.threads_beside(actors):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def page_faults(setting: str) -> int:
    """Of filling 64 MB five times, after it has been freed ten times.

    Aligning a block splits a small piece off. glibc keeps up to seven of these per thread without merging them, and
    until then each block needs new memory.
    """
    code = f"""
import resource, torch
from mtrl.system.tuning import keep_freed_memory
{setting}
for _ in range(10):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such setting")
def test_freed_memory_is_kept() -> None:
    assert page_faults("keep_freed_memory()") < 0.1 * page_faults("")
