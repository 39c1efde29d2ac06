"""Areas and forward transfer of benchmarks/transfer.py, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from transfer import HELD_OUT, TRAINED, auc, curve_of, forward_transfer, steps_to

CURVE = [(100, 0.0), (200, 0.5), (400, 0.9)]


def test_area() -> None:
    """(100 * 0 + 100 * 0.5 + 200 * 0.9) / 400 = 230 / 400."""
    assert auc(CURVE) == pytest.approx(0.575)
    assert auc([(10, 1.0), (50, 1.0)]) == 1


def test_forward_transfer() -> None:
    """(0.8 - 0.6) / (1 - 0.6) = 0.5; (0.5 - 0.6) / 0.4 = -0.25."""
    assert forward_transfer(0.8, 0.6) == pytest.approx(0.5)
    assert forward_transfer(0.5, 0.6) == pytest.approx(-0.25)
    assert forward_transfer(1.0, 0.6) == 1


def test_steps() -> None:
    assert steps_to(CURVE, 0.5) == 200
    assert steps_to(CURVE, 0.8) == 400
    assert steps_to(CURVE, 0.95) == float("inf")


def test_rows_without_an_episode() -> None:
    """The next entry counts for their steps, too."""
    curve = {"columns": ["step", "wall_s", "a", "b"], "rows": [[100, 1.0, 0.5, None], [200, 2.0, 0.5, 1.0]]}
    assert curve_of({"training_curve": curve}, "b") == [(200, 1.0)]


def test_every_fifth_task() -> None:
    assert (len(HELD_OUT), len(TRAINED), set(HELD_OUT) & set(TRAINED)) == (10, 40, set())
    assert HELD_OUT[:2] == ["assembly-v3", "button-press-topdown-wall-v3"]
