"""The training loop: collect and learn; log, evaluate and save at intervals."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from mtrl.checks import not_negative
from mtrl.run.checkpoint.codec import CheckpointError, save_state
from mtrl.run.checkpoint.rotation import Checkpointer
from mtrl.run.console import NO_RESULTS, Progress, TaskResults
from mtrl.run.evaluation.report import headline, write_eval
from mtrl.run.evaluation.statistics import metrics as eval_metrics
from mtrl.run.logger import Logger, MetricAccumulator
from mtrl.run.schedule import Every, Until
from mtrl.run.timing import PhaseTimer
from mtrl.system.process import STOP_SIGNALS, EnvironmentFailedError, ServingProcess
from mtrl.system.usage import peak_memory_bytes
from mtrl.types import DataSource, EvalResult, Learner, NonFiniteLossError, Ranks, State, UserError

PATIENCE = 5.0
"""Seconds to wait for a process after a stop was requested, so that one that hangs does not prevent saving."""

Evaluate = Callable[[Callable[[int, int], None]], EvalResult]
"""Evaluates the current policy. Takes a callback that receives the numbers of finished and of all episodes."""


class InterruptedRunError(Exception):
    """The run was stopped by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


Clock = Literal["steps", "updates"]
"""The unit of training: environment steps over all slots, or updates."""


class RunState:
    """Savable: the progress of the run.

    Args:
        clock: What `step` counts.
    """

    def __init__(self, clock: Clock = "steps") -> None:
        self.clock = clock
        self.env_steps = 0
        """Environment steps over all slots."""
        self.updates = 0
        """Calls of `Learner.update`."""
        self.wall_time = 0.0
        """Seconds of collecting, learning and evaluating, over all sessions of the run."""
        self.training_time = 0.0
        """Seconds of collecting and learning."""
        self.evaluating = False
        """An evaluation is due or running: a resumed run begins with it."""

    @property
    def step(self) -> int:
        """Progress in the unit of the clock, which the end, the intervals and the log use."""
        return self.env_steps if self.clock == "steps" else self.updates

    def state_dict(self) -> State:
        return {name: value for name, value in vars(self).items() if name != "clock"}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` for negative values."""
        not_negative(**{key: state[key] for key in ("env_steps", "updates", "wall_time", "training_time")})
        vars(self).update(state)


class Loop:
    """Trains while `until` is true. Everything that a resumed run needs is in `savables()`.

    Args:
        evaluate: Evaluates the policy by the protocol of the run.
        clock: What `until`, `schedule_steps` and the intervals count.
        run_dir: Run folder; evaluations are written to `eval/<step>.json`.
        save_policy: Writes the policy into a checkpoint.
        schedule_steps: Where the learner's schedules end.
        ranks: The processes that run this loop together, each with its share of the slots.
    """

    def __init__(
        self,
        learner: Learner,
        source: DataSource,
        evaluate: Evaluate,
        logger: Logger,
        progress: Progress,
        timer: PhaseTimer,
        run_dir: Path,
        save_policy: Callable[[Path], None],
        clock: Clock,
        until: Until,
        schedule_steps: int,
        log_now: Every,
        evaluate_now: Every,
        save_now: Every,
        ranks: Ranks,
    ) -> None:
        self.learner, self.source, self.evaluate = learner, source, evaluate
        self.logger, self.progress, self.timer = logger, progress, timer
        self.run_dir, self.save_policy = run_dir, save_policy
        self.until, self.log_now, self.evaluate_now, self.save_now = until, log_now, evaluate_now, save_now
        self.schedule_steps, self.ranks = schedule_steps, ranks
        self.state = RunState(clock)
        self.metrics = MetricAccumulator(ranks)
        self.last_evaluation: EvalResult | None = None
        self._results = NO_RESULTS
        self._batch: Any = None  # the last batch of this iteration
        self._stop: int | None = None

    def savables(self) -> dict[str, Any]:
        """Everything to save except the random number generators, by name."""
        return {
            "learner": self.learner,
            "data": self.source,
            "run": self.state,
            "metrics": self.metrics,
            "log_now": self.log_now,
            "evaluate_now": self.evaluate_now,
            "save_now": self.save_now,
        }

    def run(self, checkpointer: Checkpointer) -> int | None:
        """Trains to the end, saves and evaluates the final policy. Returns the signal that stopped the run, if any.

        Raises:
            UserError: The loss became NaN or infinite, an environment failed, or the final checkpoint could not be
                saved.
        """
        state, failure = self.state, None
        with self._signals(), self.progress:
            try:
                self._run(checkpointer)
            except InterruptedRunError as stopped:
                self._stop = stopped.number
            except Exception as error:
                # An evaluation changes nothing, and a failed environment leaves the state before its step.
                if not (state.evaluating or isinstance(error, EnvironmentFailedError)):
                    raise
                if self.ranks.size > 1 and not state.evaluating:  # the others have gone on
                    raise UserError(f"{error} The last checkpoint is intact.") from error
                failure = error
            # After a failure the steps of the unfinished rollout are missing: keep an exact checkpoint of this step.
            if failure is None or not checkpointer.has(state.step):
                checkpointer.save(state.step, self.save_policy)
            if failure is not None:
                self._report(failure)
        return self._stop

    def _run(self, checkpointer: Checkpointer) -> None:
        state = self.state
        if state.evaluating:
            self._evaluate()
        self._show()
        while self.until(state.step):
            self._train()
            at_end = not self.until(state.step)
            # All are evaluated before any action, so that their states do not depend on when a signal arrives.
            log, evaluate, save = (due(state.step) for due in (self.log_now, self.evaluate_now, self.save_now))
            if log or at_end:
                self._log()
            if at_end:
                state.evaluating = True
                self._save(checkpointer)
            if evaluate or at_end:
                self._evaluate()
            if save and not at_end:
                self._save(checkpointer)
            self._raise_if_any_stopped()

    def _report(self, failure: Exception) -> None:
        """Raises a failure, or only prints it if the run was stopping anyway."""
        if self._stop is not None:
            self.progress.print(f"WARNING: {failure}")
            return
        what = "before the evaluation" if self.state.evaluating else "before the rollout"
        self.progress.print(f"Saved at step {self.state.step:,}, {what} that failed: resume={self.run_dir} goes on.")
        if isinstance(failure, EnvironmentFailedError):
            raise UserError(str(failure)) from failure
        raise failure

    def _train(self) -> None:
        state, began = self.state, time.perf_counter()
        progress = min(1.0, state.step / self.schedule_steps)
        self._batch = None
        try:
            state.env_steps += self.ranks.size * self.source.collect(self.learner, progress)
        except (ValueError, RuntimeError) as error:
            if all(parameter.isfinite().all() for parameter in self.learner.policy.parameters()):
                raise
            raise UserError(
                f"The policy's weights became NaN or infinite before step {state.step:,}; the last checkpoint is "
                "intact. Try a lower learning rate or stronger clipping."
            ) from error
        for batch in self.source.batches():
            with self.timer("update"):
                try:
                    self.metrics.add(self.learner.update(batch, progress))
                except NonFiniteLossError as error:
                    raise self._dump(batch, error) from error
            state.updates += 1
            self._batch = batch
        elapsed = time.perf_counter() - began
        state.wall_time += elapsed
        state.training_time += elapsed
        self._show()

    def _show(self) -> None:
        state = self.state
        rate = state.step / state.training_time if state.training_time else 0.0
        self.progress.update(state.step, self.until.total, rate, self._results, self.timer.shares(), unit=state.clock)

    def _log(self) -> None:
        state, statistics = self.state, self.source.statistics()
        names = self.logger.task_names
        key, measure = ("success_rate", "success") if "success_rate" in statistics else ("return", "return")
        latest = zip(names, statistics[key].tolist(), strict=True) if key in statistics else ()
        seen = {name: value for name, value in latest if value == value}  # NaN: no episode ended
        results = dict.fromkeys(names, math.nan) | dict(self._results.by_task) | seen
        self._results = TaskResults(measure, results, averaged=f"{key}_mean" in statistics)
        diagnostics = {} if self._batch is None else self.learner.diagnostics(self._batch)
        row: dict[str, Any] = {
            name if "/" in name else f"train/{name}": value
            for name, value in (self.metrics.mean() | diagnostics).items()
        }
        row |= {f"train/{name}": value for name, value in statistics.items()}
        seconds = self.timer.seconds
        row |= {f"time/{phase}_s": value for phase, value in seconds.items()}
        row |= {
            "time/env_steps_per_s": state.env_steps / state.training_time,
            "time/wall_s": state.wall_time,
            "time/updates": float(state.updates),
        }
        self.logger.log(state.step, row)

    def _evaluate(self) -> None:
        state, began = self.state, time.perf_counter()

        def show(done: int, total: int) -> None:
            self._raise_if_stopped()
            rate = done / (time.perf_counter() - began)
            self.progress.update(done, total, rate, NO_RESULTS, {}, f"evaluation at {state.step:,}", "episodes")

        state.evaluating = True
        self._raise_if_any_stopped()
        with self.timer("evaluation"):
            result = self.ranks.first(lambda: self.evaluate(show))
        state.evaluating = False
        state.wall_time += time.perf_counter() - began
        self.last_evaluation = result
        self.ranks.first(lambda: self._write(result))
        self.logger.log(state.step, {**eval_metrics(result), "time/wall_s": state.wall_time})
        self.progress.print(f"step {state.step:,}: evaluation {headline(result)}")

    def _write(self, result: EvalResult) -> None:
        state = self.state
        try:
            write_eval(
                self.run_dir / "eval" / f"{state.step:012d}.json",
                result,
                step=state.step,
                updates=state.updates,
                wall_s=state.wall_time,
                training_s=state.training_time,
                peak_memory_bytes=peak_memory_bytes(),
            )
        except OSError as error:
            reason = error.strerror or error
            self.progress.print(f"WARNING: Could not save the evaluation: {reason}. Training goes on.")

    def _save(self, checkpointer: Checkpointer) -> None:
        with self.timer("checkpoint"):
            try:
                checkpointer.save(self.state.step, self.save_policy)
            except CheckpointError as error:
                self.progress.print(f"WARNING: {error} Training goes on.")

    def _dump(self, batch: Any, error: NonFiniteLossError) -> UserError:
        tasks = ", ".join(self.logger.task_names[task] for task in error.tasks)
        folder, rank = self.run_dir / "nan_batch", self.ranks.rank
        fields = asdict(batch) if is_dataclass(batch) and not isinstance(batch, type) else {"batch": batch}
        try:
            save_state(folder / f"rank{rank}" if rank else folder, fields)
            where = f"The batch is in {folder}"
        except (OSError, TypeError) as failed:
            where = f"The batch could not be saved ({failed})"
        return UserError(
            f"The loss became NaN or infinite in task {tasks} at step {self.state.step:,}. {where}; the last "
            "checkpoint is intact. Try a lower learning rate or stronger clipping."
        )

    def _raise_if_stopped(self) -> None:
        if self._stop is not None:
            raise InterruptedRunError(self._stop)

    def _raise_if_any_stopped(self) -> None:
        """Also if the signal reached another rank."""
        if self.ranks.any(self._stop is not None):
            raise InterruptedRunError(max(number or 0 for number in self.ranks.gather(self._stop)))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal stops the run after the current step; a second SIGINT or SIGTERM stops it at once.

        Signals within one second count as one: `timeout` and some shells signal both the process and its group.
        """
        first_signal = math.inf  # time of the first SIGINT or SIGTERM

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal first_signal
            if number in (signal.SIGINT, signal.SIGTERM):
                if time.monotonic() > first_signal + 1:
                    raise KeyboardInterrupt
                first_signal = min(first_signal, time.monotonic())
            if self._stop is None:
                self._stop, ServingProcess.patience = number, PATIENCE
                self.progress.print(f"{signal.Signals(number).name}: saving a checkpoint, then stopping.")

        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as `nohup` does
        numbers = [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            ServingProcess.patience = math.inf
            for number, handler in before.items():
                signal.signal(number, handler)


def seed_everything(seed: int) -> None:
    """Seeds the global random number generators."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
