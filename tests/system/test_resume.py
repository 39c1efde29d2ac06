"""N steps, a stop of any kind, and N more are 2N steps: bit for bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtrl.config import load_yaml
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.run.loop import Loop
from tests.system.commands import (
    PYTHON_RNG,
    Forks,
    alive,
    assert_same_run,
    descendants,
    evaluations,
    rows,
    run,
    start,
    stopped_after,
    tiny,
    wait_for,
)  # fmt: skip

GYM = ["env=gym", "env.ids=[Pendulum-v1]", "env.num_envs=2", "eval.episodes_per_task=1", "eval.every=0"]


def gym(agent: str, workers: int, total_steps: int = 160) -> list[str]:
    """Arguments of a run on a gymnasium environment."""
    return [*tiny(agent, total_steps=total_steps)[2:], *GYM, f"env.num_workers={workers}", "checkpoint.every=40"]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.mark.parametrize(
    ("command", "updates"),
    [
        pytest.param(tiny("ppo"), 5, id="ppo"),
        pytest.param(tiny("impala"), 1, id="impala"),
        pytest.param(tiny("impala", "toy_grid"), 3, id="impala-discrete"),
        pytest.param([*tiny("impala", "toy_grid"), "core=lstm", "core.width=8"], 3, id="impala-lstm"),
        pytest.param(tiny("two_columns"), 3, id="two_columns"),
        pytest.param(tiny("sac", total_steps=240), 12, id="sac"),
        pytest.param([*tiny("sac", total_steps=240), "agent.obs_norm=running"], 2, id="sac-norm"),
        pytest.param([*tiny("ppo"), "task_encoder=context", "env.history=3"], 2, id="ppo-context"),
        pytest.param([*tiny("ppo"), "task_encoder=embedding", "network=mlp", "value_norm=none"], 2, id="ppo-embedding"),
        pytest.param([*tiny("ppo"), "network=soft_modules", "task_sampling=ea4c"], 5, id="ppo-soft_modules-ea4c"),
        pytest.param([*tiny("ppo"), "aggregation=gradvac", "weighting=gradnorm"], 5, id="ppo-gradvac-gradnorm"),
        pytest.param([*tiny("ppo"), "aggregation=pcgrad", "weighting=focal"], 5, id="ppo-pcgrad-focal"),
        pytest.param([*tiny("sac", total_steps=240), "weighting=famo"], 12, id="sac-famo"),
        pytest.param(
            [*tiny("sac", total_steps=240), "value_head=hl_gauss", "value_norm=return_range"], 12, id="sac-return_range"
        ),
        # Resets at a third and at two thirds of 30 iterations.
        pytest.param([*tiny("sac", total_steps=240), "value_norm=mean_reward", "resets=2"], 15, id="sac-resets"),
        pytest.param(gym("ppo", 0), 2, id="ppo-gym"),
        pytest.param(gym("sac", 0), 30, id="sac-gym", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed(run_dir: Path, command: list[str], updates: int) -> None:
    assert run(*command, "run_dir=whole") == 0
    with stopped_after(updates):
        assert run(*command, "run_dir=parts") == 143
    assert run("resume=parts") == 0
    assert_same_run(Path("whole"), Path("parts"), PYTHON_RNG)


def test_stopped_again_and_again(run_dir: Path) -> None:
    command = tiny("ppo")
    assert run(*command, "run_dir=whole") == 0
    with stopped_after(1):
        assert run(*command, "run_dir=parts") == 143
    for _ in range(3):
        with stopped_after(2):
            run("resume=parts")
    assert run("resume=parts") == 0
    assert_same_run(Path("whole"), Path("parts"), PYTHON_RNG)


@pytest.mark.parametrize("final", [False, True], ids=["in-training", "final"])
def test_stopped_in_an_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch, final: bool) -> None:
    command = tiny("ppo")
    assert run(*command, "run_dir=whole") == 0
    evaluate, count = Loop._evaluate, 0

    def interrupted(loop: Loop) -> None:
        nonlocal count
        count += 1
        if count == 1 + final:
            signal.raise_signal(signal.SIGINT)
        evaluate(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_evaluate", interrupted)
        assert run(*command, "run_dir=parts") == 130
    assert run("resume=parts") == 0
    assert_same_run(Path("whole"), Path("parts"), PYTHON_RNG)


def test_finished_run_is_left_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "again"):
        assert run(*tiny(), f"run_dir={name}") == 0
    assert run("resume=again") == 0
    assert "has done its total_steps=640" in capsys.readouterr().out
    assert_same_run(Path("whole"), Path("again"), PYTHON_RNG)


def test_more_steps_than_planned(run_dir: Path) -> None:
    assert run(*tiny(total_steps=320), f"run_dir={run_dir}") == 0
    assert run(f"resume={run_dir}", "total_steps=640", "eval.every=160") == 0
    assert sorted(evaluations(run_dir)) == [f"{step:012d}.json" for step in (320, 480, 640)]
    assert load_yaml(run_dir / "config.yaml")["total_steps"] == 640
    assert [row["step"] for row in rows(run_dir)] == sorted(row["step"] for row in rows(run_dir))


def test_extension_survives_a_stop(run_dir: Path) -> None:
    assert run(*tiny(total_steps=160), f"run_dir={run_dir}") == 0
    with stopped_after(2):
        assert run(f"resume={run_dir}", "total_steps=640") == 143
    assert run(f"resume={run_dir}") == 0
    assert f"{640:012d}.json" in evaluations(run_dir)


def test_what_came_after_the_checkpoint_is_dropped(run_dir: Path) -> None:
    assert run(*tiny(), f"run_dir={run_dir}") == 0
    newest = run_dir / "checkpoints" / "000000000640" / "manifest.json"
    newest.write_text("{}")
    with stopped_after(1):
        assert run(f"resume={run_dir}") == 143
    assert max(row["step"] for row in rows(run_dir)) <= 560
    assert sorted(evaluations(run_dir)) == ["000000000320.json"]


# ---------------------------------------------------------------------------------------------------------------------
# Signals and kills of real processes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal(tmp_path: Path, number: int, code: int) -> None:
    long = tiny(total_steps=100_000_000)
    process = start(*long, "log.every=1000", "eval.every=0", "checkpoint.every=0", "run_dir=run", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (code, "")
    assert "Go on with: python -m mtrl.train resume=run" in out
    stopped = int(newest_valid(tmp_path / "run" / "checkpoints").name)
    assert stopped > 0
    assert run(f"resume={tmp_path / 'run'}", f"total_steps={stopped + 80}") == 0
    assert rows(tmp_path / "run")[-1]["step"] >= stopped + 80


@pytest.mark.parametrize("agent", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path: Path, forks: Forks, agent: str) -> None:
    command = [*tiny(agent, total_steps=1200), "checkpoint.every=80", "eval.every=240", "log.every=240"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    forks.start(*command, f"run_dir={whole}")
    assert forks.wait() == 0
    chance, kills = random.Random(agent), 0
    arguments = [*command, f"run_dir={parts}"]
    while True:
        process = forks.start(*arguments)
        checkpoints = parts / "checkpoints"
        before = set(checkpoints.glob("0*"))
        # Any moment after a new checkpoint: in the midst of collecting, learning, evaluating or saving the next one.
        while alive(process) and not (set(checkpoints.glob("0*")) - before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.25))
        if alive(process) and kills < 6:
            os_kill(process)
        if (code := forks.wait()) == 0:
            break
        assert code == -9, forks.log.read_text()
        kills += 1
        arguments = [f"resume={parts}"]
    assert kills >= 2, "the run was over before it could be killed"
    assert_same_run(whole, parts)
    assert not list((parts / "checkpoints").glob(".tmp*")), "leftovers of a killed save are removed"


def os_kill(process: int) -> None:
    import os

    os.kill(process, signal.SIGKILL)


def test_killed_with_workers(tmp_path: Path, forks: Forks) -> None:
    command = gym("ppo", workers=2, total_steps=240)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    forks.start(*command, f"run_dir={whole}")
    assert forks.wait() == 0, forks.log.read_text()
    process = forks.start(*command, f"run_dir={parts}")
    wait_for(lambda: list(parts.glob("checkpoints/0*")) or not alive(process))
    workers = descendants(process)
    assert len(workers) >= 2
    os_kill(process)
    assert forks.wait() == -9
    wait_for(lambda: not any(map(alive, workers)))
    forks.start(f"resume={parts}")
    assert forks.wait() == 0, forks.log.read_text()
    assert_same_run(whole, parts)


def test_killed_before_the_first_checkpoint(tmp_path: Path, forks: Forks) -> None:
    long = tiny(total_steps=100_000_000)
    process = forks.start(*long, "checkpoint.every=0", "eval.every=0", f"run_dir={tmp_path / 'run'}")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    os_kill(process)
    assert forks.wait() == -9
    forks.start(f"resume={tmp_path / 'run'}")
    assert forks.wait() == 2
    assert "error: No checkpoint in" in forks.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_metaworld_killed(tmp_path: Path, forks: Forks, agent: str) -> None:
    small = ["env=mt10", "env.num_envs=20", "env.horizon=20", "env.num_workers=2", "eval.episodes_per_task=1"]
    steps = ["total_steps=1000", "log.every=200", "eval.every=400", "checkpoint.every=200"]
    command = [*tiny(agent)[2:], *small, *steps]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    forks.start(*command, f"run_dir={whole}")
    assert forks.wait() == 0, forks.log.read_text()
    process = forks.start(*command, f"run_dir={parts}")
    wait_for(lambda: list(parts.glob("checkpoints/*400")) or not alive(process))
    os_kill(process)
    assert forks.wait() == -9
    forks.start(f"resume={parts}")
    assert forks.wait() == 0, forks.log.read_text()
    assert_same_run(whole, parts)
