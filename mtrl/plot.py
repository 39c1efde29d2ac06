"""Plot the metrics of a run.

python -m mtrl.plot run=runs/...                                # runs/.../plots/*.png
python -m mtrl.plot run=runs/... out=folder
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mtrl.config import parse, run_or_exit, split_paths
from mtrl.files import replacing
from mtrl.registry import construct
from mtrl.report.figures import check_matplotlib, lines_by_task, maps
from mtrl.report.metrics import curves, matrices
from mtrl.run.logger import read_rows
from mtrl.types import UserError

CURVES: dict[str, tuple[str, ...]] = {
    "success": ("eval/success_rate", "train/success_rate"),
    "return": ("eval/return", "train/return"),
    "conflicts": ("grad/*_conflict_rate", "grad/*_cosine_mean"),
    "task_weights": ("grad/*_task_weight",),
    "task_shares": ("train/task_share",),
    "routing_entropy": ("train/*_routing_entropy",),
    "value_scale": ("train/value_scale",),
    "network_usage": ("train/*_dormant_ratio", "train/*_effective_rank"),
}
"""Files and the metrics in each, one below the other; a per-task metric has a line for each task."""
CURRENT: dict[str, tuple[str, bool]] = {"cosine": ("grad/*_cosine", True), "routing": ("train/*_routing", False)}
"""Files of matrices, with the values logged last, and whether these can be negative: cosines between tasks, and each
task's use of modules."""


def plot(run: str, out: str | None = None) -> list[Path]:
    """Plots the metrics of a run. Returns the files. Raises `UserError` if there are no metrics or no matplotlib."""
    rows = read_rows(Path(run) / "metrics.jsonl")
    check_matplotlib("A plot")
    folder = Path(run) / "plots" if out is None else Path(out)
    lines, tables = curves(rows), matrices(rows)
    chosen = {file: _matching(lines, patterns) for file, patterns in CURVES.items()}
    figures = {file: lines_by_task(shown) for file, shown in chosen.items() if shown}
    for file, (pattern, signed) in CURRENT.items():
        if shown := _matching(tables, (pattern,)):
            figures[file] = maps(shown, *((-1.0, 1.0), "RdBu") if signed else ((0.0, 1.0), "viridis"))
    try:
        return [_save(figure, folder / f"{file}.png") for file, figure in figures.items()]
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error


def _matching(metrics: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    return {name: metrics[name] for pattern in patterns for name in metrics if fnmatch(name, pattern)}


def _save(figure: Any, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=300, facecolor="white")
    return path


def main() -> None:
    """Command line: `key=value` arguments of `plot`."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys: run, out")
        return 0
    settings, paths = split_paths(arguments, ("run", "out"))
    keywords = {override.key_or_group: override.value() for override in parse(settings)}
    for path in construct("plot", plot, {**keywords, **paths}):
        print(path)
    return 0


if __name__ == "__main__":
    main()
