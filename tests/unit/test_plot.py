"""What is drawn of a log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import mtrl.plot
from mtrl.plot import curves, matrices, plot
from mtrl.run.logger import read_rows
from tests.system.commands import run, the_error

ROWS: list[dict[str, Any]] = [
    {
        "step": step,
        "train/task_share/a": 0.25,
        "train/task_share/b/c": 0.75,  # a task's name may have a slash
        "train/success_rate/a": step / 40,
        "train/return/a": 100.0 + step,
        "grad/policy_conflict_rate": 0.5,
        "grad/policy_cosine": [[1.0, step / 100], [None, 1.0]],
        "train/policy_routing_entropy/a": 0.3,
        "train/policy_routing_0_0/a": 0.1,
        "train/policy_routing_0_1/a": 0.9,
        "train/policy_routing_0_0/b/c": 0.6,
        "train/policy_dormant_ratio": 0.0,
        "train/value_scale/a": 2.0,
        "grad/value_task_weight/a": 1.0,
    }
    for step in (10, 20)
] + [{"step": 20, "eval/success_rate": 0.5, "eval/success_rate/a": 0.5}]


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_curves(logged: Path) -> None:
    found = curves(read_rows(logged / "metrics.jsonl"))
    assert found["train/task_share"] == {"a": ([10, 20], [0.25, 0.25]), "b/c": ([10, 20], [0.75, 0.75])}
    assert found["eval/success_rate"] == {"": ([20], [0.5]), "a": ([20], [0.5])}
    assert "grad/policy_cosine" not in found


def test_null_is_a_gap(logged: Path) -> None:
    """NaN and infinity are stored as null."""
    rows = [{"step": step, "train/loss": value} for step, value in ((1, 0.5), (2, None), (3, 2))]
    (logged / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, values = curves(read_rows(logged / "metrics.jsonl"))["train/loss"][""]
    assert steps == [1, 2, 3]
    assert str(values) == "[0.5, nan, 2]"


def test_matrices(logged: Path) -> None:
    found = matrices(read_rows(logged / "metrics.jsonl"))
    rows, columns, cosine = found["grad/policy_cosine"]
    assert rows == columns == ["a", "b/c"]
    assert cosine[0] == [1.0, 0.2]
    assert math.isnan(cosine[1][0])
    rows, columns, routing = found["train/policy_routing"]
    assert (rows, columns) == (["a", "b/c"], ["0_0", "0_1"])
    assert routing[0] == [0.1, 0.9]
    assert routing[1][0] == 0.6
    assert math.isnan(routing[1][1])


def test_one_file_for_each_diagnostic(logged: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = plot(str(logged))
    assert {path.stem for path in paths} == {*mtrl.plot.CURVES, *mtrl.plot.CURRENT}
    assert all(path.parent == logged / "plots" and path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_what_a_run_does_not_log_is_not_drawn(logged: Path) -> None:
    pytest.importorskip("matplotlib")
    (logged / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/task_share/a": 1.0}) + "\n")
    assert plot(str(logged), out=str(logged / "elsewhere")) == [logged / "elsewhere" / "task_shares.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run=nowhere"], "nowhere/metrics.jsonl cannot be read: it is not the log of a run"),
        (["rum=x"], "Unknown option of plot: 'rum'. Did you mean 'run'? Valid: run, out"),
        (["out=x"], "plot needs a value for: run"),
        (["run={run}", "out=/etc/hostname/x"], "Cannot write to /etc/hostname/x: Not a directory"),
    ],
)
def test_errors(logged: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert run(*(argument.format(run=logged) for argument in arguments), command=mtrl.plot) == 2
    assert expected in the_error(capsys)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", command=mtrl.plot) == 0
    assert "Keys: run, out" in capsys.readouterr().out
