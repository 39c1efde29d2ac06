"""Two processes with a part of the batch each learn what one process learns from all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracle import ranks

ROOT = Path(__file__).parents[2]
WORLD = 2


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All results of the two processes, which are equal in both to the last bit."""
    file = tmp_path_factory.mktemp("ranks") / "results.safetensors"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.oracle.ranks", str(file)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank)},
        )
        for rank in range(WORLD)
    ]
    assert [process.wait(timeout=250) for process in processes] == [0] * WORLD
    return load_file(file)


@pytest.mark.parametrize("case", list(ranks.cases()), ids=lambda case: "-".join(map(str, case.values())))
def test_ranks_are_one_process_with_the_joint_batch(case: ranks.Case, joined: dict[str, Tensor]) -> None:
    expected = ranks.learned(case)
    for name, tensor in expected.items():
        found = joined[f"{json.dumps(case)} {name}"]
        torch.testing.assert_close(
            found, tensor, rtol=1e-9, atol=1e-11, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_cases_learn() -> None:
    """They move every network, and an absent task's row of the head does not move."""
    case = {**ranks.PLAIN, "agent": "ppo", "value_norm": "popart", "absent": True}
    before, after = ranks.make_learner(case, ranks.ONE_PROCESS).networks.state_dict(), ranks.learned(case)
    moved = (after["policy.head.head.weight"] - before["policy.head.head.weight"]).abs().amax((1, 2))
    assert (moved[:3] > 1e-3).all()
    assert moved[3] == 0
