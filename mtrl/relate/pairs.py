"""A folder of runs of each task, from scratch and from the policy of every other task: `mtrl.relate.runs` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mtrl.files import stored_number
from mtrl.relate.transfer import auc, transfer_matrix
from mtrl.report.runs import is_finished
from mtrl.run.logger import read_rows
from mtrl.types import UserError

SCRATCH = "scratch"


def run_dir(folder: Path, before: str | None, task: str) -> Path:
    """Where a run of `task` is that begins with the policy of `before`, or from scratch."""
    return folder / (SCRATCH if before is None else f"from_{quote(before, safe=' ')}") / quote(task, safe=" ")


def matrix_of(folder: Path, tasks: Sequence[str]) -> np.ndarray:
    """Forward transfer from the task of a row to that of a column; NaN where a run is missing, 0 of a task to itself.

    Raises:
        UserError: No task has a run from scratch in `folder`.
    """
    areas = {
        (before, task): area
        for before in (None, *tasks)
        for task in tasks
        if before != task and (area := _area(run_dir(folder, before, task))) is not None
    }
    scratch = {task: [area] for (before, task), area in areas.items() if before is None}
    if not scratch:
        raise UserError(f"{folder}: expected runs of these tasks from scratch ({SCRATCH}/{tasks[0]}, ...), found none.")
    after = {(before, task): [area] for (before, task), area in areas.items() if before is not None}
    matrix = transfer_matrix(tasks, scratch, after)
    np.fill_diagonal(matrix, 0)
    return matrix


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
