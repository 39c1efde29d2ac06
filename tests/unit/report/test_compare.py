"""What `python -m mtrl.compare` says of runs with known results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import mtrl.compare
from mtrl.config import to_yaml
from mtrl.report.comparison import ALL, Comparison, compare
from mtrl.report.runs import read_runs
from mtrl.report.tables import show
from tests.system.commands import run, the_error

TASKS = [f"task-{k}" for k in range(10)]


def write_run(
    path: Path,
    seed: int,
    success: Sequence[Sequence[float]],
    minutes: Sequence[float] = (5, 10),
    steps: Sequence[int] = (200, 400),
    protocol: dict[str, Any] | None = None,
    **settings: Any,
) -> str:
    """A run folder with an evaluation (K,) for each of some steps. Returns its path."""
    (path / "eval").mkdir(parents=True)
    config = {"total_steps": 400, "total_updates": None, "env": {"name": "toy"}, **settings}
    (path / "config.yaml").write_text(to_yaml({**config, "seed": seed, "run_dir": str(path)}))
    for step, minute, rates in zip(steps, minutes, success, strict=True):
        found = {name: {"success_rate": rate, "mean_return": 1.0} for name, rate in zip(TASKS, rates, strict=False)}
        stored = {
            "step": step,
            "training_s": 60 * minute,
            "protocol": protocol or {"env": "toy", "goals": f"those of seed {seed}"},
            "summary": {"tasks": found},
        }
        (path / "eval" / f"{step:012d}.json").write_text(json.dumps(stored))
    return str(path)


def sampled(folder: Path, name: str, seeds: Sequence[int], rate: float, **settings: Any) -> list[str]:
    """Runs with 50 episodes in each of ten tasks of different difficulty."""
    paths = []
    for seed in seeds:
        rates = rate + np.linspace(-0.3, 0.3, 10)
        success = np.random.default_rng([seed, len(name)]).binomial(50, rates, (2, 10)) / 50
        paths.append(write_run(folder / f"{name}{seed}", seed, success.tolist(), **settings))
    return paths


def of_all(comparison: Comparison, at: str = "400 steps") -> list[Any]:
    return [row for rows in comparison.tables for row in rows if row.task == ALL and row.at == at]


def test_a_planted_difference_is_found(tmp_path: Path) -> None:
    """0.05 with ten seeds, in pairs and not, and the interval holds the truth."""
    paths = sampled(tmp_path, "a", range(10), 0.6, aggregation={"name": "mean"})
    pairs = sampled(tmp_path, "other", range(10), 0.65, aggregation={"name": "pcgrad", "scale": 2})
    no_pairs = sampled(tmp_path, "third", range(20, 30), 0.65, aggregation={"name": "cagrad"})
    comparison = compare(read_runs([*paths, *pairs, *no_pairs]), clocks=["steps"])
    base, *others = of_all(comparison)
    assert (base.group, base.runs) == ("aggregation=mean", 10)
    assert [row.group for row in others] == ["aggregation=pcgrad", "aggregation=cagrad"]
    for row in others:
        assert row.difference.p < 0.05
        assert 0 < row.difference.low < 0.05 < row.difference.high
        assert row.improvement.low > 0.5
    assert [note for note in comparison.notes if "paired" in note] == [
        "Runs are paired by their seeds with those of aggregation=mean: aggregation=pcgrad."
    ]


def test_nothing_is_claimed_between_two_halves_of_the_same(tmp_path: Path) -> None:
    """Even and odd seeds. That a claim is wrong in 5% of such cases is tested with the statistics."""
    one = sampled(tmp_path, "a", range(0, 20, 2), 0.6, half=1)
    two = sampled(tmp_path, "a", range(1, 20, 2), 0.6, half=2)
    comparison = compare(read_runs([*one, *two]), clocks=["steps"])
    rows = [row for table in comparison.tables for row in table if row.group == "half=2"]
    assert len(rows) == 11
    assert not any(row.difference.p < 0.05 for row in rows)
    assert of_all(comparison)[1].difference.low < 0 < of_all(comparison)[1].difference.high


def test_equal_steps_and_minutes(tmp_path: Path) -> None:
    """The other run needs 8 and 16 minutes: after 10 it is a quarter of the way from 0.2 to 0.6, at 0.3.

    Its last rollout went beyond the end, which counts as the end.
    """
    paths = [
        write_run(tmp_path / "a", 1, [[0.1, 0.3], [0.5, 0.7]], aggregation={"name": "mean"}),
        write_run(tmp_path / "b", 1, [[0.2], [0.6]], (8, 16), (200, 408), aggregation={"name": "sum"}),
    ]
    with pytest.raises(Exception, match="only one of them has task-1"):
        read_runs(paths)
    paths[1] = write_run(tmp_path / "c", 1, [[0.2] * 2, [0.6] * 2], (8, 16), (200, 408), aggregation={"name": "sum"})
    comparison = compare(read_runs(paths))
    assert [row.mean.value for row in of_all(comparison)] == pytest.approx([0.6, 0.6])
    assert [row.mean.value for row in of_all(comparison, "10.0 minutes")] == pytest.approx([0.6, 0.3])
    assert [len(table) for table in comparison.tables] == [2, 4, 2, 4]
    assert [row.difference.value for row in comparison.tables[1]] == pytest.approx(
        [np.nan, 0.1, np.nan, -0.1], nan_ok=True
    )


def test_too_slow_for_equal_minutes(tmp_path: Path) -> None:
    fast = write_run(tmp_path / "a", 1, [[0.5]], [10], [400], network="small")
    slow = write_run(tmp_path / "b", 1, [[0.5]], [20], [400], network="large")
    comparison = compare(read_runs([fast, slow]))
    assert {row.at for table in comparison.tables for row in table} == {"400 steps"}
    assert comparison.notes[-1].startswith("Not evaluated within 10.0 minutes: network=large.")


def test_groups(tmp_path: Path) -> None:
    """Names of components tell groups apart where they can. What is logged makes no group."""
    results = [[0.5], [0.6]]
    paths = [
        write_run(tmp_path / "1", 1, results, agent={"lr": 1, "name": "ppo"}, log={"every": 5}),
        write_run(tmp_path / "2", 2, results, agent={"lr": 1, "name": "ppo"}),
        write_run(tmp_path / "3", 1, results, agent={"lr": 2, "name": "sac", "tau": 0.1}),
        write_run(tmp_path / "4", 1, results, agent={"lr": 2, "name": "ppo"}),
    ]
    runs = read_runs(paths)
    by_default = of_all(compare(runs))
    assert [(row.group, row.runs) for row in by_default] == [
        ("agent.lr=1", 2),
        ("agent=sac", 1),
        ("agent=ppo agent.lr=2", 1),  # the values that most groups have
    ]
    by_name = compare(runs, by=["agent.name"])
    assert [(row.group, row.runs) for row in of_all(by_name)] == [("agent=ppo", 3), ("agent=sac", 1)]
    assert "Runs of the same group also differ in agent.lr." in by_name.notes
    (alone,) = of_all(compare(runs[:2]))
    assert (alone.group, alone.mean.value, alone.improvement.value) == (
        "all runs",
        pytest.approx(0.6),
        pytest.approx(np.nan, nan_ok=True),
    )


def test_what_a_component_lacks_is_no_part_of_the_name(tmp_path: Path) -> None:
    """Unless another group has the component with the usual value."""
    trunks = [
        {"name": "mlp", "activation": "tanh"},
        {"name": "mlp", "activation": "relu"},
        {"name": "moore"},
        {"name": "film"},
        {"name": "mlp", "activation": "tanh", "width": 8},
        {"name": "mlp", "activation": "tanh", "width": 9},
        {"name": "moore", "activation": "tanh"},
    ]
    paths = [write_run(tmp_path / str(i), 1, [[0.5]], [5], [400], trunk=trunk) for i, trunk in enumerate(trunks)]
    names = [row.group.replace("trunk", "t") for row in of_all(compare(read_runs(paths[:6])))]
    assert names == ["t=mlp t.activation=tanh t.width=null", "t.activation=relu", "t=moore", "t=film", *names[4:]]
    assert names[4:] == ["t.width=8", "t.width=9"]
    names = [row.group for row in of_all(compare(read_runs(paths)))]
    assert (names[2], names[6]) == ("trunk=moore trunk.activation=null", "trunk=moore")


def test_scores_where_there_is_no_success(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, 1, [[0.5, 0.5]], [5], [400], x=name) for name in "ab"]
    for path, score in zip(paths, (1.0, 2.0), strict=True):
        (file,) = Path(path).glob("eval/*.json")
        stored = json.loads(file.read_text())
        for found in stored["summary"]["tasks"].values():
            del found["success_rate"]
        stored["comparable_returns"] = False
        file.write_text(json.dumps(stored | {"scores": {"human_iqm": 9, "human/task-0": score, "human/task-1": 0}}))
    comparison = compare(read_runs(paths), clocks=["steps"])
    assert comparison.measure == "human"
    assert [row.mean.value for row in comparison.tables[0]] == [0.5, 1.0]
    for path in paths:  # and without scores, no mean of returns that cannot be compared
        (file,) = Path(path).glob("eval/*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scores": {}}))
    comparison = compare(read_runs(paths), clocks=["steps"])
    assert comparison.measure == "return"
    assert [row.task for (table) in comparison.tables for row in table] == ["task-0", "task-0", "task-1", "task-1"]


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    paths = [write_run(tmp_path / f"a{seed}", seed, [[0.1 * seed] * 2] * 2, x="m_1") for seed in (1, 2)]
    return paths + [write_run(tmp_path / f"b{seed}", seed, [[0.1 * seed + 0.3] * 2] * 2, x="m_2") for seed in (1, 2)]


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        (".txt", "x=m_2         2  0.450 (-0.185 to 1.085)  0.450 (0.400 to 0.500)      +0.300  1.00 (1.00 to 1.00)"),
        (".md", r"| x=m\_2 | 2 | 0.450 (-0.185 to 1.085) | 0.450 (0.400 to 0.500) | +0.300 | 1.00 (1.00 to 1.00) |"),
        (".tex", r"x=m\_2 & 2 & 0.450 (-0.185 to 1.085) & 0.450 (0.400 to 0.500) & +0.300 &"),
    ],
)
def test_formats(two: list[str], tmp_path: Path, suffix: str, expected: str) -> None:
    """Mean 0.45, deviation 0.0707 of two: 12.706 * 0.05 = 0.635. The pairs do not vary: no p."""
    out = tmp_path / f"table{suffix}"
    assert run(*two, "at=steps", f"out={out}", command=mtrl.compare) == 0
    assert expected in out.read_text()


def test_csv_has_every_number(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*two, "format=csv", command=mtrl.compare) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 2 * (2 + 4)
    assert (rows[1]["at"], rows[1]["task"], rows[1]["group"]) == ("400 steps", ALL, "x=m_2")
    assert float(rows[1]["difference"]) == pytest.approx(0.3)
    assert rows[1]["difference_p"] == rows[2]["iqm"] == ""


def test_terminal(two: list[str]) -> None:
    """Nothing is cut off at 80 columns."""
    console = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    show(compare(read_runs(two)), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda path: write_run(path, 3, [[0.5] * 2], [5], [200]), "its last evaluation is of 200, and it ends at 400"),
        (lambda path: write_run(path, 3, [], [], []), "is not finished: its last evaluation is of no step"),
        (
            lambda path: write_run(path, 3, [[0.5] * 2], [5], [400], {"env": "other", "goals": "those of seed 3"}),
            "it was evaluated by another protocol, env: other instead of toy",
        ),
        (
            lambda path: write_run(path, 3, [[0.5] * 2], [5], [400], {"env": "toy", "goals": "those of seed 4"}),
            "another protocol, goals: those of seed 4 instead of those of the seed",
        ),
        (lambda path: write_run(path, 3, [[0.5] * 3], [5], [400]), "only one of them has task-2"),
        (lambda path: write_run(path, 1, [[0.5] * 2] * 2, x="m_1"), "has the settings and the seed of"),
        (lambda path: path.parent / "a1", "is given twice"),
        (lambda path: path, "No config.yaml in"),
        (lambda path: "by=agregation", "Unknown setting 'agregation'. Valid: env, total_steps, total_updates, x."),
        (lambda path: "at=hours", "at must be"),
        (lambda path: "format=pdf", "format must be"),
        (lambda path: "form=csv", "Unknown option of compare: 'form'. Did you mean 'format'?"),
        (lambda path: "out=/etc/hostname/x", "Cannot write /etc/hostname/x: File exists"),
    ],
)  # fmt: skip
def test_errors(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, expected: str) -> None:
    assert run(*two, str(change(tmp_path / "odd")), command=mtrl.compare) == 2
    assert expected in the_error(capsys)


def test_damaged_evaluation(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (Path(two[0]) / "eval" / "000000000400.json").write_text('{"step": 400}')
    assert run(*two, command=mtrl.compare) == 2
    assert "a1 cannot be read: it is not a run with its evaluations ('summary')" in the_error(capsys)


def test_updates_and_steps(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_updates = write_run(tmp_path / "c", 1, [[0.5] * 2] * 2, total_updates=400)
    assert run(*two, by_updates, command=mtrl.compare) == 2
    assert "compare them with at=minutes" in the_error(capsys)
    assert run(*two, by_updates, "at=minutes", command=mtrl.compare) == 0


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", command=mtrl.compare) == 0
    assert "Keys: by, at, format, out" in capsys.readouterr().out


def test_stored_runs_as_by_rliable() -> None:
    """rliable 1.2.0 on the scores at 3M steps: `aggregate_iqm`, its interval by 20,000 resamples, the probability."""
    results = Path(__file__).parents[3] / "results"
    stored = [path for name in ("mt10_no_torso", "mt10_components") for path in (results / name).rglob("seed*.json")]
    longer, shorter = of_all(
        compare(read_runs(sorted(map(str, stored), reverse=True)), ["total_steps"], ["steps"]), "3,000,000 steps"
    )
    assert (longer.runs, shorter.runs) == (3, 12)
    assert longer.iqm.value == pytest.approx(0.928125)
    assert (longer.iqm.low, longer.iqm.high) == pytest.approx((0.86625, 0.978125), abs=0.005)
    assert shorter.iqm.value == pytest.approx(0.86033333)
    assert shorter.improvement.value == pytest.approx(0.45694444)
