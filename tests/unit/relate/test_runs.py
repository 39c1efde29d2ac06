"""Runs of pairs of tasks, and their forward transfer."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mtrl.relate.runs
from mtrl.relate.pairs import matrix_of, read_areas, run_dir, store_areas
from mtrl.relate.runs import plan
from mtrl.run.lock import is_locked
from mtrl.sweep.jobs import STOPPING
from mtrl.types import UserError
from tests.system.commands import environment, run, the_error, tiny
from tests.unit.report.test_compare import write_run


def store(where: Path, rates: list[float | None], finished: bool = True) -> None:
    """A run of which only its log and its end are there; a row every 100 steps."""
    write_run(where, 1, [[1.0]], minutes=[5], steps=[400 if finished else 200])  # an evaluation alone is no end
    rows = [{"step": 100 * (i + 1), "train/success_rate_mean": rate} for i, rate in enumerate(rates)]
    (where / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_matrix(tmp_path: Path) -> None:
    """Of a: (.25 + .75) / 2 = .5 from scratch, (.5 + 1) / 2 = .75 after b: (.75 - .5) / (1 - .5) = .5.

    Of b: no episode ended in the first 100 steps, so that its .2 counts for 200; after a it is .6 throughout:
    (.6 - .2) / .8 = .5 of what is missing. The run of c after a is unfinished, c from scratch is missing.
    """
    store(run_dir(tmp_path, None, "a"), [0.25, 0.75])
    store(run_dir(tmp_path, "b", "a"), [0.5, 1.0])
    store(run_dir(tmp_path, None, "b"), [None, 0.2])
    store(run_dir(tmp_path, "a", "b"), [0.6, 0.6])
    store(run_dir(tmp_path, "a", "c"), [0.6, 0.6], finished=False)
    expected = [[0, 0.5, np.nan], [0.5, 0, np.nan], [np.nan, np.nan, 0]]
    np.testing.assert_allclose(matrix_of(tmp_path, ["a", "b", "c"]), expected)
    with pytest.raises(UserError, match="expected runs of these tasks from scratch"):
        matrix_of(tmp_path, ["c", "d"])


def test_plan(tmp_path: Path) -> None:
    """Every ordered pair once, with the policy that the first task has from scratch; names are safe in paths."""
    scratch, after = plan(tmp_path, ["ALE/Pong-v5", "b", "c"], ["env=atari", "env.games=[{task}]", "eval.every=9"])
    assert len({one.run_dir for one in scratch + after}) == 9
    first = next(one for one in after if one.run_dir == tmp_path / "from_b" / "ALE%2FPong-v5")
    given = ["eval.every=0", "env=atari", "env.games=[ALE/Pong-v5]", "eval.every=9"]
    assert first.arguments == [*given, f"init_from={tmp_path / 'scratch' / 'b'}"]


def test_from_nothing_to_a_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two discounts stand for tasks. The second call finds all runs finished; one that is lost is made again."""
    settings = [*tiny(total_steps=80), "env.num_tasks=1", "agent.gamma={task}", "eval.episodes_per_task=1"]
    command = [f"folder={tmp_path}", "tasks=['0.5','0.9']", "jobs=2", *settings]
    assert run(*command, command=mtrl.relate.runs) == 0
    out = capsys.readouterr().out
    assert "forward transfer, from row to column:" in out
    assert out.count("of 2 runs") == 4
    (tmp_path / "from_0.9" / "0.5" / "eval").rename(tmp_path / "lost")
    assert run(*command, command=mtrl.relate.runs) == 0
    assert capsys.readouterr().out.count(" runs: ") == 1


def test_areas_stay_when_runs_are_gone(tmp_path: Path) -> None:
    """The areas of `test_matrix`, kept in two sessions with folders of their own; a pair's first run counts."""
    file, settings = tmp_path / "kept" / "areas.json", ["env=mt1", "env.task={task}"]
    one, other = tmp_path / "one", tmp_path / "other"
    store_areas(file, one, ["a", "b"], settings)
    assert not file.exists()
    store(run_dir(one, None, "a"), [0.25, 0.75])
    store(run_dir(one, "b", "a"), [0.5, 1.0])
    store(run_dir(one, None, "b"), [0.2, 0.2])
    store_areas(file, one, ["a", "b"], settings)
    store(run_dir(other, None, "a"), [0.9, 0.9])
    store(run_dir(other, "a", "b"), [0.6, 0.6])
    store_areas(file, other, ["a", "b"], settings)
    np.testing.assert_allclose(matrix_of(file, ["b", "a"]), [[0, 0.5], [0.5, 0]])
    assert json.loads(file.read_text())["runs"][-1] == {
        "before": "a",
        "task": "b",
        "area": 0.6,
        "steps": 400,
        "seed": 1,
    }
    with pytest.raises(UserError, match=r"other settings: expected env=mt1 env.task={task}, found env=mt1"):
        read_areas(file, ["env=mt1"])
    file.write_text("[]")
    with pytest.raises(UserError, match="it is no file of areas"):
        matrix_of(file, ["a", "b"])


def test_only_what_is_missing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a new machine: the missing pair, and the run from scratch with whose policy it begins."""
    settings = [*tiny(total_steps=80), "env.num_tasks=1", "agent.gamma={task}", "eval.episodes_per_task=1"]
    kept = [
        {"before": before, "task": task, "area": 0.5} for before, task in ((None, "0.5"), (None, "0.9"), ("0.9", "0.5"))
    ]
    file, folder = tmp_path / "areas.json", tmp_path / "new"
    file.write_text(json.dumps({"settings": settings, "runs": kept}))
    command = [f"folder={folder}", f"areas={file}", "tasks=['0.5','0.9']", *settings]
    assert run(*command, command=mtrl.relate.runs) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if " runs: " in line] == [
        f"1 of 1 runs: {folder / 'scratch' / '0.5'}",
        f"1 of 1 runs: {folder / 'from_0.5' / '0.9'}",
    ]
    assert len(json.loads(file.read_text())["runs"]) == 4
    shutil.rmtree(folder)
    assert run(*command, command=mtrl.relate.runs) == 0
    assert " runs: " not in (out := capsys.readouterr().out)
    assert "forward transfer, from row to column:" in out


def test_sigterm_stops_the_runs(tmp_path: Path) -> None:
    """Both save themselves, no other begins, and the next command may begin them again."""
    settings = [*tiny(total_steps=10_000_000), "env.num_tasks=1", "agent.gamma={task}", "log.every=40"]
    command = [f"folder={tmp_path}", "tasks=['0.5','0.9']", "jobs=2", *settings]
    process = subprocess.Popen([sys.executable, "-m", "mtrl.relate.runs", *command], env=environment())
    folders = [run_dir(tmp_path, None, task) for task in ("0.5", "0.9")]
    deadline = time.monotonic() + 120
    while not all((folder / "metrics.jsonl").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    for folder in folders:
        assert (folder / "checkpoints" / "last").exists()
        assert not is_locked(folder.with_name(f"{folder.name}.log"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]
    assert not (tmp_path / "scratch" / STOPPING).exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tasks=[a,b]"], "write {task} where it goes, as in env.task={task}"),
        (["tasks=[a]", "env.task={task}"], "tasks: expected two or more different tasks, found a"),
        (["tasks=[a,b]", "env.task={task}", "jobs=0"], "jobs must be positive, not 0"),
    ],
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert run(f"folder={tmp_path}", *arguments, command=mtrl.relate.runs) == 2
    assert expected in the_error(capsys)


def test_a_run_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that it printed is shown, and what to do."""
    assert run(f"folder={tmp_path}", "tasks=[a,b]", "env=mt1", "env.task={task}", command=mtrl.relate.runs) == 2
    error = the_error(capsys)
    assert f"{tmp_path / 'scratch' / 'a'} (and 1 more) failed: exit code 2: error: " in error
    assert error.endswith("The same command goes on with what is missing.")
