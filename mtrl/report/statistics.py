"""Statistics over training seeds, on scores (S, K) of S runs in K tasks.

As in Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", and their library
rliable, with scipy's bootstrap: the interquartile mean and the probability of improvement, with stratified intervals.

Difference from the paper:
    1. A stratified bootstrap draws the runs of each task for themselves. Those of the paper were trained in one task
       each; ours are trained in all tasks together, and what they have in common makes its intervals too narrow. So
       something is claimed only by the intervals of means and of differences, for which a run is one observation:
       Student's t, because a bootstrap over three to five runs is too narrow as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
DIGITS = 9
"""Scores that differ by less are equal: sums of floats differ in their last bits."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, which is NaN where there are too few runs."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Difference(Estimate):
    """A difference of means, and the probability of one as large between runs of the same kind."""

    p: float = math.nan


def mean(scores: np.ndarray) -> Estimate:
    """Mean of one score (S,) per run, with the interval of Student's t over runs."""
    found = _student(scores)
    return Estimate(found.value, found.low, found.high)


def band(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (N,) of scores (S, N) with the limits of `mean`'s intervals, each column for itself."""
    from scipy.stats import ttest_1samp

    value, scores = scores.mean(0), np.round(scores, DIGITS)
    if len(scores) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # in columns that do not vary
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = ttest_1samp(scores, 0).confidence_interval(0.95)
    known = np.ptp(scores, axis=0) > 0
    return value, np.where(known, low, np.nan), np.where(known, high, np.nan)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Performance profiles (S, N): the share of the tasks in which each run scores more than a threshold.

    Agarwal et al. 2021, equation 5, for each run by itself.

    Args:
        scores: Scores (S, K).
        thresholds: Thresholds (N,).
    """
    return (scores[:, :, None] > thresholds).mean(1)


def interquartile_mean(scores: np.ndarray) -> Estimate:
    """Mean of the middle half of all scores (S, K), with a stratified bootstrap interval."""
    return _stratified(list(scores.T), lambda *samples: _iqm(np.concatenate(samples, axis=-1)))


def _iqm(scores: np.ndarray) -> Any:
    from scipy.stats import trim_mean

    return trim_mean(scores, 0.25, axis=-1)


def probability_of_improvement(scores: np.ndarray, baseline: np.ndarray) -> Estimate:
    """How probably a run scores more than one of the baseline in the same task, on average over tasks.

    Equal scores count one half: it is the statistic of the Mann-Whitney test over its maximum.

    Args:
        scores: Scores (S, K).
        baseline: Scores (T, K).
    """
    K = scores.shape[1]

    def statistic(*samples: np.ndarray) -> Any:
        pairs = zip(samples[:K], samples[K:], strict=True)
        signs = (np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1)) for x, y in pairs)
        return 0.5 + 0.5 * sum(signs) / K

    return _stratified([*scores.T, *baseline.T], statistic)


def _stratified(samples: Sequence[np.ndarray], statistic: Callable[..., Any]) -> Estimate:
    """A statistic along the last axis of samples, with the interval from drawing each of them for itself."""
    from scipy.stats import bootstrap

    value = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return Estimate(value)
    interval = bootstrap(
        samples,
        lambda *drawn, axis: statistic(*drawn),
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def difference(scores: np.ndarray, baseline: np.ndarray, paired: bool) -> Difference:
    """Difference of the means of one score per run, (S,) and (T,), with the interval and p of a t-test.

    Student's for runs in pairs, else Welch's. NaN where the scores do not vary, from which nothing can be inferred.
    """
    from scipy.stats import ttest_ind

    if paired:
        return _student(scores - baseline)
    value = float(np.mean(scores) - np.mean(baseline))
    samples = [np.round(sample, DIGITS) for sample in (scores, baseline)]
    if min(map(len, samples)) < 2 or not any(np.ptp(sample) for sample in samples):
        return Difference(value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # one of the two does not vary
        return _tested(value, ttest_ind(*samples, equal_var=False))


def _student(scores: np.ndarray) -> Difference:
    """Mean of scores (S,), with the interval of Student's t and the p of its difference from 0."""
    from scipy.stats import ttest_1samp

    value, scores = float(np.mean(scores)), np.round(scores, DIGITS)
    if len(scores) < 2 or not np.ptp(scores):
        return Difference(value)
    return _tested(value, ttest_1samp(scores, 0))


def _tested(value: float, result: Any) -> Difference:
    low, high = result.confidence_interval(0.95)
    return Difference(value, float(low), float(high), float(result.pvalue))


def adjusted(ps: Sequence[float]) -> list[float]:
    """The p of several comparisons, such that those below 0.05 are wrong in 5% of the cases (Benjamini, Hochberg)."""
    from scipy.stats import false_discovery_control

    numbers = np.array(ps, dtype=np.float64)
    known = ~np.isnan(numbers)
    if known.any():
        numbers[known] = false_discovery_control(numbers[known])
    return numbers.tolist()
