"""Policies that come with the package, and their cards."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

import mtrl
import mtrl.envs
from mtrl.envs.metaworld.catalog import MT50, TIERS
from mtrl.nn.networks import build_policy
from mtrl.policy import find_policy, save_policy
from mtrl.run.checkpoint.manifest import Content
from mtrl.run.evaluation.report import read_eval, write_eval
from mtrl.run.evaluation.statistics import pooled_interval, return_interval, wilson_interval
from mtrl.types import EpisodeResult, EvalResult, UserError
from mtrl.zoo import collection
from mtrl.zoo.card import FORMAT, Card, _command, compared, measured, read_card, write_card
from mtrl.zoo.readme import headline, readme
from tests.helpers import describe, make_spec


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection with the policies `ours` and `theirs`. The working directory is another folder."""
    folder = tmp_path / "policies"
    spec, node = make_spec(), describe("gaussian")
    for name in ("ours", "theirs"):
        save_policy(folder / name, build_policy(node, spec), node, spec)
    monkeypatch.setattr(collection, "FOLDER", folder)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return folder


def test_found_by_name(shelf: Path) -> None:
    assert find_policy("ours") == shelf / "ours"
    assert mtrl.load_policy("theirs").tasks == make_spec().task_names


def test_a_path_that_exists_wins(shelf: Path) -> None:
    spec, node = make_spec(num_tasks=5), describe("gaussian")
    save_policy(Path("ours"), build_policy(node, spec), node, spec)
    assert len(mtrl.load_policy("ours").tasks) == 5
    Path("theirs").mkdir()
    with pytest.raises(UserError, match="found an empty folder"):
        find_policy("theirs")


@pytest.mark.parametrize("name", ["our", "../policies/our", "x/y/ours"])
def test_unknown_name(shelf: Path, name: str) -> None:
    expected = r"expected a run folder .* or the name of a shipped policy \(ours, theirs\), found nothing there\.$"
    with pytest.raises(UserError, match=expected):
        find_policy(name)


def test_a_repository_without_the_package(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    expected = (
        r"No policy in x/ours: there is no such path. A repository of the Hugging Face hub needs huggingface-hub: "
    )
    with pytest.raises(UserError, match=expected):
        find_policy("x/ours")
    Path("x").mkdir()  # then it is meant as a path
    with pytest.raises(UserError, match=r"expected a run folder .* found nothing there"):
        find_policy("x/ours")


def result(successes: dict[str, int | None], n: int = 10, returns: float = 1.0) -> EvalResult:
    """`n` episodes of each task, the first of them successful; with returns `returns`, `returns` + 1, ..."""
    episodes = [
        EpisodeResult(task, i, None if k is None else i < k, returns + i, 25)
        for task, k in successes.items()
        for i in range(n)
    ]
    return EvalResult({"env": "toy_reach", "horizon": 25}, tuple(episodes), {"success_easy": 0.5, "x/a": 1.0})


def make(found: EvalResult, **changes: Any) -> Card:
    card = Card(
        format=FORMAT,
        name="ours",
        protocol=dict(found.protocol),
        measured=measured(found),
        scores=dict(found.scores),
        files={"config.json": {"size": 5, "sha256": "ab"}},
        parameters=1234,
        env_steps=1000,
        updates=10,
        wall_s=90.0,
        seed=1,
        command="python -m mtrl.train env=toy_reach",
        resumed=1,
        commits=["abc"],
        environment={"torch": "2.7"},
        config={"env": {"name": "toy_reach"}, "agent": {"name": "ppo"}},
        curve=[{"step": 500, "minutes": 0.7, "exploring": 0.25}, {"step": 1000, "minutes": 1.5, "official": 0.5}],
        curve_of="success",
    )
    return dataclasses.replace(card, **changes)


def test_evaluations_are_read_as_they_were_written(tmp_path: Path) -> None:
    for found in (result({"a": 3, "b": None}), result({"a": None})):
        write_eval(tmp_path / "eval.json", found, step=5)
        assert read_eval(tmp_path / "eval.json", tmp_path) == found
    (tmp_path / "eval.json").write_text('{"episodes": []}')
    with pytest.raises(UserError, match=r"eval.json cannot be read: it is not an evaluation"):
        read_eval(tmp_path / "eval.json", tmp_path)


def test_interval_of_the_mean_success_pools_the_episodes() -> None:
    assert pooled_interval(result({"a": 3, "b": 9, "c": None})) == wilson_interval(12, 20)
    assert all(math.isnan(bound) for bound in pooled_interval(result({"a": None})))


def test_interval_of_the_mean_return_is_scipys() -> None:
    rng = np.random.default_rng(5)
    tasks = [rng.normal(size=30), 3 + 5 * rng.normal(size=50)]

    def mean(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x.mean(axis) + y.mean(axis)) / 2

    oracle = bootstrap(tasks, mean, method="percentile", n_resamples=10_000, rng=rng).confidence_interval
    width = oracle.high - oracle.low
    assert return_interval(tasks) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)
    assert all(math.isnan(bound) for bound in return_interval([[1.0, 2.0], [3.0]]))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        # Wilson: 9 of 10 is 0.60 to 0.98, 3 of 10 is 0.11 to 0.60; 18 of 20 and 12 of 20: 0.70 to 0.97, 0.39 to 0.78.
        (
            result({"a": 9, "b": 9}),
            result({"a": 9, "b": 9}),
            "Agrees with its card within the intervals. Success 0.9",
        ),
        (
            result({"a": 9, "b": 9}),
            result({"a": 3, "b": 9}),
            "Differs from its card beyond the intervals in a. S",
        ),
        (result({"a": 9, "b": 9}), result({"a": 6, "b": 6}), "Differs from its card beyond the intervals in the mean."),
        (result({"a": 9, "b": 9}), result({"a": 1, "b": 1}, n=1), "Agrees"),  # 1 of 1: 0.21 to 1
        (result({"a": None}), result({"a": None}), "Agrees with its card within the intervals. Return 5.5 (card: 5.5)"),
        (
            result({"a": None}),
            result({"a": None}, returns=9),
            "Differs from its card beyond the intervals in a. R",
        ),
        (result({"a": None}), result({"a": None}, returns=99, n=1), "Agrees"),  # one episode has no interval
    ],
)
def test_compared_with_the_card(before: EvalResult, now: EvalResult, expected: str) -> None:
    line = compared(now, make(before))
    assert line.startswith(expected)
    assert "\n" not in line


def files(folder: Path) -> dict[str, Any]:
    return {name: vars(Content.of(folder / name)) for name in ("config.json", "model.safetensors")}


def test_written_and_read(shelf: Path) -> None:
    card = make(result({"a": 3, "b": None}, n=1), files=files(shelf / "ours"))
    write_card(card, shelf / "ours", shelf.parent / "new", "text")
    assert read_card(shelf.parent / "new") == dataclasses.replace(
        card, measured=read_card(shelf.parent / "new").measured
    )
    assert read_card(shelf.parent / "new").measured["tasks"]["a"]["return_interval"] == [None, None]
    assert mtrl.load_policy(shelf.parent / "new").tasks == mtrl.load_policy("ours").tasks
    write_card(card, shelf / "ours", shelf.parent / "new", "another")
    assert (shelf.parent / "new" / "README.md").read_text() == "another"
    with pytest.raises(UserError, match="is not empty, and not the folder of a policy with a card"):
        write_card(card, shelf / "ours", shelf, "text")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"seed": 1', '"seed": 2', r"its content was altered \(wrong sha256\)"),
        ("{", "", "cannot be read"),
    ],
)
def test_damaged_card(shelf: Path, old: str, new: str, expected: str) -> None:
    write_card(make(result({"a": 3}), files=files(shelf / "ours")), shelf / "ours", shelf.parent / "new", "text")
    path = shelf.parent / "new" / "card.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"card\.json cannot be read: .*{expected}|{expected}"):
        read_card(shelf.parent / "new")


def test_card_of_another_policy(shelf: Path) -> None:
    card = make(result({"a": 3}), files=files(shelf / "ours"))
    write_card(card, shelf / "theirs", shelf.parent / "new", "text")
    with pytest.raises(UserError, match=r"card.json is of another policy: config.json: its content was altered"):
        read_card(shelf.parent / "new")


def test_of_another_format() -> None:
    with pytest.raises(ValueError, match="it has format 2; this version reads 1"):
        make(result({"a": 3}), format=2)


def test_for_a_reader() -> None:
    # Returns 1 to 10: 5.5 -+ 1.96 * 2.87 / sqrt(10) = 5.5 -+ 1.78
    text = readme(make(result({"a": 3, "b": None})), (4,), "(N, 2)")
    for line in (
        "# ours",
        "A policy of 1,234 parameters for 2 tasks of `toy_reach`, trained with `mtrl` for 1,000 environment steps. "
        "Success 0.300 (0.108 to 0.603).",
        "| a | 3 of 10 | 0.11 to 0.60 | 5.5 | 3.7 to 7.3 | 25 |",
        "| success easy | 0.500 |",
        "| 500 | 0.7 | 0.25 |  |",
        "| 1,000 | 1.5 |  | 0.50 |",
        "- 1.5 minutes, evaluations included; resumed 1 time",
        "| `config.json` | 5 | `ab` |",
    ):
        assert f"\n{line}\n" in text, line
    assert "x/a" not in text
    assert "\n| b |  |  | 5.5 | " in text


def test_the_hub_reads_its_metadata(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "README.md").write_text(readme(make(result({"a": 3})), (4,), "(N, 2)"))
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.model_name) == ("mtrl", "ours")
    found = {entry.metric_type: entry.metric_value for entry in data.eval_results}
    assert found == {"success_rate": 0.3, "mean_reward": 5.5, "success_easy": 0.5}
    assert {entry.dataset_type for entry in data.eval_results} == {"toy_reach"}


def test_headlines() -> None:
    assert headline(make(result({"a": None}))) == "Return 5.5 (3.7 to 7.3)."
    games = dataclasses.replace(result({"a": None, "b": None}), comparable_returns=False)
    games = dataclasses.replace(games, scores={"human_normalised_iqm": 1.25, "human_normalised/a": 1})
    assert headline(make(games)) == "Human normalised iqm 1.250."


def test_the_command_without_its_folder() -> None:
    assert _command("python -m mtrl.train env=mt10 '+run_dir=/home/me/a b' resume=auto 'x=[a, b]'") == (
        "python -m mtrl.train env=mt10 'x=[a, b]'"
    )
    assert _command("python 'open") == "python 'open"


def test_tiers_are_a_partition_of_mt50() -> None:
    assert sorted(name for tasks in TIERS.values() for name in tasks) == sorted(MT50)
    assert {tier: len(tasks) for tier, tasks in TIERS.items()} == {"easy": 28, "medium": 11, "hard": 6, "very_hard": 5}


def test_scores_are_means_of_tiers() -> None:
    protocol = mtrl.envs.evaluation_protocol({"name": "metaworld"}, 0)
    found = protocol.scores(result({"reach-v3": 10, "door-open-v3": 5, "push-v3": 2}))
    assert found == pytest.approx({"success_easy": 0.75, "success_hard": 0.2})
    assert protocol.scores(result({"push-v3": 2})) == {}


def test_what_ships_is_small_and_as_its_cards_say() -> None:
    files = [path for path in collection.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for name in collection.shipped_names():
        folder = collection.FOLDER / name
        card = read_card(folder)
        assert card.name == name
        assert card.files == {file: vars(Content.of(folder / file)) for file in card.files}
        assert list(card.measured["tasks"]) == list(mtrl.load_policy(folder).tasks)
        assert f"# {name}\n" in (folder / "README.md").read_text(encoding="utf-8")
