"""A comparison as text, CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from mtrl.report.comparison import ALL, Comparison, Row
from mtrl.report.statistics import Estimate
from mtrl.run.evaluation.report import aligned


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """For a terminal."""
        drawn = RichTable(title=self.title, title_justify="left")
        for number, column in enumerate(self.heading):
            drawn.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*row, style="bold" if any(cell.endswith("*") for cell in row) else None)
        return drawn

    def text(self) -> list[str]:
        """Lines of plain text."""
        return [self.title, "", *aligned([tuple(self.heading), *map(tuple, self.rows)])]

    def markdown(self) -> list[str]:
        """Lines of Markdown."""
        rows = [self.heading, ["---", *["---:"] * (len(self.heading) - 1)], *self.rows]
        lines = (" | ".join(re.sub(r"([|*_])", r"\\\1", cell) for cell in row) for row in rows)
        return [f"**{self.title}**", "", *(f"| {line} |" for line in lines)]

    def html(self) -> list[str]:
        """Lines of HTML."""
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows]
        heading = "".join(f"<th>{escape(cell)}</th>" for cell in self.heading)
        body = [f"<tr>{row}</tr>" for row in (heading, *rows)]
        return ["<div class=table><table>", f"<caption>{escape(self.title)}</caption>", *body, "</table></div>"]

    def latex(self) -> list[str]:
        """Lines of LaTeX, for the package booktabs."""
        heading, *rows = (" & ".join(map(_latex, row)) + r" \\" for row in (self.heading, *self.rows))
        columns = "l" + "r" * (len(self.heading) - 1)
        body = [r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"]
        return [f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]


def _latex(cell: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", cell)


def tables(comparison: Comparison) -> list[Table]:
    """The tables of a comparison: groups in rows where all tasks are meant, and in columns where each task is."""
    digits = 1 if comparison.measure == "return" else 3
    groups = list(dict.fromkeys(row.group for row in comparison.tables[0]))
    rows_name = columns_name = {group: group for group in groups}
    if len(groups) > 3 and comparison.tables[0][0].task == ALL:  # too many names for a line
        columns_name = {group: f"({number})" for number, group in enumerate(groups, 1)}
        rows_name = {group: f"{number} {group}" for group, number in columns_name.items()}
    drawn = []
    for rows in comparison.tables:
        of_all = rows[0].task == ALL
        heading, *lines = _in_all(rows, rows_name, digits) if of_all else _by_task(rows, columns_name, digits)
        drawn.append(Table(f"{comparison.measure} at {rows[0].at}", heading, lines))
    return drawn


def _in_all(rows: Sequence[Row], names: Mapping[str, str], digits: int) -> list[list[str]]:
    """A line for each group, without columns in which nothing is known."""
    lines = [["all tasks", "runs", "mean", "IQM", "difference", "p", "P(improvement)"]]
    for row in rows:
        p = "" if math.isnan(row.difference.p) else f"{row.difference.p:.2g}{_star(row)}"
        estimates = [_cell(row.mean, digits), _cell(row.iqm, digits), _cell(row.difference, digits, "+")]
        lines.append([names[row.group], str(row.runs), *estimates, p, _cell(row.improvement, 2)])
    known = [index for index, column in enumerate(zip(*lines[1:], strict=True)) if any(column)]
    return [[line[index] for index in known] for line in lines]


def _by_task(rows: Sequence[Row], names: Mapping[str, str], digits: int) -> list[list[str]]:
    """A line for each task."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row.task, [row.task]).append(_mean_and_difference(row, digits))
    return [["task", *names.values()], *lines.values()]


def _mean_and_difference(row: Row, digits: int) -> str:
    mean, change = f"{row.mean.value:.{digits}f}", row.difference.value
    return mean if math.isnan(change) else f"{mean} ({change:+.{digits}f}){_star(row)}"


def _star(row: Row) -> str:
    return " *" if row.difference.p < 0.05 else ""


def _cell(estimate: Estimate, digits: int, sign: str = "") -> str:
    """A number and its interval, each if known."""
    value, low, high = (f"{x:{sign}.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    if math.isnan(estimate.low):
        return "" if math.isnan(estimate.value) else value
    return f"{value} ({low} to {high})"


def to_csv(comparison: Comparison) -> str:
    """Every number, with a row for each time, task and group."""
    file = io.StringIO()
    rows = [{"measure": comparison.measure, **_flat(asdict(row))} for table in comparison.tables for row in table]
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates as columns (`mean`, `mean_low`, `mean_high`), empty where unknown."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        for part, number in value.items() if isinstance(value, dict) else [("value", value)]:
            unknown = isinstance(number, float) and math.isnan(number)
            flat[name if part == "value" else f"{name}_{part}"] = "" if unknown else number
    return flat


def _lines(comparison: Comparison, form: Callable[[Table], list[str]], remark: str = "") -> str:
    drawn = [line for table in tables(comparison) for line in (*form(table), "")]
    return "\n".join([*drawn, *(f"{remark}{note}" for note in comparison.notes)]) + "\n"


def to_text(comparison: Comparison) -> str:
    """Tables and notes as plain text."""
    return _lines(comparison, Table.text)


def to_markdown(comparison: Comparison) -> str:
    """Tables and notes in Markdown."""
    return _lines(comparison, Table.markdown)


def to_latex(comparison: Comparison) -> str:
    """Tables in LaTeX, and notes as remarks."""
    return _lines(comparison, Table.latex, "% ")


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Prints tables and notes, as plain text unless the console is a terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.out(to_text(comparison), highlight=False, end="")
        return
    for table in tables(comparison):
        console.print(table.rich())
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False)
