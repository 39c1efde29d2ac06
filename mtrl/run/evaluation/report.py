"""An evaluation as a line, a table or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mtrl.files import json_text, write_atomic
from mtrl.run.evaluation.statistics import summary
from mtrl.run.reading import read_json, reason
from mtrl.types import EpisodeResult, EvalResult, UserError


def headline(result: EvalResult) -> str:
    """An evaluation in one line: means over tasks, else scores, else the return of each task."""
    statistics = summary(result)
    kinds = (("success", "success_rate", 3), ("return", "mean_return", 1))
    means = [f"{name} {statistics[key]:.{digits}f}" for name, key, digits in kinds if key in statistics]
    returns = ", ".join(f"{name} {task['mean_return']:.1f}" for name, task in statistics["tasks"].items())
    return ", ".join(means or _scores(result)) or f"returns {returns}"


def _scores(result: EvalResult) -> list[str]:
    """The scores over all tasks, if the benchmark has any."""
    return [f"{name}: {value:.3f}" for name, value in result.scores.items() if "/" not in name]


_COLUMNS = ("goal", "success", "return", "length", "truncated")


def to_json(result: EvalResult) -> dict[str, Any]:
    """Protocol, scores, summary and every episode (by task, one list per field) as plain values."""
    episodes: dict[str, dict[str, list[Any]]] = {}
    for episode in result.episodes:
        columns = episodes.setdefault(episode.task, {name: [] for name in _COLUMNS})
        columns["goal"].append(episode.goal)
        columns["success"].append(episode.success)
        columns["return"].append(episode.episode_return)
        columns["length"].append(episode.length)
        columns["truncated"].append(episode.truncated)
    return {
        "protocol": dict(result.protocol),
        "scores": dict(result.scores),
        "has_success": result.has_success,
        "comparable_returns": result.comparable_returns,
        "summary": summary(result),
        "episodes": episodes,
    }


def read_eval(path: Path, root: Path) -> EvalResult:
    """Reads what `write_eval` wrote to a file in the folder `root`. Raises `UserError` if it cannot be read."""
    try:
        stored = read_json(path, root)
        episodes = tuple(
            EpisodeResult(task, *values)
            for task, columns in stored["episodes"].items()
            for values in zip(*(columns[name] for name in _COLUMNS), strict=True)
        )
        return EvalResult(stored["protocol"], episodes, stored["scores"], stored["comparable_returns"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: it is not an evaluation ({reason(error)}).") from error


def write_eval(path: Path, result: EvalResult, **more: Any) -> None:
    """Atomically writes `to_json(result)`, preceded by `more` (step, wall time, ...).

    Raises:
        OSError: The file cannot be written.
    """
    write_atomic(path, json_text({**more, **to_json(result)}) + "\n")


Row = tuple[str, ...]


def _rows(result: EvalResult) -> tuple[Row, list[Row], list[Row]]:
    """Heading, tasks, and the mean if there is one. There are success columns if any task reports success."""
    statistics = summary(result)
    success = result.has_success
    heading = ("task", *(("success", "95% interval") if success else ()), "return", "length", "episodes")
    tasks = []
    for name, task in statistics["tasks"].items():
        cells = [f"{task['mean_return']:.1f}", f"{task['mean_length']:.0f}", str(task["episodes"])]
        if "interval" in task:
            low, high = task["interval"]
            cells = [f"{task['success_rate']:.2f}", f"{low:.2f} to {high:.2f}", *cells]
        elif success:
            cells = ["--", "", *cells]
        tasks.append((name, *cells))
    rate = (f"{statistics['success_rate']:.3f}", "") if success else ()
    mean_return = f"{statistics['mean_return']:.1f}" if result.comparable_returns else ""
    means = [("mean", *rate, mean_return, "", "")] if rate or mean_return else []
    return heading, tasks, means


def _caption(result: EvalResult) -> str:
    """Numbers of truncated episodes and scores over all tasks, if there are any, and the protocol."""
    scores = "; ".join(_scores(result))
    protocol = "; ".join(f"{key}: {value}" for key, value in result.protocol.items())
    counts = "; ".join(
        f"{name} {task['truncated']} of {task['episodes']}"
        for name, task in summary(result)["tasks"].items()
        if task["truncated"]
    )
    return "\n".join(filter(None, (f"truncated episodes: {counts}" if counts else "", scores, protocol)))


def table(result: EvalResult) -> Table:
    """Per-task results and their means for a terminal, with scores and the protocol beneath."""
    heading, tasks, means = _rows(result)
    drawn = Table(caption=_caption(result), caption_justify="left")
    for column in heading:
        drawn.add_column(column, justify="left" if column == "task" else "right")
    for row in tasks:
        drawn.add_row(*row)
    drawn.add_section()
    for row in means:
        drawn.add_row(*row, style="bold")
    return drawn


def plain_table(result: EvalResult) -> str:
    """The same table as plain text, for logs and files."""
    heading, tasks, means = _rows(result)
    return "\n".join([*aligned([heading, *tasks, *means]), _caption(result)])


def side_by_side(results: Mapping[str, EvalResult]) -> list[str]:
    """Success of each task in several evaluations and its mean, as lines of a table; returns if there is no success.

    Args:
        results: Evaluations of the same tasks by the names of their columns.
    """
    statistics = [summary(result) for result in results.values()]
    what, key, digits = ("success", "success_rate", 3)
    if key not in statistics[0]:
        what, key, digits = ("return", "mean_return", 1)
    tasks = statistics[0]["tasks"]
    every = {**{name: [one["tasks"][name] for one in statistics] for name in tasks}, "mean": statistics}

    def cell(one: Mapping[str, Any]) -> str:
        return f"{one[key]:.{digits}f}" if key in one else "--"

    return aligned([(what, *results), *((name, *map(cell, of_row)) for name, of_row in every.items())])


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows of a table as lines of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return lines


def show(result: EvalResult, console: Console | None = None) -> None:
    """Prints the table, as plain text unless the console is a terminal."""
    console = console or Console()
    if console.is_terminal:
        console.print(table(result))
    else:
        console.out(plain_table(result), highlight=False)
