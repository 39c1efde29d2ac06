"""Starts the jobs of a sweep with Hydra: its launchers say where and how many at once, its sweepers which settings.

Hydra only sees a function that starts a process and waits for it. So a job that fails, is killed or fills the memory
does not end the others, and each of them can be repeated as the command that it is.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode

from mtrl.config import checked, composed, config_dir, offer_components, parse, quoted, search_path, train_config
from mtrl.files import json_text
from mtrl.policy import check_device
from mtrl.registry import missing_extra
from mtrl.run.folder import SWEEP, new_run_dir, writing
from mtrl.run.lock import locked
from mtrl.run.reading import read_json, reason
from mtrl.run.sinks import check_wandb
from mtrl.sweep.jobs import STOPPING, Job, job_name, read_jobs, status
from mtrl.types import UserError

PLUGINS = {
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "hydra/launcher=ray": ("ray", "ray"),
    "hydra/sweeper=optuna": ("hydra_plugins.hydra_optuna_sweeper", "sweep"),
}
"""Modules and extras, by what chooses them."""

FOR_OPTUNA = ("hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0")
"""Its defaults are to minimise, and to end at the first failure."""


def sweep(arguments: Sequence[str], folders: Sequence[Path], sweep_dir: str | None) -> int:
    """Trains with every combination of settings, or with those that a sweeper chooses. Returns the exit code.

    Args:
        arguments: Of `mtrl.train`; settings may have several values.
        folders: Folders of presets.
        sweep_dir: By default one in `runs`, called by the time.

    Raises:
        UserError: There is a mistake in the arguments.
    """
    overrides = parse(arguments, sweep=True)
    of_hydra = [_text(override) for override in overrides if _is_hydras(override)]
    keys = frozenset(override.key_or_group for override in overrides if _varies(override))
    fixed = [_text(override) for override in overrides if not (_is_hydras(override) or _varies(override))]
    passed = parse(checked(arguments, "train", sweep=True, folders=folders), sweep=True)
    varied = [override for override in passed if override.key_or_group in keys]
    choices = [_values(override) for override in varied if not override.is_interval_sweep()]
    searches = any(line.startswith("hydra/sweeper") for line in of_hydra)
    if len(choices) < len(varied) and not searches:
        raise UserError("interval(...) needs a sweeper that searches: hydra/sweeper=optuna.")
    of_hydra = _with_plugins(of_hydra)
    _check([*fixed, *(values[0] for values in choices), *of_hydra], folders)
    with ExitStack() as held:
        folder = _new_folder(sweep_dir, held)
        same = [*(f"--config-dir={one}" for one in folders), *fixed]
        with writing(folder):
            launcher = [line for line in of_hydra if line.startswith(("hydra/launcher", "hydra.launcher"))]
            (folder / SWEEP).write_text(json_text({"arguments": arguments, "launcher": launcher}, indent=1) + "\n")
            if not searches:
                for number, settings in enumerate(itertools.product(*choices)):
                    _job(folder, number, same, settings).save()
        print(f"Sweep folder: {folder}.", flush=True)
        tried = [_text(override) for override in varied]
        task = Task(folder, same, keys)
        with _reporting(folder), _interruptible(folder), _hydra(folders) as hydra:
            hydra.multirun("train", task, [*search_path(folders), *tried, *of_hydra, _sweep_dir(folder)])
    return _exit_code(folder)


def restart(folder: Path, launcher: Sequence[str]) -> int:
    """Continues the jobs of a sweep that failed, and begins those that never began. Returns the exit code.

    Args:
        folder: Of the sweep.
        launcher: Settings of Hydra's launcher; by default those of the sweep.

    Raises:
        UserError: It is no sweep, or it is still launching jobs.
    """
    read_jobs(folder)
    with ExitStack() as held:
        with writing(folder):
            try:
                held.enter_context(locked(folder / SWEEP))
            except UserError:
                raise UserError(
                    f"The sweep in {folder} is still running: stop it, or wait until it has ended."
                ) from None
        jobs = [job for job in read_jobs(folder) if job.state in ("failed", "waiting")]
        print(f"{len(jobs)} jobs to run in {folder}.", flush=True)
        with _reporting(folder), _interruptible(folder), _hydra() as hydra:
            settings = [*_with_plugins(launcher or _stored_launcher(folder)), _sweep_dir(folder)]
            config = hydra.compose_config("train", settings, RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
            launched = Plugins.instance().instantiate_launcher(context, Again(jobs), config)
            launched.launch([[]] * len(jobs), initial_job_idx=0)
    return _exit_code(folder)


@dataclass(frozen=True)
class Task:
    """What Hydra's launchers call for each job of a sweep, maybe in other processes. Returns its result, if any."""

    folder: Path
    same: list[str]
    """Arguments of all jobs."""
    varied: frozenset[str]
    """Keys of the settings that differ."""
    sweep: int = field(default_factory=os.getpid)
    """Id of the sweep's process."""

    def __call__(self, _: Any) -> float | None:
        chosen = HydraConfig.get()
        overrides = parse(chosen.overrides.task)
        settings = [_text(one).lstrip("+") for one in overrides if one.key_or_group in self.varied]
        return _run(_job(self.folder, chosen.job.num, self.same, settings), self.sweep)


@dataclass(frozen=True)
class Again:
    """The same for jobs that are known."""

    jobs: list[Job]
    sweep: int = field(default_factory=os.getpid)

    def __call__(self, _: Any) -> float | None:
        return _run(self.jobs[HydraConfig.get().job.num], self.sweep)


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def _text(override: Override) -> str:
    """As it was given."""
    return str(override.input_line)


def _varies(override: Override) -> bool:
    return bool(override.is_sweep_override()) and not _is_hydras(override)


def _values(override: Override) -> list[str]:
    """A setting with each of its values. A pattern may have left only one."""
    if not override.is_sweep_override():
        return [_text(override).lstrip("+")]
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _with_plugins(of_hydra: Sequence[str]) -> list[str]:
    """Settings of Hydra, with ours for Optuna. Raises `UserError` if a plug-in is not installed."""
    for setting, (module, extra) in PLUGINS.items():
        if setting in of_hydra and not find_spec(module):
            raise missing_extra(setting, module.removeprefix("hydra_plugins.").replace("_", "-"), extra)
    given = {line.partition("=")[0] for line in of_hydra}
    ours = FOR_OPTUNA if "hydra/sweeper=optuna" in of_hydra else ()
    return [*of_hydra, *(line for line in ours if line.partition("=")[0] not in given)]


def _check(arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Finds mistakes that all jobs would repeat, by the first of them, before anything is written."""
    config = train_config(composed(arguments, "train", folders))
    check_device(config.device)
    if config.log.wandb:
        check_wandb()


def _new_folder(sweep_dir: str | None, held: ExitStack) -> Path:
    """Makes the folder of a sweep, locked until `held` closes."""
    if sweep_dir is not None and Path(sweep_dir).exists():
        raise UserError(
            f"sweep_dir={sweep_dir} exists: choose another, or python -m mtrl.sweep restart {sweep_dir} to go on with "
            "that sweep."
        )
    return new_run_dir(Path(sweep_dir) if sweep_dir else None, "sweep", held, lock=SWEEP)


def _sweep_dir(folder: Path) -> str:
    return f"hydra.sweep.dir={quoted(str(folder))}"


def _job(folder: Path, number: int, same: Sequence[str], settings: Sequence[str]) -> Job:
    return Job(folder, job_name(number, settings), [*same, *settings])


def _stored_launcher(folder: Path) -> list[str]:
    try:
        return [str(setting) for setting in read_json(folder / SWEEP, folder)["launcher"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / SWEEP} cannot be read: it is not the plan of a sweep ({reason(error)}).") from error


@contextmanager
def _hydra(folders: Sequence[Path] = ()) -> Iterator[Any]:
    """Hydra with our configuration and all components."""
    offer_components(folders)
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        try:
            yield GlobalHydra.instance().hydra
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from error


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Prints what became of a sweep, however it ends."""
    try:
        yield
    finally:
        print("\n".join(status(read_jobs(folder))), flush=True)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """SIGTERM and Ctrl-C end a sweep when its jobs on this machine have saved their runs; no other job begins.

    A launcher that is interrupted kills the processes of its jobs, or leaves them running. Therefore they end before it
    notices, except for the job that this process waits for, which the exception stops (`Job.run`).
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])  # a second one ends the sweep at once
        (folder / STOPPING).touch()
        while any(job.runs_beside for job in read_jobs(folder)):
            time.sleep(0.1)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    (folder / STOPPING).unlink(missing_ok=True)  # of one that was killed while it stopped
    before = {int(number): signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (folder / STOPPING).unlink(missing_ok=True)


def _exit_code(folder: Path) -> int:
    return int(any(job.state != "done" for job in read_jobs(folder)))


def _run(job: Job, sweep: int) -> float | None:
    """Runs a job, and says how it ended. None of its failures is an exception."""
    if os.getpid() != sweep:  # Ctrl-C also reaches the processes of a launcher. The sweep decides what to do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (job.folder / STOPPING).exists():
        return None
    print(f"{job.name}: begins, see {job.log}", flush=True)
    try:
        if job.run():
            (job,) = (one for one in read_jobs(job.folder) if one.name == job.name)
            print(f"{job.name}: failed, {job.reason()}", flush=True)
            return None
        measure, value = job.result()
    except (UserError, OSError) as error:
        print(f"{job.name}: {error}", flush=True)
        return None
    print(f"{job.name}: done, {measure} {value:.3f}", flush=True)
    return value
