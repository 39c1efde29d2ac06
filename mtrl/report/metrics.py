"""Metrics that runs logged, as lines over time and as matrices."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.files import stored_number
from mtrl.report.runs import Clock, FinishedRun
from mtrl.run.logger import read_rows

Series = tuple[list[int], list[float]]
"""Steps and values."""
Matrix = tuple[list[str], list[str], list[list[float]]]
"""Names of rows, names of columns, numbers."""


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """Metrics by name, each with a line per task, or a single one called ""."""
    lines: dict[str, dict[str, Series]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for row in rows:
        for key, value in row.items():
            if not isinstance(value, list):
                group, _, rest = key.partition("/")
                name, _, task = rest.partition("/")
                steps, values = lines[f"{group}/{name}"][task]
                steps.append(row["step"])
                values.append(stored_number(value))
    return lines


def matrices(rows: Sequence[Mapping[str, Any]]) -> dict[str, Matrix]:
    """Matrices by metric, as they were logged last."""
    last = {key: value for row in rows for key, value in row.items()}
    tasks = list(dict.fromkeys(key.split("/", 2)[2] for key in last if key.startswith("train/task_share/")))
    tables: dict[str, Matrix] = {}
    for key, value in last.items():
        if isinstance(value, list):
            tables[key] = (tasks, tasks, [[stored_number(x) for x in numbers] for numbers in value])
    modules: dict[str, dict[str, list[float]]] = defaultdict(dict)
    uses = (key for key in last if fnmatch(key, "train/*_routing_[0-9]*/*"))
    for name in dict.fromkeys("/".join(key.split("/")[:2]) for key in uses):
        network, _, module = name.partition("_routing_")
        modules[f"{network}_routing"][module] = [stored_number(last.get(f"{name}/{task}")) for task in tasks]
    for name, columns in modules.items():
        tables[name] = (tasks, list(columns), [list(numbers) for numbers in zip(*columns.values(), strict=True)])
    return tables


def logged_rows(run: FinishedRun) -> list[dict[str, Any]]:
    """What a run logged while training: its `metrics.jsonl`, or the curve that benchmarks/results.py stored."""
    path = Path(run.path)
    if path.suffix != ".json":
        file = path / "metrics.jsonl"
        return read_rows(file) if file.exists() else []
    curve = json.loads(path.read_text(encoding="utf-8"))["training_curve"]
    names = [_metric(column) for column in curve["columns"]]
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None} for row in curve["rows"]]


def _metric(column: str) -> str:
    """The name of the metric in a column of a stored curve."""
    if column.startswith("score of "):
        return f"train/return/{column.removeprefix('score of ').removesuffix(' while exploring')}"
    named = {"wall_s": "time/wall_s", "success_rate while exploring": "train/success_rate_mean"}
    return named.get(column, column.replace("success_rate of ", "train/success_rate/"))


def series(
    run: FinishedRun, rows: Sequence[Mapping[str, Any]], name: str, clock: Clock
) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of a metric in the rows of a run, without gaps.

    Minutes are of training alone: the wall-clock time of a row less that of the evaluations before it.
    """
    found = [row for row in rows if row.get(name) is not None and (clock == "steps" or "time/wall_s" in row)]
    values = np.array([row[name] for row in found], dtype=float)
    if clock == "steps":
        return np.array([row["step"] for row in found], dtype=float), values
    ends = [evaluation.wall_minutes for evaluation in run.evaluations]
    paused = [0.0, *(evaluation.wall_minutes - evaluation.minutes for evaluation in run.evaluations)]
    minutes = [row["time/wall_s"] / 60 for row in found]
    return np.array([minute - paused[bisect_right(ends, minute)] for minute in minutes], dtype=float), values


def common_times(times: Sequence[np.ndarray], count: int = 100) -> np.ndarray:
    """Times at which all of several series are known, from the latest beginning to the earliest end; maybe none."""
    if not times or not all(len(one) for one in times):
        return np.array([])
    first, last = max(one[0] for one in times), min(one[-1] for one in times)
    return np.linspace(first, last, count) if last > first else np.array([last] if last == first else [])
