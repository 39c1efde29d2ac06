"""Processes with a part of the batch each learn what one process learns from all of it."""

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
TOLERANCES = {"float64": {"rtol": 1e-9, "atol": 1e-11}, "float32": {"rtol": 1e-4, "atol": 1e-5}}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All results of so many processes, which are equal in all to the last bit, and of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(request.param)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.oracle.ranks", str(folder)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank)},
        )
        for rank in range(request.param)
    ]
    assert [process.wait(timeout=250) for process in processes] == [0] * request.param
    return {name: tensor for file in folder.iterdir() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("case", list(ranks.cases()), ids=lambda case: "-".join(map(str, case.values())))
def test_ranks_are_one_process_with_the_joint_batch(case: ranks.Case, results: dict[str, Tensor]) -> None:
    start = f"{json.dumps(case)} alone "
    expected = {name.removeprefix(start): tensor for name, tensor in results.items() if name.startswith(start)}
    assert len(expected) > 10
    for name, tensor in expected.items():
        found = results[f"{json.dumps(case)} ranks {name}"]
        assert found.dtype == tensor.dtype
        torch.testing.assert_close(
            found, tensor, **TOLERANCES[case["dtype"]], equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_cases_learn() -> None:
    """They move every network, and an absent task's row of the head does not move."""
    case = {**ranks.PLAIN, "agent": "ppo", "value_norm": "popart", "absent": True}
    before, after = ranks.make_learner(case, ranks.ONE_PROCESS).networks.state_dict(), ranks.learned(case)
    moved = (after["policy.head.head.weight"] - before["policy.head.head.weight"]).abs().amax((1, 2))
    assert (moved[:3] > 1e-3).all()
    assert moved[3] == 0
