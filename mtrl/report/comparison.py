"""Groups of runs beside each other: in all tasks and in each, at equal steps and at equal minutes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtrl.report.runs import Clock, FinishedRun, common_measure, differing_inside, groups
from mtrl.report.statistics import (
    Difference,
    Estimate,
    adjusted,
    difference,
    interquartile_mean,
    mean,
    probability_of_improvement,
)
from mtrl.types import UserError

ALL = "all"
"""Stands for a task where the mean over tasks is meant."""
UNKNOWN, NO_DIFFERENCE = Estimate(math.nan), Difference(math.nan)


@dataclass(frozen=True)
class Row:
    """What the runs of a group do, and how that differs from the first group."""

    at: str
    """When: "400,000 steps" or "12.5 minutes"."""
    task: str
    group: str
    runs: int
    mean: Estimate
    difference: Difference = NO_DIFFERENCE
    """Not for the first group. Its p is adjusted for the number of comparisons in the table."""
    iqm: Estimate = UNKNOWN
    """Interquartile mean; only over all tasks."""
    improvement: Estimate = UNKNOWN
    """Probability of improvement on the first group; only over all tasks."""


@dataclass(frozen=True)
class Comparison:
    """Tables of rows, each about all tasks or about single ones, and what the numbers mean."""

    measure: str
    tables: Sequence[Sequence[Row]]
    notes: Sequence[str]


def compare(
    runs: Sequence[FinishedRun], by: Sequence[str] = (), clocks: Sequence[Clock] = ("steps", "minutes")
) -> Comparison:
    """Compares groups of runs with the first of them.

    Args:
        runs: As `read_runs` returns them.
        by: Settings that make a group; by default all in which the runs differ.
        clocks: What is equal, one after the other.

    Raises:
        UserError: The groups cannot be made, or some runs end by updates and others by steps.
    """
    found = groups(runs, by)
    first, *others = found
    measure, tasks = common_measure(runs)
    averaged = measure != "return" or len(tasks) == 1 or runs[0].evaluations[-1].comparable_returns
    paired = [name for name in others if _pairs(found[name], found[first])]
    notes = [f"Protocol: {'; '.join(f'{key}: {value}' for key, value in runs[0].evaluations[-1].protocol.items())}."]
    if inside := differing_inside(found):
        notes.append(f"Runs of the same group also differ in {', '.join(inside)}.")
    if others:
        notes.append(f"Differences from {first}; * p < 0.05, adjusted for the number of comparisons in the table.")
    if paired:
        notes.append(f"Runs are paired by their seeds with those of {first}: {'; '.join(paired)}.")
    tables = []
    for clock in clocks:
        time = min(run.times(clock)[-1] for run in runs)
        at = _words(runs, clock, time)
        if late := [name for name, own in found.items() if any(run.times(clock)[0] > time for run in own)]:
            notes.append(f"Not evaluated within {at}: {'; '.join(late)}. A smaller eval.every evaluates more often.")
            continue
        scores = {
            name: np.stack([run.scores(measure, tasks, clock, time) for run in own]) for name, own in found.items()
        }
        if averaged:
            tables.append(_table(at, scores, {ALL: list(range(len(tasks)))}, paired))
        if len(tasks) > 1:
            tables.append(_table(at, scores, {task: [k] for k, task in enumerate(tasks)}, paired))
    if not tables:
        raise UserError(notes[-1])
    return Comparison(measure, tables, notes)


def _words(runs: Sequence[FinishedRun], clock: Clock, time: float) -> str:
    """A time with its unit."""
    if clock == "minutes":
        return f"{time:.1f} minutes"
    units = {"updates" if run.counts_updates else "steps" for run in runs}
    if len(units) > 1:
        raise UserError("Some runs end by total_steps and others by total_updates: compare them with at=minutes.")
    return f"{time:,.0f} {units.pop()}"


def _pairs(runs: Sequence[FinishedRun], baseline: Sequence[FinishedRun]) -> bool:
    """Whether each of several runs, which are ordered by their seeds, has one counterpart."""
    seeds = [run.seed for run in runs]
    return seeds == [run.seed for run in baseline] and len(set(seeds)) == len(seeds) > 1


def _table(
    at: str, scores: Mapping[str, np.ndarray], columns: Mapping[str, list[int]], paired: Sequence[str]
) -> list[Row]:
    """The rows about some columns of the scores (S, K) of each group."""
    first, *_ = scores
    rows = []
    for task, chosen in columns.items():
        for name, every in scores.items():
            own = every[:, chosen]
            row = Row(at, task, name, len(own), mean(own.mean(1)))
            if task == ALL:
                row = replace(row, iqm=interquartile_mean(own))
            if name != first:
                baseline = scores[first][:, chosen]
                row = replace(row, difference=difference(own.mean(1), baseline.mean(1), name in paired))
                if task == ALL:
                    row = replace(row, improvement=probability_of_improvement(own, baseline))
            rows.append(row)
    ps = adjusted([row.difference.p for row in rows])
    return [replace(row, difference=replace(row.difference, p=p)) for row, p in zip(rows, ps, strict=True)]
