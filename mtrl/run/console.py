"""Shows the progress of a run: updated in place on a terminal, as occasional lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TaskResults:
    """The latest result of each task: success rates, or returns if no task reports success."""

    measure: str
    """success or return."""
    by_task: Mapping[str, float]
    """NaN for a task without episodes, or one that reports no success while others do."""
    averaged: bool = True
    """Whether the mean over tasks is meaningful."""

    def text(self, value: float) -> str:
        """A result as text."""
        if math.isnan(value):
            return "--"
        return f"{value:.2f}" if self.measure == "success" else f"{value:,.1f}"

    def mean(self) -> str | None:
        """The mean over the tasks with results, with the name of the measure; None if there is none."""
        known = [value for value in self.by_task.values() if not math.isnan(value)]
        return f"{self.measure} {self.text(sum(known) / len(known))}" if known and self.averaged else None


TASK_LINES = 3
"""Most lines of results per task in a log."""
NO_RESULTS = TaskResults("success", {})


class Progress:
    """Shows rate, time left, results per task and time by phase.

    Used as a context manager, which releases the terminal on exit.

    Args:
        interval: Seconds between plain lines; a terminal is redrawn four times a second at most.
        console: Standard output by default.
    """

    def __init__(self, interval: float = 30.0, console: Console | None = None) -> None:
        self.console = console or Console()
        live = Live(console=self.console, auto_refresh=False, transient=True)  # a finished bar is erased
        self._live = live if self.console.is_terminal else None
        self._interval = 0.25 if self._live else interval
        self._next = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def print(self, text: Any) -> None:
        """Prints a line (or any renderable of rich) above the display."""
        self.console.print(text, highlight=False, soft_wrap=isinstance(text, str), markup=False)

    def update(
        self,
        step: int,
        total: int,
        rate: float,
        results: TaskResults,
        shares: Mapping[str, float],
        label: str = "training",
        unit: str = "steps",
    ) -> None:
        """Shows the progress if the interval has passed.

        Args:
            step: Steps done so far.
            total: Steps in total.
            rate: Steps per second.
            shares: Fraction of time by phase.
            label: Name of the activity.
            unit: What a step is.
        """
        now = time.monotonic()
        if now < self._next and step < total:
            return
        self._next = now + self._interval
        width, height = self.console.size
        headline = _wrapped(_headline(step, total, rate, results, shares, label, unit), width)
        if self._live:
            bar = ProgressBar(total=max(total, 1), completed=step, width=min(60, width))
            # A bar does not end its line. The cursor has the last one.
            tasks = _grid(results, width, height - len(headline) - 2)
            self._live.update(Group(bar, Text("\n" + "\n".join(headline)), tasks), refresh=True)
        else:
            self.console.out("\n".join([*headline, *_task_lines(results, width)]), highlight=False)


def _headline(
    step: int,
    total: int,
    rate: float,
    results: TaskResults,
    shares: Mapping[str, float],
    label: str,
    unit: str,
) -> list[str]:
    left = duration(max(total - step, 0) / rate) if rate > 0 else "?"
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    parts = [
        f"{label} {step:,}/{total:,} ({min(1.0, step / max(total, 1)):.1%})",
        f"{speed} {unit}/s",
        f"{left} left",
    ]
    if mean := results.mean():
        parts.append(mean)
    return parts + [f"{phase} {share:.0%}" for phase, share in shares.items()]


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Parts of a sentence in as few lines as they fit; all but the first line are indented."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return lines


def _lowest(results: TaskResults, count: int) -> list[tuple[str, float]]:
    """The tasks with the lowest results, in their own order; those without a result come first."""
    known = {name: -math.inf if math.isnan(value) else value for name, value in results.by_task.items()}
    chosen = set(sorted(known, key=known.__getitem__)[:count])
    return [(name, value) for name, value in results.by_task.items() if name in chosen]


def _task_lines(results: TaskResults, width: int) -> list[str]:
    """The results as plain text; if they need more than `TASK_LINES`, only the lowest."""
    total = len(results.by_task)
    for count in range(total, 0, -1):
        parts = [f"{name} {results.text(value)}" for name, value in _lowest(results, count)]
        more = [f"and {total - count} higher"] if count < total else []
        if len(lines := _wrapped(["", *parts, *more], width)) <= TASK_LINES:
            break
    return lines if total else []


def _grid(results: TaskResults, width: int, height: int) -> Table:
    """The results in as many columns as fit; if they need more than `height` lines, only the lowest."""
    total = len(results.by_task)
    widest = max((len(results.text(value)) + 1 + len(name) for name, value in results.by_task.items()), default=1)
    columns = max(1, (width + 3) // (widest + 3))
    places = columns * max(1, height)
    shown = _lowest(results, total if total <= places else places - 1)
    cells = []
    for name, value in shown:
        done = results.measure == "success" and value >= 0.5
        cells.append(Text.assemble((results.text(value), "bold green" if done else "yellow"), " ", name))
    if len(shown) < total:
        cells.append(Text(f"and {total - len(shown)} higher"))
    grid = Table.grid(padding=(0, 3))
    for start in range(0, len(cells), columns):
        grid.add_row(*cells[start : start + columns])
    return grid


def duration(seconds: float) -> str:
    """Seconds as `1d02h`, `3h05m`, `7m12s` or `8s`."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{secs:02}s" if minutes else f"{secs}s"
