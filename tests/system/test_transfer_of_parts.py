"""Runs that start from another run, and what they do with its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtrl.run.checkpoint.codec import load_state
from tests.system.commands import PYTHON_RNG, assert_same_run, checkpoint, run, stopped_after, the_error, tiny

SHORT = ("eval.every=0", "eval.episodes_per_task=1")


@pytest.mark.parametrize("agent", ["ppo", "sac", "impala", "distral", "distill"])
def test_frozen_parts_and_a_pull_in_every_learner(agent: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    source = "ppo" if agent == "distill" else agent
    common = ["agent.obs_norm=running", *SHORT, "total_steps=320"]
    # A student that is its teacher would not move: it takes no head.
    teacher = [f"data.teacher.path={before}", "init_from_parts=[trunk,obs_norm]"] if agent == "distill" else []
    assert run(*tiny(source), *common, f"run_dir={before}") == 0
    by_part = ["freeze={trunk: 1, obs_norm: 1}", "lr_factors.policy=0.5", "l2_sp={policy: 0.1}"]
    command = [*tiny(agent), *common, *teacher, f"init_from={before}", *by_part, f"run_dir={after}"]
    assert run(*command) == 0
    old, new = (load_state(checkpoint(path) / "training_state" / "learner")["networks"] for path in (before, after))
    kept = [name for name in new if (".trunk." in name and "task_input" not in name) or ".obs_norm." in name]
    assert len(kept) > 4
    for name in kept:
        assert torch.equal(old[name], new[name]) == (not name.startswith("target_")), name
    moved = [name for name in new if name.startswith("policy.") and name not in kept]
    assert moved
    assert not any(torch.equal(old[name], new[name]) for name in moved)


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_the_start_is_resumed(agent: str, tmp_path: Path) -> None:
    before, whole, parts = (tmp_path / name for name in ("before", "whole", "parts"))
    assert run(*tiny(agent), *SHORT, "total_steps=160", f"run_dir={before}") == 0
    command = [*tiny(agent), *SHORT, f"init_from={before}", "l2_sp.policy=5", "freeze.head=0.6"]
    assert run(*command, f"run_dir={whole}") == 0
    with stopped_after(3):
        assert run(*command, f"run_dir={parts}") == 143
    assert run(f"resume={parts}") == 0
    assert_same_run(whole, parts, PYTHON_RNG)
    assert "l2_sp_start" in load_state(checkpoint(parts) / "training_state" / "learner")


@pytest.mark.parametrize(("given", "expected"), [("null", 0.5), ("0.2", 0.2)])
def test_the_noise_of_a_policy_that_is_taken(given: str, expected: float, tmp_path: Path) -> None:
    """By default its own; otherwise the one that is asked for, whatever wraps the learner."""
    before, after = tmp_path / "before", tmp_path / "after"
    assert run(*tiny(), *SHORT, "total_steps=80", "agent.initial_std=0.5", "freeze.policy=1", f"run_dir={before}") == 0
    command = [*tiny(), *SHORT, "total_steps=80", f"init_from={before}", f"agent.initial_std={given}"]
    assert run(*command, "freeze.policy=1", f"run_dir={after}") == 0
    log_std = load_state(checkpoint(after) / "training_state" / "learner")["networks"]["policy.head.log_std"]
    torch.testing.assert_close(log_std.exp(), torch.full_like(log_std, expected))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("freeze.trunc=0.5", "Unknown part 'trunc'. Did you mean 'trunk'? Valid: "),
        ("freeze.trunk=1.5", "freeze.trunk must be a share of training, above 0 and at most 1, not 1.5"),
        ("lr_factors.trunk=0", "lr_factors.trunk must be positive, not 0: freeze.trunk=1 stops a part"),
        ("l2_sp.trunk=1", "l2_sp pulls to the weights of init_from, which is not given"),
    ],
)
def test_bad_parts(argument: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(*tiny(), argument, f"run_dir={tmp_path / 'run'}") == 2
    assert expected in the_error(capsys)
    assert not (tmp_path / "run").exists()
