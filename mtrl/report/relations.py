"""Relations between the tasks of runs, for a page: what `python -m mtrl.relate policies=RUN` wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtrl.files import stored_number
from mtrl.report.figures import Drawn, Groups, TaskMap, maps, task_maps
from mtrl.report.tables import Table
from mtrl.run.reading import read_json, reason
from mtrl.types import UserError

FILE = "relate/relate.json"


class Related(NamedTuple):
    """Measures of how tasks are related, as heat maps and as maps of the tasks, and how far they agree."""

    drawn: list[Drawn]
    agreements: list[Table]


def relations(groups: Groups) -> Related:
    """Relations of one run of each group, its first that has any. Raises `UserError` for a file that cannot be read."""
    having = {name: [run for run in runs if (Path(run.path) / FILE).is_file()][:1] for name, runs in groups.items()}
    stored = {name if len(groups) > 1 else "": _read(Path(run.path)) for name, runs in having.items() for run in runs}
    measures = dict.fromkeys(measure for one in stored.values() for measure in one["relations"])
    drawn = [figure for measure in measures for figure in _figures(measure, stored)]
    return Related(drawn, [_agreements(name, one) for name, one in stored.items() if one["agreement"]])


def _read(run: Path) -> dict[str, Any]:
    """What a run's relations are, with every entry that is used here, and tasks of a group beside each other."""
    try:
        stored = read_json(run / FILE, run)
        found = {measure: _relation(stored["tasks"], one) for measure, one in stored["relations"].items()}
        return {"relations": found, "agreement": [_agreement(one) for one in stored["agreement"]]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run / FILE} cannot be read ({reason(error)}): python -m mtrl.relate policies={run} makes it again."
        ) from error


def _relation(tasks: list[str], stored: dict[str, Any]) -> dict[str, Any]:
    """Raises `ValueError` if a part of it is not about these tasks."""
    matrix, points = (np.array([[*map(stored_number, row)] for row in stored[key]], float) for key in ("matrix", "map"))
    in_order = [task for group in stored["groups"] for task in group]
    if matrix.shape != (len(tasks), len(tasks)) or points.shape != (len(tasks), 2) or sorted(in_order) != sorted(tasks):
        raise ValueError(f"expected numbers for the {len(tasks)} tasks that it names")
    order = [tasks.index(task) for task in in_order]
    return {
        "matrix": (in_order, in_order, matrix[np.ix_(order, order)].tolist()),
        "map": TaskMap("", in_order, points[order], float(stored["map_share"]), stored["groups"]),
    }


def _agreement(stored: dict[str, Any]) -> list[str]:
    value, low, high = (float(stored_number(stored[key])) for key in ("correlation", "low", "high"))
    return [" and ".join(stored["of"]), "" if math.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"]


def _figures(measure: str, stored: dict[str, dict[str, Any]]) -> list[Drawn]:
    """The heat map and the map of tasks, with a panel for each run."""
    found = {name: one["relations"][measure] for name, one in stored.items() if measure in one["relations"]}
    matrices = {name: one["matrix"] for name, one in found.items()}
    every = np.concatenate([np.ravel(numbers) for _, _, numbers in matrices.values()])
    lowest, highest = float(np.nanmin(every)), float(np.nanmax(every))
    limits = (lowest, highest) if lowest >= 0 else (-(most := max(-lowest, highest)), most)
    heat = maps(matrices, limits, "viridis" if lowest >= 0 else "RdBu")
    panels = [replace(one["map"], name=name) for name, one in found.items()]
    return [
        Drawn(f"relation_{measure}", f"{measure}: from the task of the row to that of the column.", heat),
        Drawn(f"relation_{measure}_map", f"{measure}: related tasks are close; colours are groups.", task_maps(panels)),
    ]


def _agreements(name: str, stored: dict[str, Any]) -> Table:
    title = "Rank correlation of two measures over pairs of tasks, and its 95% interval"
    return Table(f"{title}: {name}" if name else title, ["measures", "correlation"], stored["agreement"])
