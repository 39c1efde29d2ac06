"""The page of `python -m mtrl.report`, and its figures."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mtrl.report.__main__
import mtrl.report.films
import mtrl.report.page
from mtrl.report.metrics import common_times, series
from mtrl.report.runs import read_run
from mtrl.report.statistics import band, mean, profile
from tests.system.commands import run, the_error
from tests.unit.report.test_compare import write_run

pytest.importorskip("matplotlib")
TASKS = ("task-0", "task-1", "task-2")
PROGRESS = ("progress_steps", "progress_minutes", "tasks", "profile")
LOGGED = {
    "train_success_rate", "train_task_share", "train_value_scale", "grad_policy_task_weight",
    "grad_policy_conflict_rate", "grad_policy_cosine_mean", "grad_policy_cosine", "train_policy_routing",
}  # fmt: skip


def row(step: int) -> dict[str, Any]:
    by_task = {
        "train/success_rate": 0.5,
        "train/task_share": 0.3,
        "train/value_scale": step,
        "grad/policy_task_weight": 1,
    }
    found = {f"{name}/{task}": value for name, value in by_task.items() for task in TASKS}
    routing = {f"train/policy_routing_0_{m}/{task}": m / 2 for m in range(2) for task in TASKS}
    scalars = {"train/success_rate_mean": step / 1000, "grad/policy_conflict_rate": 0.1, "grad/policy_cosine_mean": 0.2}
    pairs = {"grad/policy_cosine": np.eye(3).tolist(), "time/wall_s": 1.5 * step}
    return {"step": step, **found, **routing, **scalars, **pairs}


@pytest.fixture
def runs(run_dir: Path) -> list[str]:
    """Two groups of two seeds, in the working directory."""
    paths = []
    for aggregation, rate in (("mean", 0.4), ("<pcgrad>", 0.6)):
        for seed in (1, 2):
            success = [[rate / 2] * 3, [rate, rate + 0.1 * seed, 1.0]]
            path = write_run(Path(f"runs/{aggregation}{seed}"), seed, success, aggregation={"name": aggregation})
            Path(path, "metrics.jsonl").write_text(
                "".join(json.dumps(row(step)) + "\n" for step in (100, 200, 300, 400))
            )
            Path(path, "env.txt").write_text(
                f"time: now\ncommand: python -m mtrl.train seed={seed}\ntorch: 2.{seed}\ncores: 2\n"
            )
            paths.append(path)
    return paths


class Page(HTMLParser):
    """What a page consists of. Raises `AssertionError` for elements that do not close in order."""

    EMPTY = ("meta", "link", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.figures: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        given = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "figure" and "id" in given:  # films have none
            self.figures.append(str(given["id"]))
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def made(*arguments: str) -> Page:
    assert run(*arguments, command=mtrl.report.__main__) == 0
    text = Path("report.html").read_text()
    assert "http" not in text
    assert "@import" not in text
    return Page(text)


def test_everything_is_on_the_page(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = made(*runs)
    assert set(page.figures) == {*PROGRESS, *LOGGED}
    assert capsys.readouterr().out == "report.html\n"
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loaded)
    assert {link[1:] for link in page.loaded if link.startswith("#")} <= set(page.ids)
    text = " ".join(page.words)
    assert "4 runs in 2 groups" in text
    assert "aggregation=<pcgrad>" in text
    assert "success at 400 steps" in text
    assert "2.1 (2 runs) / 2.2 (2 runs)" in text
    assert "python -m mtrl.train seed=2" in text
    assert "aggregation.name" in page.words


def test_a_run_that_logged_little(runs: list[str]) -> None:
    """Nothing but an evaluation; or a single metric; or only some of the runs of a group."""
    (Path(runs[0]) / "metrics.jsonl").unlink()
    (Path(runs[0]) / "env.txt").unlink()
    assert made(runs[0]).figures == list(PROGRESS)
    few = {"step": 100, "train/success_rate_mean": 0.5, "train/value_scale/task-0": None}
    (Path(runs[1]) / "metrics.jsonl").write_text(json.dumps(few) + "\n")
    assert made(*runs[:2]).figures == list(PROGRESS)
    assert set(made(*runs).figures) == {*PROGRESS, *LOGGED}


def test_figures_for_papers(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As wide as a column: 3.4 inches are 244.8 points."""
    made(*runs, "figures=figures")
    written = {path.stem for path in Path("figures").iterdir()}
    assert written == {*PROGRESS, *LOGGED}
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * len(written)
    for name in written:
        assert 'width="244.8pt"' in Path(f"figures/{name}.svg").read_text()
        pdf = Path(f"figures/{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert re.search(rb"/MediaBox \[ *0 0 244\.8 ", pdf)


RELATED: dict[str, Any] = {
    "tasks": list(TASKS),
    "relations": {
        "cka": {
            "matrix": [[1, 0.2, 0.9], [0.2, 1, None], [0.9, None, 1]],
            "map": [[0.5, 0], [-1, 0], [0.5, 0.1]],
            "map_share": 0.75,
            "groups": [["task-0", "task-2"], ["task-1"]],
        }
    },
    "agreement": [{"of": ["cka", "rsa"], "correlation": 0.5, "low": -0.25, "high": 1}],
}


def write_relations(run: str, stored: dict[str, Any]) -> None:
    path = Path(run, "relate", "relate.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(stored))


def test_relations_of_tasks(runs: list[str]) -> None:
    """Of the first run of a group that has them: here of one group, with its agreement."""
    write_relations(runs[1], RELATED)
    page = made(*runs)
    assert set(page.figures) == {*PROGRESS, *LOGGED, "relation_cka", "relation_cka_map"}
    assert "cka and rsa" in page.words
    assert "0.50 (-0.25 to 1.00)" in page.words
    text = " ".join(" ".join(page.words).split())
    assert "aggregation=mean: 75% of the differences" in text
    assert "task-0 task-2 task-1" in text  # a group side by side


@pytest.mark.parametrize(
    "damage",
    [
        {"tasks": ["task-0", "task-1"]},
        {"relations": {"cka": {**RELATED["relations"]["cka"], "groups": [["task-0"], ["task-1"]]}}},
        {"relations": {"cka": {**RELATED["relations"]["cka"], "map": [["a", "b"]] * 3}}},
        {"agreement": None},
    ],
)
def test_damaged_relations(runs: list[str], capsys: pytest.CaptureFixture[str], damage: dict[str, Any]) -> None:
    write_relations(runs[0], {**RELATED, **damage})
    assert run(*runs, command=mtrl.report.__main__) == 2
    assert f"{runs[0]}/relate/relate.json cannot be read (" in (error := the_error(capsys))
    assert f"python -m mtrl.relate policies={runs[0]} makes it again" in error


@pytest.mark.parametrize("most_bytes", [100, 11])
def test_films(runs: list[str], monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    """Of the first run of a group that has any, the hardest task first: rates are (0.5, 0.5, 1) + (0.7, 0.7, 1)."""
    films = {f"{runs[1]}/videos/task-2.mp4": b"12345678", f"{runs[1]}/videos/task-1.gif": b"123"}
    films |= {f"{runs[2]}/videos/task-1.mp4": b"1234", f"{runs[3]}/videos/task-1.mp4": b"unused"}
    for path, content in films.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content)
    monkeypatch.setattr(mtrl.report.films, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(mtrl.report.page, "MOST_BYTES", most_bytes)
    page = made(*runs)
    shown = [link for link in page.loaded if not link.startswith(("#", "data:image/png"))]
    urls = ["data:image/gif;base64,MTIz", "data:video/mp4;base64,MTIzNA==", "data:video/mp4;base64,MTIzNDU2Nzg="]
    captions = ["task-1: aggregation=mean, seed 2", "task-1: aggregation=<pcgrad>, seed 1"]
    assert [word for word in page.words if word in captions] == captions
    left_out = [word for word in page.words if "left out" in word]
    if most_bytes == 100:
        assert (shown, left_out) == (urls, [])
    else:
        assert shown == urls[:2]
        assert [line.startswith("1 of 3 films are left out, as a page holds at most 40") for line in left_out] == [True]
        assert left_out[0].endswith(f": see {runs[1]}/videos.")


def test_many_groups(run_dir: Path) -> None:
    """In the figures are the first and the best eleven; the tables have all."""
    paths = [write_run(Path(f"runs/{g}"), 1, [[0.1] * 3, [g / 20] * 3], gamma=g) for g in range(20)]
    text = " ".join(made(*paths).words)
    assert "Of 20 groups, the first and the best 11." in text
    assert all(f"gamma={g}" in text for g in range(20))
    names = [f"tasks_{number}" for number in (1, 2, 3, 4)]  # with the first: 1 + 3, 1 + 3, 1 + 3, 1 + 2
    assert [name for name in made(*paths).figures if name.startswith("tasks")] == names


def test_stored_results(run_dir: Path) -> None:
    results = Path(__file__).parents[3] / "results" / "mt10_no_torso"
    page = made(*(str(path) for path in sorted(results.glob("*.json"))))
    assert page.figures == list(PROGRESS)


def test_minutes_are_of_training_alone(runs: list[str]) -> None:
    """Evaluated at 5 and 10 minutes of training; the first one took 2 minutes, so the wall clock says 7 then."""
    path = Path(runs[0]) / "eval"
    for name, minutes in (("000000000200", 7), ("000000000400", 14)):
        stored = json.loads((path / f"{name}.json").read_text())
        (path / f"{name}.json").write_text(json.dumps({**stored, "wall_s": 60 * minutes}))
    rows = [{"step": step, "x": 1.0, "time/wall_s": 60.0 * minute} for step, minute in ((100, 2), (300, 8), (400, 12))]
    times, values = series(read_run(Path(runs[0])), [*rows, {"step": 400}], "x", "minutes")
    assert times.tolist() == [2, 6, 10]
    assert values.tolist() == [1, 1, 1]


def test_common_times() -> None:
    assert common_times([np.array([1.0, 5.0]), np.array([2.0, 9.0])], 3).tolist() == [2, 3.5, 5]
    assert common_times([np.array([3.0])], 3).tolist() == [3]
    assert common_times([np.array([1.0]), np.array([2.0])]).tolist() == []
    assert common_times([np.array([]), np.array([2.0])]).tolist() == []


def test_bands_are_the_intervals_of_means() -> None:
    scores = np.random.default_rng(0).random((5, 3))
    scores[:, 2] = 0.5
    middle, low, high = band(scores)
    for index in range(3):
        expected = mean(scores[:, index])
        np.testing.assert_allclose(
            [middle[index], low[index], high[index]], [expected.value, expected.low, expected.high]
        )


def test_profiles() -> None:
    """Of one run's scores .2 .5 .9, none, two and one exceed 1, .2 and .5."""
    found = profile(np.array([[0.2, 0.5, 0.9], [0.0, 0.0, 1.0]]), np.array([0.2, 0.5, 1.0]))
    np.testing.assert_allclose(found, [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 0]])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["out=x.html"], "Expected the folders of runs, found none"),
        (["{run}", "by=nothing"], "Unknown setting 'nothing'"),
        (["{run}", "out=/etc/hostname/x"], "Cannot write /etc/hostname"),
        (["{run}", "theme=dark"], "Unknown option of report: 'theme'"),
    ],
)
def test_errors(runs: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert run(*(argument.format(run=runs[0]) for argument in arguments), command=mtrl.report.__main__) == 2
    assert expected in the_error(capsys)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", command=mtrl.report.__main__) == 0
    assert "Keys: by, out, figures" in capsys.readouterr().out
