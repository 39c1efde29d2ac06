"""Plot the metrics of a run.

python -m mtrl.plot run=runs/...                                # runs/.../plots/*.png
python -m mtrl.plot run=runs/... out=folder
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mtrl.config import parse, run_or_exit, split_paths
from mtrl.files import replacing, stored_number
from mtrl.registry import construct, missing_extra
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
CURRENT: dict[str, str] = {"cosine": "grad/*_cosine", "routing": "train/*_routing"}
"""Files of matrices, with the values logged last: cosines between tasks, and each task's use of modules."""

Series = tuple[list[int], list[float]]
"""Steps and values."""


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


def matrices(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[str], list[str], list[list[float]]]]:
    """By metric: names of rows, names of columns and the numbers logged last."""
    last = {key: value for row in rows for key, value in row.items()}
    tasks = list(dict.fromkeys(key.split("/", 2)[2] for key in last if key.startswith("train/task_share/")))
    tables: dict[str, tuple[list[str], list[str], list[list[float]]]] = {}
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


def plot(run: str, out: str | None = None) -> list[Path]:
    """Plots the metrics of a run. Returns the files. Raises `UserError` if there are no metrics or no matplotlib."""
    rows = read_rows(Path(run) / "metrics.jsonl")
    try:
        import matplotlib as mpl

        mpl.use("agg")
    except ImportError as error:
        raise missing_extra("A plot", "matplotlib", "plot") from error
    folder = Path(run) / "plots" if out is None else Path(out)
    lines, tables = curves(rows), matrices(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {file: _matching(lines, patterns) for file, patterns in CURVES.items()}
        drawn = [_draw_curves(folder / f"{file}.png", shown) for file, shown in chosen.items() if shown]
        chosen = {file: _matching(tables, (pattern,)) for file, pattern in CURRENT.items()}
        return drawn + [_draw_matrices(folder / f"{file}.png", shown) for file, shown in chosen.items() if shown]
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error


def _matching(metrics: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    return {name: metrics[name] for pattern in patterns for name in metrics if fnmatch(name, pattern)}


def _draw_curves(path: Path, shown: Mapping[str, Mapping[str, Series]]) -> Path:
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(shown), 1, figsize=(9, 3 * len(shown)), sharex=True, squeeze=False)
    for (axes,), (name, by_task) in zip(rows, shown.items(), strict=True):
        colors = {task: f"C{number}" for number, task in enumerate(filter(None, by_task))}
        for task, (steps, values) in by_task.items():
            width = 1 if task else 2
            axes.plot(steps, values, ".-", label=task or "mean", color=colors.get(task, "black"), lw=width, ms=4)
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
        if 1 < len(by_task) <= 12:
            axes.legend(fontsize=6, ncols=2)
    rows[-1][0].set_xlabel("environment steps")
    return _save(figure, path)


def _draw_matrices(path: Path, shown: Mapping[str, tuple[list[str], list[str], list[list[float]]]]) -> Path:
    import matplotlib.pyplot as plt

    side = 3 + 0.2 * max(len(numbers) for _, _, numbers in shown.values())
    figure, (row,) = plt.subplots(1, len(shown), figsize=(side * len(shown), side), squeeze=False)
    for axes, (name, (rows, columns, numbers)) in zip(row, shown.items(), strict=True):
        signed = name.endswith("_cosine")
        image = axes.imshow(numbers, cmap="RdBu" if signed else "viridis", vmin=-1 if signed else 0, vmax=1)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
        axes.set_title(name, fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.7)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
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
