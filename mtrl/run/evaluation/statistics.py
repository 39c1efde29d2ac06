"""Statistics of an evaluation, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrl.types import EvalResult


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927), without continuity correction."""
    from scipy.special import ndtri

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be in 0..n with n > 0, not {successes} of {n}.")
    z = float(ndtri(0.5 + confidence / 2))
    centre = (successes + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(successes * (n - successes) / n + z**2 / 4)
    # The limits at 0 and n successes are exact; rounding would miss them.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value (S,) per training seed; NaN for a single seed.

    Like every bootstrap interval it is too narrow for a handful of seeds, so report S with it.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values must have shape (S,) with S > 0, not {values.shape}.")
    if values.size == 1:
        return math.nan, math.nan
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(result: EvalResult) -> dict[str, Any]:
    """Statistics of an evaluation, as plain values.

    `success_rate` and `mean_return` are means over tasks; `tasks` holds, by name, `success_rate` with its 95% Wilson
    `interval` [low, high], `mean_return`, `mean_length` and the numbers of `episodes` and of those `truncated` by the
    evaluation. Success is left out for tasks that do not report it, and its mean is over the tasks that do. Returns
    that are not comparable have no mean.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for name, episodes in result.by_task.items():
        n, outcomes = len(episodes), [episode.success for episode in episodes if episode.success is not None]
        tasks[name] = {
            **_success(outcomes),
            "mean_return": math.fsum(episode.episode_return for episode in episodes) / n,
            "mean_length": sum(episode.length for episode in episodes) / n,
            "episodes": n,
            "truncated": sum(episode.truncated for episode in episodes),
        }
    means = {}
    for key in ("success_rate", "mean_return"):
        values = [task[key] for task in tasks.values() if key in task]
        if values and (key != "mean_return" or result.comparable_returns):
            means[key] = math.fsum(values) / len(values)
    return {**means, "tasks": tasks}


def _success(outcomes: Sequence[bool]) -> dict[str, Any]:
    """Success rate and interval of a task; empty if it reports no success."""
    successes, n = sum(outcomes), len(outcomes)
    return {"success_rate": successes / n, "interval": list(wilson_interval(successes, n))} if n else {}


def pooled_interval(result: EvalResult) -> tuple[float, float]:
    """95% Wilson interval of the success rate over the episodes of all tasks together; NaN if none reports success.

    As wide as if all tasks were equally hard, so it is too wide for the mean over tasks rather than too narrow.
    """
    outcomes = [episode.success for episode in result.episodes if episode.success is not None]
    return wilson_interval(sum(outcomes), len(outcomes)) if outcomes else (math.nan, math.nan)


def return_interval(
    by_task: Sequence[Sequence[float] | np.ndarray], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over tasks of one policy's mean returns.

    It says how much the episodes matter, each task's being resampled; it says nothing of other training seeds.

    Args:
        by_task: Returns of each task's episodes. NaN if a task has a single one.
    """
    if min(map(len, by_task)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for returns in by_task:
        drawn = rng.integers(len(returns), size=(resamples, len(returns)))
        means += np.asarray(returns, dtype=np.float64)[drawn].mean(1) / len(by_task)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def metrics(result: EvalResult) -> dict[str, float]:
    """Scores and summary as metrics: `eval/success_rate`, `eval/success_rate/<task>`; likewise for `eval/return`."""
    statistics = summary(result)
    named = {f"eval/{name}": value for name, value in result.scores.items()}
    for key, name in (("success_rate", "eval/success_rate"), ("mean_return", "eval/return")):
        if key in statistics:
            named[name] = statistics[key]
        named |= {f"{name}/{task}": values[key] for task, values in statistics["tasks"].items() if key in values}
    return named
