r"""Forward transfer between all pairs of tasks, from short runs.

python -m mtrl.relate.runs folder=runs/pairs tasks=[reach-v3,push-v3,drawer-open-v3] jobs=2 \
    env=mt1 env.task={task} total_steps=300000 log.every=15000
python -m mtrl.relate policies=runs/mt10 transfer=runs/pairs            # beside what a policy says of the tasks

Each task is learned from scratch, and from the policy of every other task: K + K (K - 1) runs. All other settings are
those of `mtrl.train`, and {task} in them stands for the task. Runs that were stopped go on, finished ones stay.
With areas=FILE, what finished runs contribute is kept there, and stays when their folders are gone.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mtrl.checks import positive
from mtrl.config import parse, run_or_exit, split_paths
from mtrl.registry import construct
from mtrl.relate.pairs import matrix_of, read_areas, run_dir, store_areas
from mtrl.relate.report import matrix_lines
from mtrl.report.runs import is_finished
from mtrl.sweep.jobs import STOPPING, Job
from mtrl.types import UserError

TASK = "{task}"


def plan(folder: Path, tasks: Sequence[str], settings: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """The runs from scratch, and those that begin with them."""

    def planned(before: str | None, task: str) -> Job:
        where = run_dir(folder, before, task)
        start = () if before is None else (f"init_from={run_dir(folder, None, before)}",)
        of_task = (setting.replace(TASK, task) for setting in settings)
        return Job(where.parent, where.name, ["eval.every=0", *of_task, *start])

    pairs = [(before, task) for before in tasks for task in tasks if before != task]
    return [planned(None, task) for task in tasks], [planned(*pair) for pair in pairs]


def transfer_runs(
    folder: str, tasks: Sequence[str], settings: Sequence[str], jobs: int = 1, areas: str | None = None
) -> None:
    """Runs what is missing, and prints the matrix.

    Args:
        folder: Of all these runs.
        tasks: Their names, at least two.
        settings: Of `mtrl.train`.
        jobs: Number of runs at a time.
        areas: A small file that keeps what finished runs contribute. Those in it are not run again, even if their
            folders are gone; but a run from scratch is, if runs that begin with its policy are missing.

    Raises:
        UserError: Settings do not name the task, `areas` is of runs with others, or runs failed; the others were run.
    """
    positive(jobs=jobs)
    if len(set(tasks)) < max(len(tasks), 2):
        raise UserError(f"tasks: expected two or more different tasks, found {', '.join(tasks) or 'none'}.")
    if not any(TASK in setting for setting in settings):
        raise UserError(f"No setting says which task a run has: write {TASK} where it goes, as in env.task={TASK}.")
    scratch, after = plan(Path(folder), tasks, settings)
    file = None if areas is None else Path(areas)

    def keep() -> None:
        if file is not None:
            store_areas(file, Path(folder), tasks, settings)

    keep()
    known = {} if file is None else read_areas(file, settings)
    begun_with = {before for before in tasks for task in tasks if before != task and (before, task) not in known}
    scratch = [job for job, task in zip(scratch, tasks, strict=True) if (None, task) not in known or task in begun_with]
    kept = {run_dir(Path(folder), *pair) for pair in known}
    after = [job for job in after if job.run_dir not in kept]
    _run_all(scratch, jobs, keep)
    _run_all(after, jobs, keep)
    found = matrix_of(file or Path(folder), tasks)
    print("\n".join(["forward transfer, from row to column:", *matrix_lines(tasks, found)]))


def _run_all(jobs: Sequence[Job], at_once: int, after_each: Callable[[], None]) -> None:
    """Runs those that are not finished; if it is interrupted, those that have begun save themselves.

    Raises `UserError` after the last one if some failed.
    """
    missing = [job for job in jobs if not is_finished(job.run_dir)]
    failed: list[Job] = []
    stopping = {job.folder / STOPPING for job in missing}
    for mark in stopping:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)  # of a command that was killed while it stopped
    with ThreadPoolExecutor(at_once) as pool:
        waiting = [(job, pool.submit(job.run)) for job in missing]
        try:
            for number, (job, code) in enumerate(waiting, 1):
                if code.result():
                    failed.append(replace(job, exit_code=code.result()))
                print(f"{number} of {len(waiting)} runs: {job.run_dir}{' failed' if code.result() else ''}", flush=True)
                after_each()
        except BaseException:
            for mark in stopping:
                mark.touch()
            pool.shutdown(cancel_futures=True)
            for mark in stopping:
                mark.unlink()
            raise
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        said = failed[0].reason()
        raise UserError(f"{failed[0].run_dir}{more} failed: {said} The same command goes on with what is missing.")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM is an exception, as Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Command line: keys of `transfer_runs`, and settings of `mtrl.train`."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    keys = ("folder", "tasks", "jobs", "areas")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys: {', '.join(keys)}, and those of mtrl.train")
        return 0
    remaining, paths = split_paths(arguments, ("folder", "areas"))
    mine = [argument for argument in remaining if argument.split("=")[0] in keys]
    keywords = {override.key_or_group: override.value() for override in parse(mine)}
    settings = [argument for argument in remaining if argument not in mine]
    with _ended_by_sigterm():
        construct("relate.runs", transfer_runs, {**keywords, **paths, "settings": settings})
    return 0


if __name__ == "__main__":
    main()
