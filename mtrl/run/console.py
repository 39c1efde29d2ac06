"""Shows the progress of a run: updated in place on a terminal, as occasional lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
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
            return " -- "
        return f"{value:.2f}" if self.measure == "success" else f"{value:,.1f}"

    def mean(self) -> str | None:
        """The mean over the tasks with results, with the name of the measure; None if there is none."""
        known = [value for value in self.by_task.values() if not math.isnan(value)]
        return f"{self.measure} {self.text(sum(known) / len(known))}" if known and self.averaged else None


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
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
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
        line = _headline(step, total, rate, results, shares, label, unit)
        if self._live:
            self._live.update(_display(line, step, total, results), refresh=True)
        else:
            tasks = " ".join(f"{name} {results.text(value)}" for name, value in results.by_task.items())
            self.console.out(f"{line} | {tasks}" if tasks else line, highlight=False)


def _headline(
    step: int,
    total: int,
    rate: float,
    results: TaskResults,
    shares: Mapping[str, float],
    label: str,
    unit: str,
) -> str:
    left = duration(max(total - step, 0) / rate) if rate > 0 else "?"
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    parts = [
        f"{label} {step:,}/{total:,} ({min(1.0, step / max(total, 1)):.1%})",
        f"{speed} {unit}/s",
        f"{left} left",
    ]
    if mean := results.mean():
        parts.append(mean)
    if shares:
        parts.append(" ".join(f"{phase} {share:.0%}" for phase, share in shares.items()))
    return "  ".join(parts)


def _display(headline: str, step: int, total: int, results: TaskResults) -> Group:
    tasks = Table.grid(padding=(0, 3), pad_edge=True)
    cells = []
    for name, value in results.by_task.items():
        done = results.measure == "success" and value >= 0.5
        cells.append(Text.assemble((results.text(value), "bold green" if done else "yellow"), " ", name))
    columns = 2 if len(cells) <= 10 else 3
    for start in range(0, len(cells), columns):
        tasks.add_row(*cells[start : start + columns])
    bar = ProgressBar(total=max(total, 1), completed=step, width=60)
    return Group(bar, Text(headline), tasks)


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
