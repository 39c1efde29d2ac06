"""Relations between tasks as text, CSV and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.files import replacing
from mtrl.relate.agreement import Agreement
from mtrl.relate.grouping import Partition, dendrogram
from mtrl.relate.scaling import Map
from mtrl.report.figures import TaskMap, task_maps

WIDEST = 12
"""Tasks up to which a matrix is printed whole, in 100 columns."""
NEAREST = 3


def matrix_lines(tasks: Sequence[str], matrix: np.ndarray) -> list[str]:
    """A matrix as text; of many tasks, the most related ones of each."""
    longest = max(map(len, tasks))
    if len(tasks) <= WIDEST:
        heading = " " * (longest + 4) + "".join(f"{number:6}" for number in range(1, len(tasks) + 1))
        rows = [
            f"{number:2}  {name:<{longest}}" + "".join(f"{value:6.2f}" for value in row)
            for number, (name, row) in enumerate(zip(tasks, matrix, strict=True), 1)
        ]
        return [heading, *rows]
    lines = []
    for i, name in enumerate(tasks):
        order = [j for j in np.argsort(-matrix[i], kind="stable") if j != i][:NEAREST]
        lines.append(f"{name:<{longest}}  " + ", ".join(f"{tasks[j]} {matrix[i, j]:.2f}" for j in order))
    return lines


def named(tasks: Sequence[str], partition: Partition) -> list[list[str]]:
    """Groups with the names of their tasks."""
    return [[tasks[task] for task in group] for group in partition]


def setting(groups: Sequence[Sequence[str]]) -> str:
    """The setting that trains groups apart."""
    return "'network.trunk.groups=[" + ",".join(f"[{','.join(group)}]" for group in groups) + "]'"


def agreement_lines(agreements: Mapping[tuple[str, str], Agreement]) -> list[str]:
    """Rank correlations between measures."""
    return [
        f"{one} and {other}: {found.correlation:.2f} ({found.low:.2f} to {found.high:.2f})"
        for (one, other), found in agreements.items()
    ]


def csv_text(tasks: Sequence[str], relations: Mapping[str, np.ndarray]) -> str:
    """A row for each ordered pair of different tasks, with a column for each relation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["from", "to", *relations])
    for i, one in enumerate(tasks):
        for j, other in enumerate(tasks):
            if i != j:
                writer.writerow([one, other, *(f"{matrix[i, j]:.6g}" for matrix in relations.values())])
    return text.getvalue()


def draw(path: Path, title: str, tasks: Sequence[str], matrix: np.ndarray) -> Path:
    """Writes a heat map in the order of a dendrogram, which is beside it. Needs matplotlib. Returns the path."""
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import dendrogram as draw_tree

    side = 3 + 0.25 * len(tasks)
    figure = Figure(figsize=(side + 1, side))
    tree, axes = figure.subplots(1, 2, width_ratios=(1, 4))
    drawn = draw_tree(dendrogram(matrix), orientation="left", ax=tree, no_labels=True, color_threshold=0)
    tree.axis("off")
    order = drawn["leaves"]
    shown, labels = matrix[np.ix_(order, order)], [tasks[task] for task in order]
    largest = max(abs(float(shown[~np.eye(len(order), dtype=bool)].min())), 1) if (shown < 0).any() else 1
    signed = bool((shown < 0).any())
    colors = {"cmap": "RdBu" if signed else "viridis", "vmin": -largest if signed else None}
    image = axes.imshow(shown, origin="lower", aspect="auto", vmax=largest if signed else None, **colors)
    axes.set_xticks(range(len(order)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(order)), labels, fontsize=7)
    axes.yaxis.tick_right()
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7, pad=0.3)
    figure.tight_layout()
    return _saved(figure, path)


def draw_map(path: Path, name: str, tasks: Sequence[str], found: Map, groups: Sequence[Sequence[str]]) -> Path:
    """Writes a map of the tasks, with their groups as colours. Needs matplotlib. Returns the path."""
    figure = task_maps([TaskMap(name, tasks, found.positions, found.share, groups)])
    figure.set_facecolor("white")
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> Path:
    """Writes a figure; the same one is the same file."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": path.stem}), replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
    return path
