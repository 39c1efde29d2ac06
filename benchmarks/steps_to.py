"""How many steps the variants of a study need, from their stored training curves.

    python benchmarks/steps_to.py mt10_kickstart scratch            # to 0.9 of the final success of `scratch`
    python benchmarks/steps_to.py mt10_kickstart scratch 0.5

A run is there when its success while exploring is at least this share of what `scratch` has at the end of its curves
(the mean of its seeds, and of the last tenth of each curve), in two rows of its log in succession: one could be luck.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from transfer import curve_of

from mtrl.registry import unknown
from mtrl.relate.transfer import Curve
from results import RESULTS

COLUMN = "success_rate while exploring"


def final(curve: Curve) -> float:
    """The mean of the last tenth."""
    return float(np.mean([success for _, success in curve[-max(len(curve) // 10, 1) :]]))


def steps_to(curve: Curve, goal: float) -> float:
    """The step of the first of two rows with at least this success; infinity if there are none."""
    return next((step for (step, success), (_, then) in pairwise(curve) if min(success, then) >= goal), float("inf"))


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    name, reference, *share = arguments
    variants = sorted(path.name for path in (RESULTS / name).iterdir() if path.is_dir())
    if reference not in variants:
        sys.exit(unknown("variant", reference, variants))
    curves = {
        variant: {
            path.stem: curve_of(json.loads(path.read_text()), COLUMN)
            for path in sorted((RESULTS / name / variant).glob("*.json"))
        }
        for variant in variants
    }
    goal = float(*share or [0.9]) * float(np.mean([final(curve) for curve in curves[reference].values()]))
    print(f"Steps to {goal:.3f}:")
    for variant, runs in curves.items():
        reached = {seed: steps_to(curve, goal) for seed, curve in runs.items()}
        print(
            f"{variant:12} median {np.median(list(reached.values())):>9,.0f}  ",
            *(f"{s} {n:,.0f}" for s, n in reached.items()),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
