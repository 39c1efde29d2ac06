"""What benchmarks/transfer.py reads from curves, and its tasks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from transfer import HELD_OUT, TRAINED, curve_of, steps_to

CURVE = [(100, 0.0), (200, 0.5), (400, 0.9)]


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
