"""The end of a run, however it comes: everything is saved, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mtrl.config import load_yaml
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.run.loop import Loop
from tests.system.commands import (
    PYTHON_RNG,
    Forks,
    alive,
    assert_same_run,
    checkpoint,
    descendants,
    environment,
    evaluate,
    rows,
    run,
    stopped_after,
    the_error,
    tiny,
    wait_for,
)  # fmt: skip

ENDLESS = ("total_steps=100_000_000", "log.every=40", "eval.every=0", "checkpoint.every=0")


def odd(env: str, *others: str, workers: int = 1) -> list[str]:
    """Arguments of a run on one of the odd environments: two slots, rollouts of ten steps."""
    ids = [f"env.ids=[tests.system.odd_envs:{env}-v0]", "env.num_envs=2", f"env.num_workers={workers}"]
    return [*tiny(total_steps=80)[2:], "env=gym", *ids, *others]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def forks_here(tmp_path: Path) -> Iterator[Forks]:
    """With the test's folder as their working folder."""
    server = Forks(tmp_path)
    yield server
    server.close()


def begun(forks: Forks, run_dir: Path, *arguments: str) -> int:
    """Process of a run that has logged something."""
    log = len(forks.log.read_text()) if forks.log.exists() else 0
    process = forks.start(*arguments, f"run_dir={run_dir}")
    metrics = run_dir / "metrics.jsonl"
    wait_for(lambda: (metrics.exists() and metrics.stat().st_size) or not alive(process))
    assert alive(process), forks.log.read_text()[log:]
    return process


def evaluation_rows(run_dir: Path) -> list[int]:
    return [row["step"] for row in rows(run_dir) if "eval/return" in row]


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations that fail, or do not end
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 40], ids=["final", "in-training"])
def test_evaluation_fails(run_dir: Path, capsys: pytest.CaptureFixture[str], every: int) -> None:
    """What was learned is saved before, and `resume=` begins with the evaluation."""
    step = every or 80
    assert run(*odd("Unmended", "checkpoint.every=0"), f"eval.every={every}", f"run_dir={run_dir}") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: Environment worker 0 (slots 0 to 1 by 1): reset failed in slot 1 (task 0, goal 1):")
    assert f"Saved at step {step}, before the evaluation that failed: resume={run_dir} goes on." in out
    assert newest_valid(run_dir / "checkpoints").name == f"{step:012d}"
    assert evaluation_rows(run_dir) == []

    assert run(f"resume={run_dir}") == 2, "it has not been mended yet"
    Path("mended").touch()
    for _ in range(2):  # there is nothing left for the second
        assert run(f"resume={run_dir}") == 0
        assert evaluation_rows(run_dir) == ([40, 80] if every else [80])


def test_killed_after_the_final_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But before the checkpoint that says so: it is made again, and its row is there once."""
    assert run(*tiny(), "run_dir=whole") == 0
    log = Loop._evaluate

    def killed(loop: Loop) -> None:
        log(loop)
        if loop.state.step == 640:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_evaluate", killed)
        assert run(*tiny(), "run_dir=parts") == 130
    assert run("resume=parts") == 0
    assert_same_run(Path("whole"), Path("parts"), PYTHON_RNG)


def test_endless_episodes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment without a time limit is given one, which the protocol and the table tell."""
    assert run(*odd("Endless", workers=0), "eval.max_episode_steps=33", f"run_dir={run_dir}") == 0
    (name,) = (task := json.loads((run_dir / "eval" / f"{80:012d}.json").read_text()))["episodes"]
    assert task["protocol"]["horizon"] is None
    assert task["protocol"]["truncated after"] == "33 steps"
    assert task["episodes"][name]["length"] == [33, 33]
    assert task["episodes"][name]["truncated"] == [True, True]
    assert f"truncated episodes: {name} 2 of 2" in capsys.readouterr().out
    assert evaluate(f"run={run_dir}", "max_episode_steps=7") == 0
    assert json.loads((run_dir / "eval.json").read_text())["episodes"][name]["length"] == [7, 7]


def test_stopped_in_an_endless_evaluation(tmp_path: Path, forks: Forks) -> None:
    path = tmp_path / "run"
    process = forks.start(*odd("Endless", workers=0), "eval.max_episode_steps=1000000000", f"run_dir={path}")
    wait_for(lambda: (path / "checkpoints" / "last").exists() or not alive(process))
    time.sleep(0.5)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143, forks.log.read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("actors", [0, 1])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_to_every_process(tmp_path: Path, forks: Forks, number: signal.Signals, actors: int) -> None:
    """As a scheduler sends it: the children first."""
    workers = [f"actors={actors}", f"env.num_workers={0 if actors else 2}"]
    process = begun(forks, tmp_path / "run", *odd("Hanging"), *ENDLESS, *workers)
    family = descendants(process)
    assert len(family) == (1 if actors else 2)
    for member in (*family, process):
        os.kill(member, number)
    assert forks.wait() == 128 + number, forks.log.read_text()
    log = forks.log.read_text()
    assert "WARNING" not in log
    step = int(newest_valid(tmp_path / "run" / "checkpoints").name)
    assert step > 0
    assert not any(map(alive, family))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["env.num_workers=2"], r"Environment worker (0|1) \(slots \1 to \1 by 2\) did not answer within 5 seconds"),
        (
            ["env.num_workers=0", "actors=1"],
            r"No rollout came within 5 seconds of the stop from actors 0 \(process \d+\)",
        ),
    ],
    ids=["worker", "actor"],
)
def test_environment_hangs(tmp_path: Path, forks_here: Forks, arguments: list[str], said: str) -> None:
    """One step sleeps for ever: the run is saved all the same, and goes on when the environment does."""
    forks = forks_here
    process = begun(forks, tmp_path / "run", *odd("Hanging"), *ENDLESS, *arguments)
    family = descendants(process)
    (tmp_path / "hang").touch()
    wait_for((tmp_path / "hanging").exists)
    metrics, size = tmp_path / "run" / "metrics.jsonl", -1
    while size != (size := metrics.stat().st_size):  # until the learner has used what was collected before
        time.sleep(3)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143, forks.log.read_text()
    assert re.search(f"WARNING: {said}", log := forks.log.read_text()), log
    assert not any(map(alive, family))
    (tmp_path / "hang").unlink()
    step = int(newest_valid(tmp_path / "run" / "checkpoints").name)
    assert step > 0
    forks.start(f"resume={tmp_path / 'run'}", f"total_steps={step + 40}")
    assert forks.wait() == 0, forks.log.read_text()
    assert rows(tmp_path / "run")[-1]["step"] == step + 40


def test_worker_is_killed(tmp_path: Path, forks: Forks) -> None:
    """Nothing asked for the end: it is an error, but what was learned is not lost."""
    process = begun(forks, tmp_path / "run", *odd("Hanging"), *ENDLESS)
    (worker,) = descendants(process)
    os.kill(worker, signal.SIGKILL)
    assert forks.wait() == 2
    log = forks.log.read_text()
    step = int(newest_valid(tmp_path / "run" / "checkpoints").name)
    assert f"Saved at step {step:,}, before the rollout that failed: resume={tmp_path / 'run'} goes on." in log
    assert "error: Environment worker 0 (slots 0 to 1 by 1) ended with exit code -9 (SIGKILL" in log
    assert "Traceback" not in log
    forks.start(f"resume={tmp_path / 'run'}", f"total_steps={step + 40}")
    assert forks.wait() == 0, forks.log.read_text()


def test_twice_within_a_second_is_once(run_dir: Path) -> None:
    """`timeout` sends its signal to the process and to its group."""
    with stopped_after(1), stopped_after(1):
        assert run(*tiny(), f"run_dir={run_dir}") == 143
    assert newest_valid(run_dir / "checkpoints")


def test_nohup(run_dir: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_after(1, signal.SIGHUP):
            assert run(*tiny(), f"run_dir={run_dir}") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------------------------------------------------
# Output that nobody takes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["2>&1 | head -n 2", ">/dev/full 2>&1", ">&- 2>&-"])
def test_output_that_nobody_takes(tmp_path: Path, output: str) -> None:
    """The environment prints, too, in its worker."""
    command = f"set -o pipefail; {sys.executable} -m mtrl.train {' '.join(odd('Talkative'))} run_dir=run {output}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert newest_valid(tmp_path / "run" / "checkpoints").name == f"{80:012d}"
    assert evaluation_rows(tmp_path / "run") == [80]


# ---------------------------------------------------------------------------------------------------------------------
# One command for all attempts
# ---------------------------------------------------------------------------------------------------------------------


def test_requeued(tmp_path: Path, forks: Forks) -> None:
    """The same command after a kill before the first checkpoint, after a stop, and after the end."""
    path = tmp_path / "run"
    command = [*tiny(total_steps=480), "checkpoint.every=0", "eval.every=0"]
    assert run(*command, f"run_dir={tmp_path / 'whole'}") == 0
    command.append("resume=auto")
    process = begun(forks, path, *command, "total_steps=100_000_000")
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -9
    with stopped_after(4):
        assert run(*command, f"run_dir={path}") == 143
    assert [row["step"] for row in rows(path)] == [80, 160, 240, 320], "those of the dead start are gone"
    assert run(*command, f"run_dir={path}") == 0
    assert run(*command, f"run_dir={path}") == 0
    assert_same_run(tmp_path / "whole", path, PYTHON_RNG)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"thesis.txt": ""}, "holds thesis.txt, which no run writes: choose another"),
        ({"config.yaml": "seed: 1", "thesis.txt": ""}, "holds thesis.txt, which no run writes"),
        ({"checkpoints/model.pt": ""}, "is not empty, and not the folder of a run: No config.yaml in"),
        (
            {"config.yaml": "width: 3", "eval/results.csv": ""},
            "config.yaml cannot be used: eval is a group of settings",
        ),
    ],
)
def test_folder_of_something_else_is_left_alone(
    run_dir: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(text)
    assert run(*tiny(), "resume=auto", f"run_dir={run_dir}") == 2
    assert expected in the_error(capsys)
    left = {str(path.relative_to(run_dir)): path.read_text() for path in run_dir.rglob("*") if path.is_file()}
    assert left == files


def test_auto_is_for_the_same_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*tiny(), "resume=auto") == 2
    assert "resume=auto needs the run's folder: run_dir=" in the_error(capsys)
    assert run(*tiny(total_steps=80), "resume=auto", f"run_dir={run_dir}") == 0
    capsys.readouterr()
    assert run(*tiny(total_steps=80), "seed=2", "agent.gamma=0.9", "resume=auto", f"run_dir={run_dir}") == 2
    differ = "agent.gamma=0.99, now 0.9; seed=1, now 2"
    assert the_error(capsys) == f"The run in {run_dir} was begun with {differ}: choose another run_dir."
    assert run(*tiny(total_steps=160), "log.every=40", "resume=auto", "run_dir=run") == 0
    assert rows(run_dir)[-1]["step"] == 160


def policy(run_dir: Path) -> Any:
    tensors = load_file(checkpoint(run_dir) / "policy" / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "obs_norm" not in name}


def test_more_steps_and_the_schedules(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a factor of 0 at the end, nothing is learned after an old schedule; a new one begins to learn again."""
    assert run(*tiny(total_steps=160), "agent.end_factor=0", f"run_dir={run_dir}") == 0
    before = policy(run_dir)
    capsys.readouterr()
    assert run("resume=run", "total_steps=240", "schedule_steps=160") == 0
    assert "Schedules" not in capsys.readouterr().out
    assert all(before[name].equal(tensor) for name, tensor in policy(run_dir).items())
    assert load_yaml(run_dir / "config.yaml")["schedule_steps"] == 160
    assert run("resume=run", "total_steps=320", "schedule_steps=null") == 0
    said = capsys.readouterr().out
    assert (
        "Schedules (learning rates, resets) now end at step 320 instead of 160: schedule_steps=160 keeps them." in said
    )
    assert not all(before[name].equal(tensor) for name, tensor in policy(run_dir).items())
