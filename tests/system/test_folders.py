"""Run folders: several processes want the same one, and their names may hold anything."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtrl.config import load_yaml
from mtrl.run.lock import locked
from tests.system.commands import (
    PYTHON_RNG,
    assert_same_run,
    environment,
    evaluate,
    rows,
    run,
    start,
    stopped_after,
    the_error,
    tiny,
    wait_for,
)  # fmt: skip

SHORT = ("eval.every=0", "eval.episodes_per_task=1")

AT_ONCE = """
import json, os, sys
import mtrl.train, mtrl.build, mtrl.envs
mtrl.envs.register_all()
began, begin = os.pipe()
children = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(begin)
        log = os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["mtrl", *arguments]
        os.read(began, 1)
        mtrl.train.main()
    children.append(child)
os.close(begin)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
"""Commands in processes that begin at the same moment; prints their exit codes."""


def at_once(folder: Path, *commands: list[str]) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, json.dumps(commands)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    codes: list[int] = json.loads(done.stdout)
    return codes


# ---------------------------------------------------------------------------------------------------------------------
# Two processes
# ---------------------------------------------------------------------------------------------------------------------


def test_runs_that_begin_at_once(tmp_path: Path) -> None:
    """In a loop over settings, `&` begins several in one second: each has a folder of its own."""
    commands = [[*tiny(total_steps=160), *SHORT, f"agent.optimizer.lr={lr}"] for lr in (1e-4, 2e-4, 3e-4, 4e-4)]
    assert at_once(tmp_path, *commands) == [0, 0, 0, 0]
    folders = list((tmp_path / "runs").iterdir())
    assert sorted(load_yaml(path / "config.yaml")["agent"]["optimizer"]["lr"] for path in folders) == [
        1e-4, 2e-4, 3e-4, 4e-4,
    ]  # fmt: skip
    for path in folders:
        assert [row["step"] for row in rows(path)] == [80, 160, 160]
        lr = load_yaml(path / "config.yaml")["agent"]["optimizer"]["lr"]
        assert f"agent.optimizer.lr={lr}" in (path / "env.txt").read_text()


def test_sweeps_that_begin_at_once(tmp_path: Path) -> None:
    command = [*tiny(total_steps=80), *SHORT, "-m", "seed=1,2"]
    assert at_once(tmp_path, command, command) == [0, 0]
    seeds = [load_yaml(path)["seed"] for path in (tmp_path / "runs").glob("*/*/config.yaml")]
    assert sorted(seeds) == [1, 1, 2, 2]


@pytest.mark.parametrize("exists", [False, True])
def test_one_of_them_gets_a_named_folder(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "run").mkdir()
    command = [*tiny(total_steps=160), *SHORT, "run_dir=run"]
    assert sorted(at_once(tmp_path, command, command, command)) == [0, 2, 2]
    errors = [line for path in tmp_path.glob("*.log") for line in path.read_text().splitlines() if "error" in line]
    assert errors == ["error: run_dir=run is not empty: choose another, or resume=run to go on with that run."] * 2
    assert [row["step"] for row in rows(tmp_path / "run")] == [80, 160, 160]


def test_one_of_them_resumes(tmp_path: Path) -> None:
    """Whichever it is, the run goes on as if it were alone."""
    for name in ("run", "alone"):
        assert run(*tiny(total_steps=320), *SHORT, f"run_dir={tmp_path / name}") == 0
    longer = "total_steps=1280"
    assert run(f"resume={tmp_path / 'alone'}", longer) == 0
    codes = at_once(tmp_path, *[["resume=run", longer]] * 3)
    assert sorted(codes) == [0, 2, 2]
    (message,) = {(tmp_path / f"{number}.log").read_text() for number, code in enumerate(codes) if code}
    assert message == "error: Another process is training in run: wait until it has ended, or stop it.\n"
    assert_same_run(tmp_path / "alone", tmp_path / "run", PYTHON_RNG)


def test_a_second_process_changes_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stopped_after(3):
        assert run(*tiny(), f"run_dir={run_dir}") == 143
    contents = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    with locked(run_dir / "env.txt"):
        assert run(f"resume={run_dir}", "total_steps=1280") == 2
        assert the_error(capsys).startswith(f"Another process is training in {run_dir}")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == contents
    assert run(f"resume={run_dir}") == 0


def test_a_killed_process_leaves_no_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(*tiny(total_steps=1_000_000), *SHORT, "run_dir=run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run/checkpoints/last").exists())
    assert run(f"resume={tmp_path / 'run'}") == 2
    assert "Another process is training in" in the_error(capsys)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step = int((tmp_path / "run/checkpoints/last").readlink().name)
    assert run(f"resume={tmp_path / 'run'}", f"total_steps={step}") == 0


def test_without_locks(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert run(*tiny(total_steps=80), *SHORT, f"run_dir={run_dir}") == 0
    assert run(f"resume={run_dir}", "total_steps=160") == 0


# ---------------------------------------------------------------------------------------------------------------------
# Sessions, and names
# ---------------------------------------------------------------------------------------------------------------------


def test_every_session_is_described(run_dir: Path) -> None:
    assert run(*tiny(total_steps=80), *SHORT, f"run_dir={run_dir}") == 0
    first = (run_dir / "env.txt").read_text()
    assert run(f"resume={run_dir}", "total_steps=160") == 0
    both = (run_dir / "env.txt").read_text()
    assert both.startswith(first + "\ntime: ")
    assert f"\ncommand: python -m mtrl.train resume={run_dir} total_steps=160\n" in both


NAMES = ("a b=c,d", 'it\'s "x"', "~", "100% läuft", "${oc.env:HOME}\\", "a\n[b{#", "$(x)*")


@pytest.mark.parametrize("name", NAMES)
def test_any_name(run_dir: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Trains, stops, goes on as the hint says, evaluates, and begins another run from its weights."""
    with stopped_after(1):
        assert run(*tiny(total_steps=160), *SHORT, f"run_dir={name}") == 143
    _, hint = capsys.readouterr().out.split("Go on with: python -m mtrl.train ")
    assert [path.name for path in run_dir.parent.iterdir()] == [name]
    assert run(*shlex.split(hint)) == 0
    assert load_yaml(Path(name) / "config.yaml")["run_dir"] == name
    assert evaluate(f"run={name}", f"out={name}/of {name}") == 0
    assert (Path(name) / f"of {name}" / "eval.json").is_file()
    assert run(*tiny(total_steps=80), *SHORT, f"init_from={name}", "run_dir=second") == 0
    assert load_yaml(Path("second/config.yaml"))["init_from"] == name


def test_name_that_is_too_long(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("run_dir", "resume", "init_from"):
        assert run(*tiny(), f"{key}={'x' * 300}") == 2
        assert "x" * 300 in the_error(capsys)
