"""What learning one task first is worth for another, from the success curves of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]
"""Steps so far, and the success rate of the episodes that ended since the entry before."""


def auc(curve: Curve) -> float:
    """Mean success rate over training, in [0, 1]: each entry counts for the steps since the one before."""
    steps, rates = np.array(curve).T
    return float(np.diff(steps, prepend=0) @ rates / steps[-1])


def forward_transfer(with_transfer: float, scratch: float) -> float:
    """Which fraction of what is missing in `scratch` is gained, from two areas: 1 at best, negative for a loss.

    Wolczyk et al., "Continual World" (2021), section 3. NaN if nothing is missing.
    """
    return (with_transfer - scratch) / (1 - scratch) if scratch < 1 else float("nan")


def transfer_matrix(
    tasks: Sequence[str], scratch: Mapping[str, Sequence[float]], after: Mapping[tuple[str, str], Sequence[float]]
) -> np.ndarray:
    """(K, K): forward transfer from the task of the row to that of the column, NaN where no run tells.

    Args:
        scratch: Areas of the runs of each task from scratch; their mean counts.
        after: Areas of the runs of (task before, task).
    """
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for i, before in enumerate(tasks):
        for j, task in enumerate(tasks):
            if (before, task) in after and task in scratch:
                matrix[i, j] = forward_transfer(float(np.mean(after[before, task])), float(np.mean(scratch[task])))
    return matrix


def ahp_affinities(scores: np.ndarray) -> np.ndarray:
    """(S,) shares of S sources in what is gained on one target: Taskonomy's normalisation.

    Of each pair of sources, the share of the n test cases in which one has a higher score than the other, a tie being
    half; then the principal eigenvector of the matrix of the odds, which sums to 1. So only orders count, not the scale
    of the scores (Zamir et al., "Taskonomy", 2018, section 3.3; shares are clipped to [0.001, 0.999], as there).

    Args:
        scores: (S, n), higher is better.
    """
    wins = (scores[:, None] > scores[None]).mean(-1) + (scores[:, None] == scores[None]).mean(-1) / 2
    wins = wins.clip(0.001, 0.999)
    values, vectors = np.linalg.eig(wins / wins.T)
    principal = np.abs(vectors[:, values.real.argmax()].real)
    return principal / principal.sum()
