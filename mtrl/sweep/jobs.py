"""The jobs of a sweep: runs in processes of their own, with a record and a log beside each run's folder.

<sweep>/sweep.json              what was asked for; locked while the sweep launches jobs
<sweep>/000_seed=1/             the folder of a run
<sweep>/000_seed=1.json         its arguments, where it runs, and the exit code of its process
<sweep>/000_seed=1.log          what it printed; locked as long as it runs
<sweep>/stopping                is there while the sweep is being stopped: no job begins
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple, get_args

from mtrl.config import load_yaml
from mtrl.files import json_text, write_atomic
from mtrl.report.runs import common_measure, read_run
from mtrl.run.folder import SWEEP
from mtrl.run.lock import is_locked, locked
from mtrl.run.reading import read_json, reason
from mtrl.types import UserError

LONGEST = 120
"""Most characters of a name. File systems allow 255."""

STOPPING = "stopping"
"""A file in the folder of a sweep."""

State = Literal["done", "running", "failed", "waiting"]


class Place(NamedTuple):
    """Where a job runs."""

    host: str
    parent: int
    """Id of the process that waits for it."""


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Raises:
        OSError: From methods that write.
    """

    folder: Path
    """Of the sweep."""
    name: str
    arguments: Sequence[str]
    """Of `mtrl.train`, without the folder."""
    exit_code: int | None = None
    """None before its process has ended; also if nothing was left to notice the end."""
    place: Place | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def save(self, exit_code: int | None = None, place: Place | None = None) -> None:
        """Writes the record."""
        stored = {"arguments": self.arguments, "exit_code": exit_code, "place": place}
        write_atomic(self.record, json_text(stored, indent=1) + "\n")

    @property
    def state(self) -> State:
        """What became of it, from its record and its log."""
        if self.exit_code == 0:
            return "done"
        if not self.log.exists():
            return "waiting"
        return "running" if is_locked(self.log) else "failed"

    @property
    def runs_beside(self) -> bool:
        """Whether it runs on this machine, and another process than this one waits for it."""
        place = self.place
        beside = place and place.host == platform.node() and place.parent != os.getpid() and _is_alive(place.parent)
        return bool(beside) and self.state == "running"

    def run(self) -> int:
        """Trains in another process, which begins or continues the run. Returns its exit code; negative for a signal.

        When the sweep is being stopped, the run saves itself.

        Raises:
            UserError: The job is running already.
            OSError: Its record cannot be written.
        """
        command = [sys.executable, "-m", "mtrl.train", *self.arguments, f"run_dir={self.run_dir}", "resume=auto"]
        with locked(self.log) as log:
            self.save(place=Place(platform.node(), os.getpid()))
            # The process inherits the lock with its output, so that it lasts if this process is killed.
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as job:
                try:
                    while job.poll() is None and not (self.folder / STOPPING).exists():
                        with suppress(subprocess.TimeoutExpired):
                            job.wait(timeout=0.2)
                finally:  # if it is stopped, or this process is interrupted, the run saves itself
                    job.terminate()
                    job.wait()
                    with suppress(OSError):  # the disk is full: without its exit code, a job that has ended has failed
                        self.save(job.returncode)
                return job.returncode

    def result(self) -> tuple[str, float]:
        """What the final policy was measured by, and its mean over tasks. Raises `UserError` if it is unfinished."""
        run = read_run(self.run_dir)
        measure, tasks = common_measure([run])
        found = run.evaluations[-1].measures[measure]
        return measure, fmean(found[task] for task in tasks)

    def progress(self) -> str:
        """How far its run has come, in words."""
        try:
            config, step = load_yaml(self.run_dir / "config.yaml"), self._last_step()
        except (UserError, OSError):
            return ""
        return f"{step:,} of {config.get('total_updates') or config['total_steps']:,}"

    def _last_step(self) -> int:
        step = 0
        for line in (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-2:]:
            with suppress(ValueError, LookupError, TypeError):  # the last may be half written
                step = int(json.loads(line)["step"])
        return step

    def reason(self) -> str:
        """Why it failed: the last line that it printed, after its exit code."""
        with suppress(OSError):
            lines = [
                line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
            ]
            last = lines[-1].strip() if lines else "it printed nothing"
            return f"{_ending(self.exit_code)}: {last}"
        return _ending(self.exit_code)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "it ended unnoticed"
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def job_name(number: int, settings: Iterable[str]) -> str:
    """Name of a job: its number, and the settings in which it differs from the others, as far as files can be named so.

    >>> job_name(3, ["agent.gamma=0.9", "init_from=runs/a"])
    '003_agent.gamma=0.9_init_from=runs-a'
    """
    words = (re.sub(r"[^\w.=+-]+", "-", setting.lstrip("+")) for setting in settings)
    return "_".join([f"{number:03}", *words])[:LONGEST]


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep, in the order of their numbers. Raises `UserError` if it is not the folder of a sweep."""
    if not (folder / SWEEP).is_file():
        raise UserError(f"{folder} is not the folder of a sweep: there is no {SWEEP} in it.")
    paths = [path for path in folder.glob("*.json") if re.match(r"\d+(_|\.json)", path.name)]
    return [_read_job(path) for path in sorted(paths, key=lambda path: int(re.split("[_.]", path.name)[0]))]


def _read_job(path: Path) -> Job:
    try:
        stored = read_json(path, path.parent)
        arguments, exit_code = [str(argument) for argument in stored["arguments"]], stored["exit_code"]
        place = Place(*stored["place"]) if stored.get("place") else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read: it is not the record of a job ({reason(error)}).") from error
    if not isinstance(exit_code, int | None):
        raise UserError(f"{path} cannot be read: exit_code must be an integer or null, not {exit_code!r}.")
    return Job(path.parent, path.name.removesuffix(".json"), arguments, exit_code, place)


def status(jobs: Sequence[Job]) -> list[str]:
    """A line that counts the jobs, and one for each."""
    states = [job.state for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in get_args(State) if state in states)
    longest = max((len(job.name) for job in jobs), default=0)
    rows = zip(jobs, states, strict=True)
    return [
        f"{counts or 'no jobs'}.",
        *(f"{state:<7}  {job.name:<{longest}}  {_remark(job, state)}".rstrip() for job, state in rows),
    ]


def _remark(job: Job, state: State) -> str:
    if state == "done":
        try:
            measure, value = job.result()
        except UserError as error:
            return str(error)
        return f"{measure} {value:.3f}"
    if state == "failed":
        return job.reason()
    return job.progress()
