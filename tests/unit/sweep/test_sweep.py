"""Sweeps whose jobs are a script that does to each what can happen to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

import mtrl.sweep.__main__
import mtrl.train
from mtrl.run.lock import locked
from mtrl.sweep.jobs import Job, job_name, read_jobs, status
from tests.system.commands import alive, environment, run, the_error, wait_for

PYTHON = sys.executable
SCRIPT = """#!/bin/sh
# In place of the interpreter, which would get: -m mtrl.train, the settings, run_dir=..., resume=auto
for word; do case $word in run_dir=*) run_dir=${word#run_dir=};; seed=*) seed=${word#seed=};; esac; done
echo "begins $*"
case $seed in
    2) echo "error: seed is bad" >&2; exit 2;;
    3) kill -9 $$;;
    4) exec 2>&- >/dev/full; echo nothing || exit 1;;
    5) echo $$ > "$run_dir.pid"; exec sleep 600;;
    7[0-9]) trap 'echo saved; exit 143' TERM; echo $$ > "$run_dir.pid"; while :; do sleep 0.1; done;;
esac
cp -r "$FINISHED" "$run_dir"
"""
EVALUATION = {
    "step": 100,
    "training_s": 60.0,
    "protocol": {"episodes": 1},
    "summary": {
        "tasks": {"a": {"success_rate": 0.25, "mean_return": 1.0}, "b": {"success_rate": 0.5, "mean_return": 2.0}}
    },
}


@pytest.fixture
def place(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory. Jobs are the script; what it copies is a finished run."""
    place = run_dir.parent
    finished = place / "finished"
    (finished / "eval").mkdir(parents=True)
    (finished / "config.yaml").write_text("seed: 1\ntotal_steps: 100\n")
    (finished / "eval" / "000000000100.json").write_text(json.dumps(EVALUATION))
    script = place / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("FINISHED", str(finished))
    return place


def sweep(*arguments: str) -> int:
    return run("-m", "env=toy_reach", *arguments)


def states(folder: Path) -> dict[str, str]:
    return {job.name: job.state for job in read_jobs(folder)}


def test_a_sweep_has_a_folder_and_names_say_what_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("agent.gamma=0.9,0.95", "seed=0,1", "total_steps=100") == 0
    (folder,) = (place / "runs").iterdir()
    assert folder.name.endswith("_sweep")
    names = [f"{number:03}_agent.gamma={gamma}_seed={seed}" for number, (gamma, seed) in enumerate(
        [(0.9, 0), (0.9, 1), (0.95, 0), (0.95, 1)])]  # fmt: skip
    assert states(folder) == dict.fromkeys(names, "done")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(names)
    assert (folder / "multirun.yaml").is_file()
    out = capsys.readouterr().out
    assert "\n4 done.\n" in out
    assert "\ndone     000_agent.gamma=0.9_seed=0   success 0.375\n" in out  # (0.25 + 0.5) / 2
    (log,) = folder.glob("003_*.log")
    expected = [
        "env=toy_reach",
        "total_steps=100",
        "agent.gamma=0.95",
        "seed=1",
        f"run_dir={folder.relative_to(place)}/{names[3]}",
    ]
    assert log.read_text() == f"begins -m mtrl.train {' '.join(expected)} resume=auto\n"


def test_jobs_that_fail_do_not_end_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=1,2,3,4,6", "sweep_dir=mine") == 1
    expected = {"000_seed=1": "done", "001_seed=2": "failed", "002_seed=3": "failed", "003_seed=4": "failed"}
    assert states(Path("mine")) == {**expected, "004_seed=6": "done"}
    out = capsys.readouterr().out
    assert "\n2 done, 3 failed.\n" in out
    assert "\nfailed   001_seed=2  exit code 2: error: seed is bad\n" in out
    assert "\nfailed   002_seed=3  killed by signal 9: begins " in out
    assert run("status", "mine", command=mtrl.sweep.__main__) == 0
    assert capsys.readouterr().out in out


def test_sweeps_of_one(place: Path) -> None:
    assert sweep("aggregation=glob(m*n,exclude=measured*)", "sweep_dir=pattern") == 0
    assert states(Path("pattern")) == {"000_aggregation=mean": "done"}
    assert sweep("seed=1", "sweep_dir=one") == 0
    assert states(Path("one")) == {"000": "done"}


def test_restart_runs_what_failed_or_waits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=1,2", "sweep_dir=mine") == 1
    Job(Path("mine"), "002_seed=7", ["seed=7"]).save()
    done = Path("mine/000_seed=1.log").read_text()
    Path("script").write_text(SCRIPT.replace("2) echo", "20) echo"))
    multirun = Path("mine/multirun.yaml").read_text()
    ConfigStore.instance().repo.pop("task_sampling")  # as in another process, which has registered no components
    assert run("restart", "mine", command=mtrl.sweep.__main__) == 0
    assert set(states(Path("mine")).values()) == {"done"}
    assert Path("mine/000_seed=1.log").read_text() == done
    assert Path("mine/001_seed=2.log").read_text().count("begins") == 2
    assert Path("mine/multirun.yaml").read_text() == multirun
    assert "2 jobs to run in mine." in capsys.readouterr().out
    assert run("restart", "mine", command=mtrl.sweep.__main__) == 0
    assert "0 jobs to run in mine." in capsys.readouterr().out


def test_a_sweep_that_launches_jobs_is_not_restarted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=1,2", "sweep_dir=mine") == 1
    capsys.readouterr()
    with locked(Path("mine/sweep.json")):
        assert run("restart", "mine", command=mtrl.sweep.__main__) == 2
    assert the_error(capsys) == "The sweep in mine is still running: stop it, or wait until it has ended."


def test_sweeps_of_the_same_second(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.run.folder.time.strftime", lambda _: "now")
    assert sweep("seed=1,6") == sweep("seed=7,8") == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["now_sweep", "now_sweep-1"]
    assert states(Path("runs/now_sweep")) == {"000_seed=1": "done", "001_seed=6": "done"}
    assert states(Path("runs/now_sweep-1")) == {"000_seed=7": "done", "001_seed=8": "done"}


def test_a_job_outlives_the_sweep(place: Path) -> None:
    """Killed, the sweep cannot stop the job, which is then not begun twice, and has failed when it ends."""
    code = (
        "import sys; from mtrl.sweep.jobs import *; sys.executable = sys.argv[1]; "
        "Job(Path('.'), '000_seed=5', ['seed=5']).run()"
    )
    with subprocess.Popen([PYTHON, "-c", code, str(Path("script").resolve())], env=environment()) as process:
        wait_for(lambda: Path("000_seed=5.pid").exists() and Path("000_seed=5.pid").read_text().endswith("\n"))
        process.kill()
    job, pid = Job(Path(), "000_seed=5", ["seed=5"]), int(Path("000_seed=5.pid").read_text())
    assert job.state == "running"
    with pytest.raises(mtrl.train.UserError, match="Another process"):
        job.run()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert job.state == "failed"


def test_interrupted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM stops the job that runs; the rest waits."""

    def interrupt(
        process: subprocess.Popen[bytes], timeout: float, wait: Callable[..., int] = subprocess.Popen.wait
    ) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        signal.raise_signal(signal.SIGTERM)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    assert sweep("seed=5,6", "sweep_dir=mine") == 143
    assert states(Path("mine")) == {"000_seed=5": "failed", "001_seed=6": "waiting"}
    assert read_jobs(Path("mine"))[0].exit_code == -signal.SIGTERM


IN_PLACE_OF_PYTHON = """import sys
from pathlib import Path

if any("loky" in word for word in sys.orig_argv):  # a process of joblib, which starts jobs
    sys.executable = str(Path(__file__).parent / "script")
"""


@pytest.mark.timeout(600)  # three processes import torch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_while_jobs_run_in_parallel(place: Path, number: signal.Signals) -> None:
    """Those that run save themselves, no other begins, and nothing is left behind. Ctrl-C goes to every process."""
    (place / "sitecustomize.py").write_text(IN_PLACE_OF_PYTHON)
    of_here = environment()
    arguments = ["-m", "env=toy_reach", "seed=71,72,73,74", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [PYTHON, "-m", "mtrl.train", *arguments, "sweep_dir=mine"],
        cwd=place,
        env={**of_here, "PYTHONPATH": os.pathsep.join([of_here["PYTHONPATH"], str(place)])},
        start_new_session=True,
    )
    begun = ["000_seed=71", "001_seed=72"]
    try:
        wait_for(lambda: all(Path(f"mine/{name}.pid").exists() for name in begun), 300)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.wait(timeout=200) == 128 + number
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert states(Path("mine")) == {
        **dict.fromkeys(begun, "failed"), "002_seed=73": "waiting", "003_seed=74": "waiting"
    }  # fmt: skip
    assert [job.exit_code for job in read_jobs(Path("mine"))] == [143, 143, None, None]
    assert all(Path(f"mine/{name}.log").read_text().endswith("saved\n") for name in begun)
    assert not Path("mine/stopping").exists()


def test_names_of_jobs() -> None:
    assert job_name(3, ["++agent.gamma=0.9", "init_from=runs/a b"]) == "003_agent.gamma=0.9_init_from=runs-a-b"
    assert len(job_name(12345, [f"network.trunk.groups={list(range(1000))}"])) == 120
    assert job_name(7, []) == "007"


def test_progress_of_what_runs(tmp_path: Path) -> None:
    job = Job(tmp_path, "000_seed=1", ["seed=1"])
    assert job.state == "waiting"
    job.run_dir.mkdir()
    (job.run_dir / "config.yaml").write_text("total_steps: 20000\ntotal_updates: null\n")
    (job.run_dir / "metrics.jsonl").write_text('{"step": 1000}\n{"step": 2000}\n{"st')
    with locked(job.log):
        assert status([job]) == ["1 running.", "running  000_seed=1  2,000 of 20,000"]
    assert status([job]) == ["1 failed.", "failed   000_seed=1  it ended unnoticed: it printed nothing"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=1,2", "sed=3"], "Unknown key 'sed'. Did you mean 'seed'?"),
        (
            ["seed=1,2", "sweep_dir=finished"],
            "sweep_dir=finished exists: choose another, or python -m mtrl.sweep restart",
        ),
        (["agent.gamma=interval(0,1)"], "interval(...) needs a sweeper that searches: hydra/sweeper=optuna."),
        (["seed=1,2", "run_dir=a"], "resume and run_dir name one run"),
        (["seed=1,2", "hydra/launcher=nope"], "Could not find 'hydra/launcher/nope'"),
        (["agent=ppo,nope"], "Unknown agent 'nope'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], expected: str
) -> None:
    before = set(place.iterdir())
    assert sweep(*arguments) == 2
    assert expected in the_error(capsys)
    assert set(place.iterdir()) == before


@pytest.mark.parametrize(
    ("setting", "package", "extra"),
    [
        ("hydra/launcher=joblib", "hydra-joblib-launcher", "sweep"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher", "sweep"),
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper", "sweep"),
    ],
)
def test_missing_plug_ins(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setattr("mtrl.sweep.launch.find_spec", lambda _: None)
    assert sweep("seed=1,2", setting) == 2
    error = the_error(capsys)
    assert f"{setting} needs {package}: pip install" in error
    assert f"[{extra}]" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["watch", "x"], "Unknown command 'watch'. Valid: status, restart"),
        (["status"], "status needs the folder of a sweep"),
        (["status", "finished"], "finished is not the folder of a sweep: there is no sweep.json in it."),
        (["status", "finished", "x"], "status takes one folder"),
        (["restart", "finished", "seed=3"], "seed=3: a restart takes only settings of the launcher"),
    ],
)
def test_mistakes_in_commands_about_sweeps(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], expected: str
) -> None:
    assert run(*arguments, command=mtrl.sweep.__main__) == 2
    assert expected in the_error(capsys)


@pytest.mark.parametrize("stored", ["[]", '{"arguments": "x"}', '{"arguments": [], "exit_code": "0"}', "{"])
def test_damaged_records(place: Path, stored: str) -> None:
    Path("sweep.json").write_text("{}")
    Path("000_seed=1.json").write_text(stored)
    with pytest.raises(mtrl.train.UserError, match=r"000_seed=1\.json cannot be read"):
        read_jobs(Path())
