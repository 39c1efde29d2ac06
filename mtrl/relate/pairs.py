"""A folder of runs of each task, from scratch and from the policy of every other task: `mtrl.relate.runs` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mtrl.config import load_yaml
from mtrl.files import json_text, stored_number, write_atomic
from mtrl.relate.transfer import auc, transfer_matrix
from mtrl.report.runs import is_finished
from mtrl.run.logger import read_rows
from mtrl.run.reading import read_json, reason
from mtrl.types import UserError

SCRATCH = "scratch"

Pair = tuple[str | None, str]
"""The task before (None: from scratch), and the task of a run."""


def run_dir(folder: Path, before: str | None, task: str) -> Path:
    """Where a run of `task` is that begins with the policy of `before`, or from scratch."""
    return folder / (SCRATCH if before is None else f"from_{quote(before, safe=' ')}") / quote(task, safe=" ")


def matrix_of(where: Path, tasks: Sequence[str]) -> np.ndarray:
    """Forward transfer from the task of a row to that of a column; NaN where a run is missing, 0 of a task to itself.

    Args:
        where: A folder of runs, or a file of their areas.

    Raises:
        UserError: No task has a run from scratch in it, or the file cannot be read.
    """
    areas = read_areas(where) if where.is_file() else _finished(where, tasks)
    scratch = {task: [area] for (before, task), area in areas.items() if before is None and task in tasks}
    if not scratch:
        raise UserError(f"{where}: expected runs of these tasks from scratch ({SCRATCH}/{tasks[0]}, ...), found none.")
    after = {(before, task): [area] for (before, task), area in areas.items() if before is not None}
    matrix = transfer_matrix(tasks, scratch, after)
    np.fill_diagonal(matrix, 0)
    return matrix


def read_areas(file: Path, settings: Sequence[str] | None = None) -> dict[Pair, float]:
    """The areas that `store_areas` kept; none if there is no file.

    Raises:
        UserError: The file cannot be read, or it is of runs with other settings.
    """
    if not file.exists():
        return {}
    try:
        stored = read_json(file, file.parent)
        made_with = list(stored["settings"])
        areas = {(one["before"], one["task"]): float(one["area"]) for one in stored["runs"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} cannot be read: it is no file of areas ({reason(error)}).") from error
    if settings is not None and made_with != list(settings):
        expected, found = " ".join(made_with), " ".join(settings)
        raise UserError(f"{file} is of runs with other settings: expected {expected}, found {found}.")
    return areas


def store_areas(file: Path, folder: Path, tasks: Sequence[str], settings: Sequence[str]) -> None:
    """Adds what the finished runs of a folder contribute to a file. Of a pair that it has, the first run counts.

    Raises:
        UserError: The file cannot be read or written, or it is of runs with other settings.
    """
    known = read_areas(file, settings)
    new = {pair: area for pair, area in _finished(folder, tasks).items() if pair not in known}
    if not new:
        return
    stored = read_json(file, file.parent)["runs"] if known else []
    for (before, task), area in new.items():
        config = load_yaml(run_dir(folder, before, task) / "config.yaml")
        kept = {"steps": config["total_steps"], "seed": config["seed"]}
        stored.append({"before": before, "task": task, "area": round(area, 6), **kept})
    lines = ",\n".join(json_text(one) for one in stored)
    try:
        write_atomic(file, f'{{"settings": {json_text(list(settings))}, "runs": [\n{lines}\n]}}\n')
    except OSError as error:
        raise UserError(f"Cannot write {file}: {error.strerror or error}.") from error


def _finished(folder: Path, tasks: Sequence[str]) -> dict[Pair, float]:
    return {
        (before, task): area
        for before in (None, *tasks)
        for task in tasks
        if before != task and (area := _area(run_dir(folder, before, task))) is not None
    }


def _area(where: Path) -> float | None:
    """The area under the success rate while exploring. None if the run is not there or not finished."""
    if not is_finished(where):
        return None
    key = "train/success_rate_mean"
    curve = [(row["step"], stored_number(row[key])) for row in read_rows(where / "metrics.jsonl") if key in row]
    known = [(step, rate) for step, rate in curve if not np.isnan(rate)]
    if not known:
        raise UserError(f"{where}: expected success rates in its log, found none: its environment reports no success.")
    return auc(known)
