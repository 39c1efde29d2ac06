"""Runs with a teacher, through the command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl.envs.toy import ToyReach
from mtrl.run.checkpoint.codec import load_state
from mtrl.run.checkpoint.rotation import newest_valid
from tests.system.commands import PYTHON_RNG, assert_same_run, rows, run, stopped_after, the_error, tiny

SUCCESS = "coefficient: {name: success, start: 1, end: 0.5, target: 1}"
LINEAR = "coefficient: {name: linear, start: 1, end: 0, until: 0.5}"


def taught(path: Path, rest: str = LINEAR, loss: str = "forward_kl") -> str:
    return f"aux_losses.teacher={{teacher: {{name: policy, path: {path}}}, loss: {{name: {loss}}}, {rest}}}"


def weights(run_dir: Path) -> bytes:
    return (newest_valid(run_dir / "checkpoints") / "policy" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each agent, and with one of a policy with memory."""
    folder = tmp_path_factory.mktemp("teachers")
    for agent in ("ppo", "sac"):
        assert run(*tiny(agent), "eval.every=0", f"run_dir={folder / agent}") == 0
    memory = ("core=lstm", "core.width=8", "agent.num_minibatches=1", f"run_dir={folder / 'lstm'}")
    assert run(*tiny(total_steps=80), "eval.every=0", *memory) == 0
    return folder


@pytest.mark.parametrize("agent", ["ppo", "impala", "sac"])
def test_a_run_with_a_teacher(run_dir: Path, teachers: Path, agent: str) -> None:
    """The log has the distance and the coefficients: of the teacher from 1 to 0 at half of the run, of RL 1."""
    own = teachers / ("sac" if agent == "sac" else "ppo")
    assert run(*tiny(agent), "eval.every=0", taught(own), f"run_dir={run_dir}") == 0
    found: list[dict[str, Any]] = rows(run_dir)
    coefficients = [row["aux/teacher_coefficient/reach-1"] for row in found if "aux/teacher_coefficient/reach-1" in row]
    assert coefficients[0] > 0.5
    assert coefficients == sorted(coefficients, reverse=True)
    assert coefficients[-1] == 0
    losses = [row["aux/teacher_loss/reach-1"] for row in found if "aux/teacher_loss/reach-1" in row]
    assert min(losses[: len(losses) // 2]) > 0
    assert all(row.get("aux/rl_coefficient/reach-1", 1) == 1 for row in found)


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_a_run_with_a_teacher_goes_on_bit_by_bit(run_dir: Path, teachers: Path, agent: str) -> None:
    """With coefficients by success, which are part of the checkpoint."""
    options = (*tiny(agent), "eval.every=0", "schedule_steps=640", taught(teachers / agent, SUCCESS))
    assert run(*options, f"run_dir={run_dir}") == 0
    other = run_dir.with_name("other")
    assert run(*options, "total_steps=320", f"run_dir={other}") == 0
    state = load_state(newest_valid(other / "checkpoints") / "training_state" / "learner")["aux_losses"]["teacher"]
    assert state["coefficient"]["success"].shape == (4,)
    assert run(f"resume={other}", "total_steps=640") == 0
    assert weights(other) == weights(run_dir)


def test_a_run_with_a_teacher_begins_as_one_without(run_dir: Path, teachers: Path) -> None:
    """At a coefficient of zero it is the same run, bit for bit."""
    assert run(*tiny(total_steps=160), "eval.every=0", f"run_dir={run_dir}") == 0
    other = run_dir.with_name("other")
    none = taught(teachers / "ppo", "coefficient: 0")
    assert run(*tiny(total_steps=160), "eval.every=0", none, f"run_dir={other}") == 0
    assert weights(other) == weights(run_dir)


def test_reinforcement_learning_can_wait(run_dir: Path, teachers: Path) -> None:
    """While its coefficient is near 0, a policy approaches its teacher; the values learn all the same."""
    late = "coefficient: 1, rl_coefficient: {name: linear, start: 0, end: 0.001}"
    command = (*tiny(total_steps=2000), "eval.every=0", "agent.num_epochs=4", taught(teachers / "ppo", late))
    assert run(*command, f"run_dir={run_dir}") == 0
    losses = torch.tensor(
        [row["aux/teacher_loss/reach-2"] for row in rows(run_dir) if "aux/teacher_loss/reach-2" in row]
    )
    assert losses[-3:].mean() < 0.7 * losses[:3].mean()


def test_a_student_stopped_and_resumed(run_dir: Path, teachers: Path) -> None:
    """Its dataset, which has overwritten its oldest samples, its feature regression and who acts are restored.

    It is the same run, bit for bit.
    """
    options = (*tiny("distill"), "data.teacher_share=0.5", "eval.every=0", f"data.teacher.path={teachers / 'ppo'}")
    options = (*options, "agent.feature_coef=0.1")
    assert run(*options, f"run_dir={run_dir}") == 0
    other = run_dir.with_name("other")
    with stopped_after(20):
        assert run(*options, f"run_dir={other}") == 143
    assert run(f"resume={other}") == 0
    assert_same_run(run_dir, other, PYTHON_RNG)
    for name in ("train/distill_loss/reach-2", "train/feature_loss/reach-2"):
        losses = [row[name] for row in rows(run_dir) if name in row]
        assert losses[-1] < losses[0]


def test_a_student_of_successes_stopped_and_resumed(
    run_dir: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With targets so large that many episodes succeed; samples are held back when it stops amid episodes.

    And with a teacher whose memory is restored.
    """
    monkeypatch.setattr(ToyReach, "RADIUS", 0.5)
    options = (*tiny("distill"), "data.only_successful=true", "env.horizon=10", "eval.every=0")
    options = (*options, "data.teacher_share=0.5", "data.student_noise=1", f"data.teacher.path={teachers / 'lstm'}")
    assert run(*options, f"run_dir={run_dir}") == 0
    assert any("train/distill_loss/reach-2" in row for row in rows(run_dir))
    other = run_dir.with_name("other")
    with stopped_after(37):
        assert run(*options, f"run_dir={other}") == 143
    state = load_state(newest_valid(other / "checkpoints") / "training_state" / "data")
    assert state["teacher_state"].any()
    assert 0 < int(state["running"]["length"].max()) < 10
    assert int(state["dataset"]["added"].sum()) < 37 * 8
    assert run(f"resume={other}") == 0
    assert_same_run(run_dir, other, PYTHON_RNG)


def test_a_student_with_a_memory_or_another_loss(
    run_dir: Path, teachers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*tiny("distill"), f"data.teacher.path={teachers / 'ppo'}", f"run_dir={run_dir}")
    assert run(*options, "core=lstm") == 2
    assert "its policy has no memory: use core=none" in the_error(capsys)
    assert run(*options, "actors=1") == 2
    assert "A teacher labels in the learner's process: use actors=0." in the_error(capsys)
    assert run(*options, f"data.teacher.path={teachers / 'lstm'}", "agent.feature_coef=0.01") == 2
    assert "lstm) has a memory (core): use another teacher, or agent.feature_coef=0." in the_error(capsys)
    assert run(*tiny(), taught(teachers / "lstm"), f"run_dir={run_dir}") == 2
    assert "lstm) has a memory (core), which only agent=distill can follow" in the_error(capsys)
    assert not run_dir.exists()


def test_a_teacher_with_another_kind_of_distribution(
    run_dir: Path, teachers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the run has a folder."""
    message = "the student's is gaussian and the teacher's tanh_gaussian: use the loss mse or nll"
    for student in ((*tiny("distill"), f"data.teacher.path={teachers / 'sac'}"), (*tiny(), taught(teachers / "sac"))):
        assert run(*student, f"run_dir={run_dir}") == 2
        assert message in the_error(capsys)
        assert not run_dir.exists()


@pytest.mark.parametrize(
    ("rest", "loss", "message"),
    [
        ("coefficient: 1", "kl", "Unknown distill_loss 'kl'. .*Valid: cross_entropy, .*, reverse_kl, smooth_l1"),
        ("coefficient: {name: linear, start: 1}", "mse", "needs a value for: end"),
        ("coefficient: 1, rl_coefficient: 0", "mse", "use agent=distill"),
        ("coefficent: 1", "mse", "Did you mean 'coefficient'?"),
    ],
)
def test_errors(
    run_dir: Path, teachers: Path, capsys: pytest.CaptureFixture[str], rest: str, loss: str, message: str
) -> None:
    assert run(*tiny(), taught(teachers / "ppo", rest, loss), f"run_dir={run_dir}") == 2
    assert re.search(message, the_error(capsys))
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env.num_tasks=5"], "was not trained in reach-4. Its tasks: reach-0, reach-1, reach-2, reach-3"),
        (["env=toy_grid"], "The teacher in .* was not trained in top-left"),
    ],
)
def test_a_teacher_of_another_environment(
    run_dir: Path, teachers: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command = [*tiny(num_envs=20), *arguments, taught(teachers / "ppo")]
    assert run(*command, f"run_dir={run_dir}") == 2
    assert re.search(message, the_error(capsys))


def test_a_scripted_teacher_has_no_probabilities(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted = "aux_losses.teacher={teacher: {name: scripted}, loss: {name: forward_kl}}"
    assert run(*tiny(), scripted, f"run_dir={run_dir}") == 2
    assert "Unknown task of the teacher 'scripted': 'reach-0'" in the_error(capsys)
