"""What a run says about itself: metric rows (`metrics.jsonl` is the truth), the console, time by phase, peak memory."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mtrl.files import json_text
from mtrl.registry import missing_extra
from mtrl.run.checkpoint import write_atomic
from mtrl.types import Metrics, State, UserError

_warn = logging.getLogger(__name__).warning

# ---------------------------------------------------------------------------------------------------------------------
# Metric rows
# ---------------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Sink(Protocol):
    """A further place for metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one row. An `OSError` ends the use of this sink, not the run."""
        ...

    def close(self) -> None: ...


class TensorBoardSink:
    """TensorBoard event files in `folder`.

    Args:
        folder: Made if missing.
        purge_step: On resume, the checkpoint's step: TensorBoard hides what was logged after it.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # From the step after: the checkpoint's own row was logged before it.
        first = None if purge_step is None else purge_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def check_wandb() -> Any:
    """The module of Weights & Biases. Raises `UserError` if it is not installed, or not told who its user is."""
    try:
        import wandb
    except ImportError as error:
        raise missing_extra("log.wandb=true", "wandb", "wandb") from error
    try:
        wandb.login()
    except wandb.Error as error:
        raise UserError(
            f"log.wandb=true: {' '.join(str(error).split())} WANDB_MODE=offline needs no account."
        ) from error
    return wandb


class WandbSink:
    """Weights & Biases. A run that goes on goes on there too: its id is kept in `<run_dir>/wandb/run_id`.

    Args:
        run_dir: Run folder.
        options: Of `wandb.init` (project, name, config, ...).

    Raises:
        UserError: wandb cannot be used.
    """

    def __init__(self, run_dir: Path, **options: Any) -> None:
        wandb, kept = check_wandb(), run_dir / "wandb" / "run_id"
        if kept.is_file():
            # Rows after the checkpoint are there already, and wandb takes none twice.
            options |= {"id": kept.read_text(encoding="utf-8"), "resume": "allow"}
        try:
            self._run = wandb.init(dir=str(run_dir), **options)
        except wandb.Error as error:
            raise UserError(f"log.wandb=true: {' '.join(str(error).split())}") from error
        write_atomic(kept, self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Logger:
    """Appends one JSON row per call to `<run_dir>/metrics.jsonl`, and passes it to the sinks.

    A row is there for every reader as soon as `log` returns. On a full disk, training goes on: rows wait in memory and
    are written when there is room again.

    Args:
        run_dir: Must exist.
        task_names: Names of the K tasks.
        sinks: Further places for the rows.
    """

    def __init__(self, run_dir: Path, task_names: Sequence[str], sinks: Sequence[Sink] = ()) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.task_names = tuple(task_names)
        self.sinks = list(sinks)
        self._unwritten = b""
        try:
            self._file = self._open()
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}.") from error

    def log(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Logs scalars `()` under their names and vectors `(K,)` as `<name>/<task>`, without the NaN of absent tasks.

        Matrices `(K, K)` become lists of rows with three digits; sinks do not get them. Other NaN and infinite values
        are null in the file, and as they are for the sinks.

        Args:
            step: Environment steps over all tasks.
            metrics: By name.

        Raises:
            ValueError: A tensor of another shape.
        """
        values = self.flatten(metrics)
        self._write({"step": step, **values})
        for sink in list(self.sinks):
            try:
                sink.write(step, {name: value for name, value in values.items() if not isinstance(value, list)})
            except OSError as error:
                _warn(f"{type(sink).__name__} failed and is no longer used: {error}.")
                self.sinks.remove(sink)

    def flatten(self, metrics: Mapping[str, Tensor | float]) -> dict[str, Any]:
        """The row that `log` writes, without the step."""
        row: dict[str, Any] = {}
        num_tasks = len(self.task_names)
        for name, value in metrics.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                row[name] = value.item() if isinstance(value, Tensor) else value
            elif value.shape == (num_tasks, num_tasks):
                row[name] = [[round(x, 3) for x in numbers] for numbers in value.tolist()]
            elif value.shape == (num_tasks,):
                by_task = zip(self.task_names, value.tolist(), strict=True)
                row |= {f"{name}/{task}": number for task, number in by_task if not math.isnan(number)}
            else:
                raise ValueError(
                    f"Metric {name!r}: expected a scalar, or one value for each or each pair of {num_tasks} tasks, "
                    f"found shape {tuple(value.shape)}."
                )
        return row

    def truncate(self, step: int, evaluating: bool = False) -> None:
        """On resume: drops rows later than the checkpoint's step, and a last line torn by a kill.

        Args:
            evaluating: The checkpoint was made before the evaluation of its step, whose row is dropped, too.

        Raises:
            UserError: The file cannot be written.
        """
        os.close(self._file)
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                kept = [line for line in file if not _superseded(line, step, evaluating)]
            write_atomic(self.path, "".join(kept))
            self._file = self._open()
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the file and the sinks."""
        self._write_bytes(b"")
        os.close(self._file)
        for sink in self.sinks:
            sink.close()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _write(self, row: Mapping[str, Any]) -> None:
        self._write_bytes(json_text(row).encode() + b"\n")

    def _write_bytes(self, line: bytes) -> None:
        # Unbuffered: a kill loses no row. What a full disk did not take (even half a row) goes first next time.
        waiting = bool(self._unwritten)
        self._unwritten += line
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            if not waiting:
                _warn(f"Cannot write {self.path}: {error.strerror}. Training goes on; rows wait until there is room.")


def _superseded(line: str, step: int, evaluating: bool) -> bool:
    """Whether a row came after a checkpoint, or is torn."""
    try:
        row = json.loads(line)
        found = float(row["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return True
    again = evaluating and found == step and any(name.startswith("eval/") for name in row)
    return found > step or again or not line.endswith("\n")


class MetricAccumulator:
    """Means of metrics between two rows of the log. Nothing is read from the device before the row is logged.

    In vectors (K,), NaN means that the task was absent and does not count. A scalar NaN is a fault and stays visible.
    """

    _FOLD = 256
    """Values kept of a name before they are summed: summing them one by one would cost several times more."""

    def __init__(self) -> None:
        self._recent: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, metrics: Metrics) -> None:
        """Adds values; each name keeps its shape."""
        for name, value in metrics.items():
            recent = self._recent.setdefault(name, [])
            recent.append(value.detach().clone())
            if len(recent) == self._FOLD:
                self._fold(name)

    def mean(self) -> Metrics:
        """Means of what was added since the last call; NaN for a task that was always absent."""
        for name in list(self._recent):
            self._fold(name)
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> State:
        # Not folded: a run's sums must not depend on when it was saved.
        recent = {name: torch.stack(values) for name, values in self._recent.items()}
        return {"recent": recent, "sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` for what is no state of this."""
        for part, values in state.items():
            if not all(isinstance(value, Tensor) for value in values.values()):
                raise ValueError(f"{part}: expected tensors only")
        sums, counts = ({name: x.shape for name, x in state[part].items()} for part in ("sums", "counts"))
        if sums != counts:
            raise ValueError("sums and counts: expected tensors of the same names and shapes")
        self._recent = {name: list(values) for name, values in state["recent"].items()}
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _fold(self, name: str) -> None:
        recent = self._recent.pop(name)
        device = recent[-1].device  # what was loaded is on the CPU
        if len({value.shape for value in [*recent, self._sums.get(name, recent[0])]}) > 1:
            raise UserError(f"The metric {name} has another shape than in the checkpoint that was resumed.")
        values = torch.stack([value.to(device) for value in recent]).double()
        present = ~values.isnan() if values.ndim > 1 else torch.ones_like(values, dtype=torch.bool)
        total, count = values.where(present, 0.0).sum(0), present.sum(0)
        if name in self._sums:
            total, count = self._sums[name].to(device) + total, self._counts[name].to(device) + count
        self._sums[name], self._counts[name] = total, count


# ---------------------------------------------------------------------------------------------------------------------
# Console
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskResults:
    """How each task goes, as far as known: success rates, or returns where no task reports success."""

    measure: str
    """success or return."""
    by_task: Mapping[str, float]
    """NaN for a task without episodes, or without success where others report it."""
    averaged: bool = True
    """Whether the mean over tasks says something."""

    def text(self, value: float) -> str:
        """A result of this kind."""
        if math.isnan(value):
            return " -- "
        return f"{value:.2f}" if self.measure == "success" else f"{value:,.1f}"

    def mean(self) -> str | None:
        """Over the tasks with results, with its name."""
        known = [value for value in self.by_task.values() if not math.isnan(value)]
        return f"{self.measure} {self.text(sum(known) / len(known))}" if known and self.averaged else None


NO_RESULTS = TaskResults("success", {})


class Progress:
    """Rate, time left, result per task and time by phase: drawn in place on a terminal, else as a line now and then.

    Used as a context manager; the console is free for other output again after it.

    Args:
        interval: Seconds between plain lines; a terminal is redrawn four times a second at most.
        console: Default: standard output.
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
        """Prints a line (or anything that rich can draw) above the display."""
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
        """Shows where the run is, if it is time to.

        Args:
            step: Done so far.
            total: Where it ends.
            rate: Steps per second.
            shares: Fraction of time by phase.
            label: What is going on.
            unit: What is counted.
        """
        now = time.monotonic()
        if now < self._next and step < total:
            return
        self._next = now + self._interval
        if self._live:
            self._live.update(_display(step, total, rate, results, shares, label, unit), refresh=True)
        else:
            line = _headline(step, total, rate, results, shares, label, unit)
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
    parts = [f"{label} {step:,}/{total:,} ({min(1.0, step / max(total, 1)):.1%})", f"{speed} {unit}/s", f"{left} left"]
    if mean := results.mean():
        parts.append(mean)
    if shares:
        parts.append(" ".join(f"{phase} {share:.0%}" for phase, share in shares.items()))
    return "  ".join(parts)


def _display(
    step: int,
    total: int,
    rate: float,
    results: TaskResults,
    shares: Mapping[str, float],
    label: str,
    unit: str,
) -> Group:
    tasks = Table.grid(padding=(0, 3), pad_edge=True)
    cells = []
    for name, value in results.by_task.items():
        done = results.measure == "success" and value >= 0.5
        cells.append(Text.assemble((results.text(value), "bold green" if done else "yellow"), " ", name))
    columns = 2 if len(cells) <= 10 else 3
    for start in range(0, len(cells), columns):
        tasks.add_row(*cells[start : start + columns])
    bar = ProgressBar(total=max(total, 1), completed=step, width=60)
    return Group(bar, Text(_headline(step, total, rate, results, shares, label, unit)), tasks)


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


# ---------------------------------------------------------------------------------------------------------------------
# Time and memory
# ---------------------------------------------------------------------------------------------------------------------


class PhaseTimer:
    """Wall time by phase: `with timer("env"): ...`. A phase inside a phase is counted once, as the inner one.

    Time outside all phases is `other`, so that the shares sum to 1. It is the host's time: kernels that a phase queued
    on a GPU count where the host waits for them. Not for use from several threads.
    """

    def __init__(self) -> None:
        self._stack = ["other"]
        self.reset()

    def reset(self) -> None:
        """Starts counting anew."""
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time until exit as this phase's."""
        self._charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last reset."""
        self._charge()
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """Fraction of the time since the last reset, by phase, largest first."""
        seconds = self.seconds
        total = math.fsum(seconds.values()) or 1.0
        return {phase: seconds[phase] / total for phase in sorted(seconds, key=lambda phase: -seconds[phase])}

    def _charge(self) -> None:
        now = time.perf_counter()
        phase = self._stack[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


def peak_memory_bytes() -> int:
    """Peak resident memory of this process plus that of each live descendant, in bytes.

    An upper bound of what the run took: pages that processes share are counted in each, and the peaks need not
    coincide. Without a Linux `/proc`: of this process and its ended children.
    """
    try:
        return sum(map(_high_water_mark, _family(os.getpid())))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return unit * sum(resource.getrusage(user).ru_maxrss for user in users)


def _family(root: int) -> list[int]:
    """A process and its live descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            # pid (name, which may hold anything) state ppid ...
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def _high_water_mark(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text(errors="replace")
    except OSError:
        if process == os.getpid():
            raise
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
