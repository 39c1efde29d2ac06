"""How far two relations between the same tasks agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Agreement(NamedTuple):
    """A rank correlation with its 95% interval. NaN where it cannot be told."""

    correlation: float
    low: float
    high: float


def agreement(one: np.ndarray, other: np.ndarray, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Spearman's correlation of two relations (K, K) over the pairs of different tasks, both directions.

    The interval is a percentile bootstrap over tasks, not over pairs, since pairs with a task in common depend on each
    other; a pair of a task with itself is left out. A pair that either relation does not know (NaN) does not count.
    """
    K, rng = len(one), np.random.default_rng(seed)
    draws = [_spearman(one, other, rng.integers(K, size=K)) for _ in range(resamples)]
    known = [draw for draw in draws if not np.isnan(draw)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    return Agreement(_spearman(one, other, np.arange(K)), float(low), float(high))


def _spearman(one: np.ndarray, other: np.ndarray, tasks: np.ndarray) -> float:
    row, column = tasks[:, None], tasks[None]
    a, b = one[row, column], other[row, column]
    counts = (row != column) & ~np.isnan(a) & ~np.isnan(b)
    ranks = [rankdata(x[counts]) for x in (a, b)]
    if not counts.any() or any(rank.std() == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
