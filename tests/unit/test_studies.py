"""Studies that are compared with each other have one budget and one size; benchmarks/relations.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mtrl.config import parse
from mtrl.envs.metaworld.catalog import MT10
from mtrl.nn.networks import build_policy
from mtrl.relate.grouping import best_partition
from tests.helpers import describe, make_spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import relations
from studies import STUDIES

from results import RESULTS


def options(variant: str) -> dict[str, object]:
    return {one.key_or_group: one.value() for one in parse(STUDIES["mt10_groups"].variants[variant])}


def test_groups_are_beside_one_network_for_all() -> None:
    """The same budget; partitions of the same tasks into groups of the same sizes, all different."""
    groups, one_network = STUDIES["mt10_groups"], STUDIES["mt10_kickstart"]
    assert (groups.budget, one_network.variants["scratch"]) == (one_network.budget, [])
    partitions = [options(variant)["network.trunk.groups"] for variant in groups.variants]
    sizes = {tuple(map(len, partition)) for partition in partitions}
    assert len(sizes) == 1
    for partition in partitions:
        assert sorted(task for group in partition for task in group) == sorted(MT10)
    assert len({frozenset(map(frozenset, partition)) for partition in partitions}) == 4


def test_the_best_groups_are_those_that_were_found() -> None:
    stored = json.loads((RESULTS / "mt10_relations" / "relate.json").read_text())
    found = stored["relations"]["lookahead"]
    assert options("best_two")["network.trunk.groups"] == found["groups"]
    tasks = [[stored["tasks"].index(task) for task in group] for group in found["groups"]]
    assert best_partition(np.array(found["matrix"]), 2) == tasks


def test_the_section_on_relations_is_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    before = (relations.DOCS / "relations.md").read_text()
    (tmp_path / "relations.md").write_text(before)
    monkeypatch.setattr(relations, "DOCS", tmp_path)
    relations.render()
    assert (tmp_path / "relations.md").read_text() == before
    assert len(list(tmp_path.glob("relations_mt10_relations_*.svg"))) == 2 * len(relations.SHOWN)


def test_ranks_in_columns() -> None:
    """Of the first column the others have .5 and .2, of the second .1 and .3, of the third a tie."""
    matrix = np.array([[9, 0.1, 7], [0.5, 9, 7], [0.2, 0.3, 9]])
    expected = np.array([[np.nan, 1, 1.5], [2, np.nan, 1.5], [1, 2, np.nan]])
    np.testing.assert_array_equal(relations.ranked_in_columns(matrix), expected)


def test_gain_of_the_sources_that_a_measure_names() -> None:
    """The second task for the first (transfer .2), the third for the second (.4), the first for the third (.9)."""
    measure = np.array([[9, 0, 1], [1, 9, 0], [0, 1, 9]])
    transfer = np.array([[0, -1, 0.9], [0.2, 0, -1], [-1, 0.4, 0]])
    assert relations.gain(measure, transfer) == pytest.approx(0.5)


def test_groups_have_the_parameters_of_one_network() -> None:
    """Within 1%, with the observations that the preset mt10 makes of Meta-World's."""
    spec = make_spec(10, 93, 4)
    each = {"name": "mlp", "width": 256, "depth": 3, "activation": "tanh", "init": "orthogonal"}
    halves = [list(spec.task_names[:5]), list(spec.task_names[5:])]
    narrow = {**each, "width": options("best_two")["network.trunk.each.width"]}
    grouped = {"name": "grouped", "stem": {"name": "none"}, "each": narrow, "groups": halves}
    one, two = (
        sum(part.numel() for part in build_policy(describe("gaussian", "per_task", trunk=trunk), spec).parameters())
        for trunk in (each, grouped)
    )
    assert one == 168_528
    assert abs(two / one - 1) < 0.01
