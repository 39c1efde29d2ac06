"""A sweep of trainings, most of which fail in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

import mtrl.sweep.__main__
from mtrl.sweep.jobs import read_jobs
from tests.system.commands import AGENTS, ROOT, TINY, run

NAMES = ("Broken", "Killed", "Full", "Sound")


@pytest.mark.timeout(600)  # four trainings begin in processes of their own
def test_trainings_that_fail_do_not_end_the_others(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment raises, the process is killed, and nothing can be written any more."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ids = ",".join(f"[tests.system.broken_env:{name}-v0]" for name in NAMES)
    env = ["env=gym", "env.num_envs=2", "env.num_workers=0", "env.reports_success=false", f"env.ids={ids}"]
    assert run("-m", *env, *AGENTS["ppo"], *TINY, "total_steps=160", "sweep_dir=sweep") == 1
    out = capsys.readouterr().out
    assert "\n1 done, 3 failed.\n" in out
    jobs = dict(zip(NAMES, read_jobs(Path("sweep")), strict=True))
    assert {name: job.state for name, job in jobs.items()} == {**dict.fromkeys(NAMES, "failed"), "Sound": "done"}
    assert "the wheel came off" in jobs["Broken"].reason()
    assert jobs["Killed"].exit_code == -9
    assert (jobs["Sound"].run_dir / "checkpoints" / "last").exists()
    for name in ("Broken", "Killed"):
        assert (jobs[name].run_dir / "config.yaml").is_file()
    monkeypatch.setattr("mtrl.sweep.jobs.Job.run", lambda job: 1)
    assert run("restart", "sweep", command=mtrl.sweep.__main__) == 1
    assert "3 jobs to run in sweep." in capsys.readouterr().out
