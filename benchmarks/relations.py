"""Keeps what `python -m mtrl.relate` says of a run under results/, and makes the section of docs/relations.md from it.

python benchmarks/relations.py store RUN NAME      # results/NAME/relate.json from RUN/relate
python benchmarks/relations.py render              # the section, and docs/relations_NAME_*.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mtrl.files import json_text
from mtrl.relate.agreement import agreement
from mtrl.relate.pairs import read_areas
from mtrl.relate.report import draw, draw_map
from mtrl.relate.scaling import Map
from results import DOCS, RESULTS, write_between

MARKERS = ("<!-- relations: written by benchmarks/relations.py -->", "<!-- end of relations -->")
TRANSFER = "transfer"
SHOWN = (TRANSFER, "cka", "lookahead")
"""The measures whose figures are in the docs."""


def store(run: Path, name: str, stem: str = "relate") -> Path:
    """Writes the matrices with four digits, without those of lower layers and without paths of one machine."""
    found = json.loads((run / "relate" / "relate.json").read_text())
    del found["policies"]
    for relation in found["relations"].values():
        del relation["layers"]
    path = RESULTS / name / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(_rounded(found)) + "\n")
    return path


def _rounded(node: Any) -> Any:
    if isinstance(node, float):
        return float(f"{node:.4g}")
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    return [_rounded(value) for value in node] if isinstance(node, list) else node


def render() -> None:
    """Writes the section between the markers of docs/relations.md, and its figures."""
    lines = [line for path in sorted(RESULTS.glob("*/relate.json")) for line in _section(path)]
    write_between(DOCS / "relations.md", MARKERS, lines)


def _section(path: Path) -> list[str]:
    found, name = json.loads(path.read_text()), path.parent.name
    again = json.loads((path.parent / "again.json").read_text())
    assert again["tasks"] == found["tasks"]
    lines = [(path.parent / "note.md").read_text().rstrip(), "", *_measures(found["relations"], again["relations"]), ""]
    lines += [*_agreements(found["agreement"]), ""]
    lines += [*_transfers(found["tasks"], found["relations"]), "", *_predictions(found, again["relations"]), ""]
    for measure in SHOWN:
        relation = found["relations"][measure]
        heat, drawn = (DOCS / f"relations_{name}_{measure}{suffix}.svg" for suffix in ("", "_map"))
        draw(heat, measure, found["tasks"], np.array(relation["matrix"]))
        plane = Map(np.array(relation["map"]), relation["map_share"])
        draw_map(drawn, measure, found["tasks"], plane, relation["groups"])
        lines += [f"![heat map of {measure}]({heat.name})", f"![map of the tasks by {measure}]({drawn.name})", ""]
    return lines[:-1]


def _measures(relations: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """A row for each measure."""
    heading = ["measure", "pairs: lowest, median, highest", "another seed", "halves of the log", "p", "smaller group"]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for name, relation in relations.items():
        matrix = np.array(relation["matrix"])
        pairs = matrix[~np.eye(len(matrix), dtype=bool)]
        spread = ", ".join(f"{value:.3f}" for value in np.quantile(pairs, [0, 0.5, 1]))
        seeds = _cell(agreement(matrix, np.array(again[name]["matrix"]))._asdict()) if name in again else ""
        halves = _cell(relation["halves"]) if "halves" in relation else ""
        group = ", ".join(min(relation["groups"], key=len))
        lines.append(f"| `{name}` | {spread} | {seeds} | {halves} | {relation['p_value']:.3f} | {group} |")
    return lines


def _agreements(agreements: list[dict[str, Any]]) -> list[str]:
    """A row for each pair of measures, the highest agreement first; bold where the interval is without zero."""
    lines = ["| measures | rank correlation (95% interval over tasks) |", "| --- | --- |"]
    for one in sorted(agreements, key=lambda one: -one["correlation"]):
        if TRANSFER in one["of"]:
            continue  # these have a table of their own
        bold = "**" if one["low"] > 0 or one["high"] < 0 else ""
        lines.append(f"| `{one['of'][0]}`, `{one['of'][1]}` | {bold}{_cell(one)}{bold} |")
    return lines


def _transfers(tasks: list[str], relations: dict[str, Any]) -> list[str]:
    """Forward transfer from the task of a row to that of a column, with the areas from scratch below."""
    areas = read_areas(RESULTS / "mt10_pairs.json")
    short = [task.removesuffix("-v3") for task in tasks]
    lines = [f"| from, to | {' | '.join(short)} |", "|" + " --- |" * (len(tasks) + 1)]
    for i, row in enumerate(relations[TRANSFER]["matrix"]):
        cells = ["" if i == j else f"{value:.2f}" for j, value in enumerate(row)]
        lines.append(f"| {short[i]} | {' | '.join(cells)} |")
    return [*lines, f"| *area from scratch* | {' | '.join(f'{areas[None, task]:.2f}' for task in tasks)} |"]


def _predictions(found: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """A row for each measure: its agreement with transfer over all pairs, and over the sources of each task."""
    transfer = np.array(found["relations"][TRANSFER]["matrix"])
    own = ("all pairs", "sources of a task", "gain")
    heading = ["measure", *own, *(f"{name}, another seed" for name in own)]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for one in sorted(found["agreement"], key=lambda one: -one["correlation"]):
        if TRANSFER not in one["of"]:
            continue
        (name,) = set(one["of"]) - {TRANSFER}
        cells = [_cell(one), *_of_sources(np.array(found["relations"][name]["matrix"]), transfer)]
        if name in again:
            other = np.array(again[name]["matrix"])
            cells += [_cell(agreement(other, transfer)._asdict()), *_of_sources(other, transfer)]
        else:
            cells += ["", "", ""]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    mean, best = transfer[~np.eye(len(transfer), dtype=bool)].mean(), gain(transfer, transfer)
    return [*lines, "", f"The mean gain of all sources is {mean:.2f}, that of the best ones {best:.2f}."]


def _of_sources(measure: np.ndarray, transfer: np.ndarray) -> list[str]:
    ranks = agreement(ranked_in_columns(measure), ranked_in_columns(transfer))
    return [_cell(ranks._asdict()), f"{gain(measure, transfer):.2f}"]


def gain(measure: np.ndarray, transfer: np.ndarray) -> float:
    """Mean transfer to each task from the one that a measure ranks highest for it."""
    others = np.where(np.eye(len(measure), dtype=bool), -np.inf, measure)
    return float(transfer[others.argmax(0), np.arange(len(measure))].mean())


def ranked_in_columns(matrix: np.ndarray) -> np.ndarray:
    """The ranks of the other tasks in each column; NaN on the diagonal."""
    others = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    return rankdata(others, axis=0, nan_policy="omit")


def _cell(found: dict[str, float]) -> str:
    return f"{found['correlation']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", run, name]:
            print(store(Path(run), name))
        case ["store", run, name, "again"]:
            print(store(Path(run), name, "again"))
        case ["render"]:
            render()
        case _:
            sys.exit(__doc__)
