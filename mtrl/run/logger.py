"""Logs rows of metrics. `metrics.jsonl` is the reference; sinks get copies."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrl.files import json_text, write_atomic
from mtrl.run.sinks import Sink
from mtrl.types import ONE_PROCESS, Metrics, Ranks, State, UserError

_warn = logging.getLogger(__name__).warning


class Logger:
    """Appends one JSON row per call to `<run_dir>/metrics.jsonl`, and passes it to the sinks.

    Every reader sees a row as soon as `log` returns. Training continues on a full disk: rows are kept in memory and
    written when there is room again.

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

        Matrices `(K, K)` become lists of rows with three significant digits; sinks do not get them. Other NaN and
        infinite values become null in the file, and are passed unchanged to the sinks.

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
                row[name] = [[float(f"{x:.3g}") for x in numbers] for numbers in value.tolist()]
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
            evaluating: The checkpoint was made before the evaluation of its step, so that row is dropped, too.

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
        # Unbuffered: a kill loses no row. Bytes that a full disk did not accept (even half a row) go first next time.
        waiting = bool(self._unwritten)
        self._unwritten += line
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            if not waiting:
                _warn(f"Cannot write {self.path}: {error.strerror}. Training goes on; rows wait until there is room.")


class NoLogger(Logger):
    """Logs nothing: for the ranks beside the first, which logs for all."""

    def __init__(self, task_names: Sequence[str]) -> None:
        self.task_names, self.sinks = tuple(task_names), []

    def log(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        pass

    def truncate(self, step: int, evaluating: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


def _superseded(line: str, step: int, evaluating: bool) -> bool:
    """Whether a row was logged after a checkpoint, or is incomplete."""
    try:
        row = json.loads(line)
        row_step = float(row["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return True
    repeated = evaluating and row_step == step and any(name.startswith("eval/") for name in row)
    return row_step > step or repeated or not line.endswith("\n")


class MetricAccumulator:
    """Means of metrics between two rows of the log. Nothing is read from the device before the row is logged.

    In vectors (K,), NaN marks an absent task and does not count. A scalar NaN is an error and stays visible.

    Args:
        ranks: Whose values the means are of.
    """

    _FOLD = 256
    """Number of values of a metric that are summed at once; summing them one by one is several times slower."""

    def __init__(self, ranks: Ranks = ONE_PROCESS) -> None:
        self.ranks = ranks
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
        """Means of the values added since the last call; NaN for a task that was always absent."""
        for name in list(self._recent):
            self._fold(name)
        names, n = list(self._sums), len(self._sums)
        counts = [self._counts[name].double() for name in names]
        joint = self.ranks.sum_all([*self._sums.values(), *counts])
        self._sums, self._counts = {}, {}
        return {name: total / count for name, total, count in zip(names, joint[:n], joint[n:], strict=True)}

    def state_dict(self) -> State:
        # Not summed yet: a run's sums must not depend on when it was saved.
        recent = {name: torch.stack(values) for name, values in self._recent.items()}
        return {"recent": recent, "sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` for an invalid state."""
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
        device = recent[-1].device  # loaded values are on the CPU
        if len({value.shape for value in [*recent, self._sums.get(name, recent[0])]}) > 1:
            raise UserError(f"The metric {name} has another shape than in the checkpoint that was resumed.")
        values = torch.stack([value.to(device) for value in recent]).double()
        present = ~values.isnan() if values.ndim > 1 else torch.ones_like(values, dtype=torch.bool)
        total, count = values.where(present, 0.0).sum(0), present.sum(0)
        if name in self._sums:
            total, count = self._sums[name].to(device) + total, self._counts[name].to(device) + count
        self._sums[name], self._counts[name] = total, count


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`. Raises `UserError` if there are none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: it is not the log of a run ({error}).") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise UserError(f"{path} cannot be read: line {number} is not a row of metrics with its step.")
    if not rows:
        raise UserError(f"Nothing has been logged in {path} so far.")
    return rows
