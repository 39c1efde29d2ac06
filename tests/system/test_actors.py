"""Runs with asynchronous actors: what they log, faults, and that they go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mtrl.run.checkpoint.codec import load_state
from mtrl.run.checkpoint.rotation import newest_valid
from tests.system.commands import TINY, alive, descendants, rows, run, shared_memory, start, the_error, tiny, wait_for

ACTORS = [*tiny("impala"), "actors=2"]
ENDLESS = [*tiny("impala", total_steps=100_000_000), "actors=2", "eval.every=0", "checkpoint.every=0", "log.every=1000"]


def wait_for_rows(run_dir: Path, count: int = 1) -> None:
    metrics = run_dir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= count)


def test_run(run_dir: Path) -> None:
    """The same rows as without actors, and more."""
    assert run(*ACTORS, f"run_dir={run_dir}") == 0
    found = [row for row in rows(run_dir) if "train/policy_lag" in row]
    assert [row["step"] for row in found] == list(range(80, 641, 80))
    # Not all in each row: an actor that falls behind leaves it to the other.
    assert {
        "train/return_mean",
        "train/success_rate/reach-0",
        "train/policy_lag_max",
        "train/policy_lag/actor-1",
    } <= set().union(*found)
    assert found[0]["train/policy_lag"] == 0
    assert all(row["train/policy_lag_max"] >= row["train/policy_lag"] for row in found)
    assert [row["train/actor_restarts"] for row in found] == [0] * 8
    assert not descendants(os.getpid())


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    process = start(*ENDLESS, "run_dir=run", cwd=tmp_path)
    wait_for_rows(tmp_path / "run")
    family = descendants(process.pid)
    assert len(family) == 2
    os.kill(family[0], signal.SIGKILL)
    wait_for_rows(tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (130, "")
    assert out.count("WARNING: Actor") == 1
    assert "Go on with: python -m mtrl.train resume=run" in out
    assert not any(map(alive, family))
    checkpoint = newest_valid(tmp_path / "run" / "checkpoints")
    saved = load_state(checkpoint / "training_state" / "data")
    assert (saved["started"], saved["restarts"]) == (3, 1)

    step = int(checkpoint.name)
    assert run(f"resume={tmp_path / 'run'}", f"total_steps={step + 2000}") == 0
    row = next(row for row in rows(tmp_path / "run") if row["step"] > step)
    assert row["train/actor_restarts"] == 1
    assert rows(tmp_path / "run")[-1]["step"] == step + 2000
    state = load_state(newest_valid(tmp_path / "run" / "checkpoints") / "training_state" / "data")
    assert state["started"] == 5


def test_killed_learner_leaves_nothing(tmp_path: Path) -> None:
    before = shared_memory()
    process = start(*ENDLESS, "run_dir=run", cwd=tmp_path)
    wait_for_rows(tmp_path / "run")
    family = descendants(process.pid)
    assert len(family) == 2
    process.kill()
    process.communicate(timeout=200)
    wait_for(lambda: not any(map(alive, family)))
    assert shared_memory() <= before


def test_exception_in_an_environment(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = ["env=gym", "env.ids=[tests.system.broken_env:Broken-v0]", "env.num_envs=2", "env.num_workers=0"]
    broken += ["env.reports_success=false"]  # no trial, which would find out already
    agent = ["agent=impala", "data.rollout_length=10", *TINY]
    assert run(*broken, *agent, "actors=1", f"run_dir={run_dir}") == 2
    assert "An actor failed: SlotError: step failed in slot 0" in (line := the_error(capsys))
    assert "the wheel came off" in line
