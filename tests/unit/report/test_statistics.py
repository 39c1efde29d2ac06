"""Statistics over seeds, against rliable, scipy and hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, ttest_ind, ttest_rel

from mtrl.report.statistics import adjusted, difference, interquartile_mean, mean, probability_of_improvement

X = np.array([[((7 * s + 3 * k + s * k * k) % 11) / 10 for k in range(4)] for s in range(6)])
Y = np.array([[((5 * s + 2 * k + s * s * k) % 11) / 10 for k in range(4)] for s in range(5)])


@pytest.mark.parametrize(
    ("found", "value", "low", "high"),
    [
        (lambda: interquartile_mean(X), 0.525, 0.38333333, 0.65833333),
        (lambda: interquartile_mean(Y), 0.44, 0.32, 0.55),
        (lambda: probability_of_improvement(X, Y), 0.5916666666666667, 0.4375, 0.75),
    ],
)
def test_as_rliable(found, value, low, high) -> None:
    """rliable 1.2.0: `get_interval_estimates`, 50,000 and 20,000 resamples, of `aggregate_iqm` and the probability."""
    estimate = found()
    assert estimate.value == pytest.approx(value)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.015)  # we draw 2,000 resamples


def test_improvement_is_the_statistic_of_mann_and_whitney() -> None:
    """U is at most 6 * 5 = 30 in each of four tasks. Equal runs improve on each other with probability one half."""
    us = [mannwhitneyu(X[:, k], Y[:, k]).statistic for k in range(4)]
    assert probability_of_improvement(X, Y).value == pytest.approx(np.mean(us) / 30)
    assert probability_of_improvement(X, X).value == 0.5


def test_differences_are_t_tests() -> None:
    a, b = X.mean(1), X[::-1].mean(1) - 0.1
    for paired, expected in ((True, ttest_rel(a, b)), (False, ttest_ind(a, b, equal_var=False))):
        found = difference(a, b, paired)
        assert found.value == pytest.approx(0.1)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
        assert found.p == pytest.approx(expected.pvalue)


def test_mean() -> None:
    """Mean 0.5, deviation 0.1, 3 runs: 0.5 +- 4.3027 * 0.1 / sqrt(3), where 4.3027 is Student's 97.5% at 2 degrees."""
    found = mean(np.array([0.4, 0.5, 0.6]))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.25159, 0.74841), abs=1e-5)


@pytest.mark.parametrize("paired", [True, False])
def test_nothing_is_inferred_from_what_does_not_vary(paired: bool) -> None:
    """0.3 - 0.2 and 0.8 - 0.7 differ in their last bit. One run has no interval."""
    a, b = (np.array([0.3, 0.8]), np.array([0.2, 0.7])) if paired else (np.full(3, 0.3), np.full(3, 0.2))
    found = difference(a, b, paired)
    assert found.value == pytest.approx(0.1)
    assert math.isnan(found.p)
    assert math.isnan(found.low)
    one = np.array([[0.5, 0.7]])
    assert math.isnan(difference(one.mean(1), one.mean(1), paired).p)
    assert interquartile_mean(one).value == pytest.approx(0.6)
    assert math.isnan(interquartile_mean(one).low)


def test_one_of_two_groups_may_be_constant() -> None:
    """A task that all runs of a group solve is compared with one that the others sometimes do."""
    assert difference(np.ones(3), np.array([0.5, 0.55, 0.6]), False).p < 0.05


def test_many_comparisons() -> None:
    """Benjamini and Hochberg: p times their number over their rank: 0.01 * 3, 0.04 * 3 / 2, 0.2; NaN is none."""
    assert adjusted([0.2, math.nan, 0.01, 0.04]) == pytest.approx([0.2, math.nan, 0.03, 0.06], nan_ok=True)
    assert adjusted([]) == []


@pytest.mark.parametrize("paired", [True, False])
def test_claims_between_equals_are_rare(paired: bool) -> None:
    """With three runs each: 5% of 100 are 5 +- 2.2."""
    runs = np.random.default_rng(0).standard_normal((100, 2, 3))
    assert sum(difference(a, b, paired).p < 0.05 for a, b in runs) <= 11  # 5 + 3 * 2.2
