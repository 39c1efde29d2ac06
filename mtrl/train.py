"""Train one policy for many tasks.

python -m mtrl.train env=mt10                                   # the default agent: the one that gets there soonest
python -m mtrl.train env=mt10 agent=sac seed=3                  # a choice from each group, and any setting
python -m mtrl.train resume=runs/...                            # goes on exactly where it stopped
python -m mtrl.train env=mt10 run_dir=runs/a resume=auto        # begins, or goes on: for jobs that are started again
python -m mtrl.train --help                                     # every choice and every setting
"""

from __future__ import annotations

import ctypes
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mtrl.envs
from mtrl.agents.components import Components
from mtrl.build import build_episodes, build_learner
from mtrl.config import (
    TrainConfig,
    checked,
    composed,
    config_dir,
    differing,
    load_train_yaml,
    offer_components,
    parse,
    resumed,
    run_or_exit,
    save_yaml,
    search_path,
    split_folders,
    split_paths,
    to_yaml,
)
from mtrl.config import train_config as check_config
from mtrl.data.experience import EpisodeStatistics
from mtrl.foreign import check_planned, save_settings
from mtrl.foreign import check_run_dir as check_foreign
from mtrl.help import help_text
from mtrl.policy import check_device, find_policy, read_policy, save_policy, stored_tasks
from mtrl.registry import build
from mtrl.run.checkpoint.rng import RngStates
from mtrl.run.checkpoint.rotation import Checkpointer, any_checkpoint
from mtrl.run.checkpoint.transfer import load_networks, load_parts, task_axes
from mtrl.run.console import Progress, duration
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.run.evaluation.report import show
from mtrl.run.lock import locked
from mtrl.run.logger import Logger
from mtrl.run.loop import Loop, seed_everything
from mtrl.run.schedule import Every, Until
from mtrl.run.sinks import TensorBoardSink, WandbSink, check_wandb
from mtrl.run.timing import PhaseTimer
from mtrl.system.cores import available_cores
from mtrl.system.usage import peak_memory_bytes
from mtrl.types import DataSource, Learner, UserError

WRITTEN = ("metrics.jsonl", "tensorboard", "wandb", "eval", "checkpoints", "nan_batch", "env.txt", "config.yaml")
"""What a run writes into its folder; what says that it is one comes last."""


def train(config: TrainConfig, resume: Path | None = None) -> int:
    """Runs training to its end, or goes on with the run in a folder. Returns the exit code.

    Raises:
        UserError: Something in the configuration or the run folder is not as it must be; training has not begun, or
            everything up to the last checkpoint is safe.
    """
    check_device(config.device)
    check_extras(config)
    keep_freed_memory()
    timer = PhaseTimer()
    progress = Progress()
    with ExitStack() as held:
        if resume is None:
            check_run_dir(config)
        else:
            check_foreign(resume)
            with writing(resume):
                held.enter_context(locked(resume / "env.txt"))
            check_planned(config, resume, make_learner)
        seed_everything(config.seed)
        source, episodes, num_envs = make_source(config, timer, progress.print, held)
        evaluator = make_evaluator(config)
        held.callback(evaluator.close)
        held.enter_context(threads_beside(config.actors))
        spec = episodes.spec
        learner = make_learner(config, episodes, source)
        source.connect(learner.policy)
        if config.init_from is not None and resume is None:
            initialise(learner, config.init_from, config.init_from_parts, spec.task_names, progress.print)
        run_dir = resume or new_run_dir(config, held)
        if resume is None:
            start_run_dir(run_dir, config)

        def store(checkpoint: Path) -> None:
            save_policy(checkpoint / "policy", learner.policy, learner.policy.description, spec)
            save_settings(config, checkpoint)

        logger = Logger(run_dir, spec.task_names)
        loop = Loop(
            learner,
            source,
            evaluate=lambda report: evaluator(learner, report),
            logger=logger,
            progress=progress,
            timer=timer,
            run_dir=run_dir,
            save_policy=store,
            clock="steps" if config.total_updates is None else "updates",
            until=Until(config.total),
            schedule_steps=config.schedule_steps or config.total,
            log_now=Every(config.log.every),
            evaluate_now=Every(config.eval.every),
            save_now=Every(config.checkpoint.every),
        )
        savables = {**loop.savables(), "rng": RngStates()}
        checkpointer = Checkpointer(run_dir / "checkpoints", savables, config.checkpoint.keep, report=progress.print)
        step = env_steps = 0
        if resume is not None:
            step = checkpointer.restore(check=lambda path: check_tasks(path / "policy", spec.task_names))
            logger.truncate(step, loop.state.evaluating)
            progress.print(f"Resuming {run_dir} at step {step:,}.")
            tell_of_schedules(config, run_dir, progress.print)
            resume_run_dir(run_dir, config, step)
            env_steps = loop.state.env_steps
            if step >= config.total:
                key = "total_steps" if config.total_updates is None else "total_updates"
                progress.print(f"It has done its {key}={config.total}: give more to go on.")
        logger.sinks += sinks(config, run_dir, step)
        progress.print(f"Run folder: {run_dir}. {num_envs} slots, {spec.num_tasks} tasks.")
        timer.reset()
        stopped_by = loop.run(checkpointer)
        logger.close()
        if stopped_by is not None:
            command = shlex.join(["python", "-m", "mtrl.train", f"resume={run_dir}"])
            print(f"Stopped at step {loop.state.step:,}. Go on with: {command}")
            return 128 + stopped_by
        if loop.last_evaluation is not None:
            show(loop.last_evaluation)
        print_summary(loop, loop.state.env_steps - env_steps)
    return 0


def keep_freed_memory() -> None:
    """What this process frees stays its own.

    glibc returns large blocks to the system, and every one that comes from there is filled with zeros, a page at a
    time, in every update anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    mallopt(mmap_threshold, 2**30)


@contextmanager
def threads_beside(actors: int) -> Iterator[None]:
    """Within, torch has no more threads than cores that actors leave, and at least one.

    All threads of an operation wait for the one that shares its core with an actor, which costs more than it brings
    (see `benchmarks/actors.py`).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, available_cores() - actors)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_source(
    config: TrainConfig, timer: PhaseTimer, report: Callable[[str], None], held: ExitStack
) -> tuple[DataSource, EpisodeStatistics, int]:
    """What `data=...` names, which `held` closes; what it tells of episodes; and the number of slots."""
    node, shares = dict(config.env), max(config.actors, 1)  # each actor has its share of the slots
    if node.get("num_envs") is not None:
        node["num_envs"] //= shares
    if config.actors and "num_workers" in node and node["num_workers"] is None:
        node["num_workers"] = 0  # the actor itself
    slots_per_task = config.data.get("slots_per_task", 1) // shares
    make_env = partial(mtrl.envs.make, **node, seed=config.seed, slots_per_task=slots_per_task)
    env = make_env()
    held.callback(env.close)
    num_envs = shares * env.num_envs
    episodes = build_episodes(config.task_sampling, env.spec, num_envs)
    source: DataSource = build(
        "data",
        config.data,
        env=env,
        make_env=make_env,
        spec=env.spec,
        episodes=episodes,
        device=config.device,
        timer=timer,
        seed=config.seed,
        report=report,
        actors=config.actors,
    )
    held.callback(source.close)
    if not source.makes_steps and config.total_updates is None:
        raise UserError(f"data={config.data['name']} steps no environment: say when to end with total_updates=...")
    return source, episodes, num_envs


def make_learner(
    config: TrainConfig, episodes: EpisodeStatistics, source: DataSource | type[DataSource] = DataSource
) -> Learner:
    """The learner that `config.agent` names, with its components.

    Args:
        source: Describes the batches; the class itself, one that says nothing of them.
    """
    spec = episodes.spec
    runtime = {"spec": spec, "device": config.device, "episodes": episodes}
    components = Components(
        network=config.network,
        torso=config.torso,
        core=config.core,
        task_encoder=config.task_encoder,
        aggregation=config.aggregation,
        weighting=config.weighting,
        value_norm=config.value_norm,
        value_head=config.value_head,
        spec=spec,
        episodes=episodes,
        device=config.device,
        batch_shape=source.batch_shape,
        label_kind=source.label_kind,
        aux_losses=tuple(build("aux_loss", node, **runtime) for node in config.aux_losses),
        compile=config.compile,
    )
    return build_learner(config.agent, components, source.yields, config.precision, config.resets)


def make_evaluator(config: TrainConfig) -> Evaluator:
    """What evaluates the policy of a run, by the protocol of its environment."""
    return Evaluator(
        mtrl.envs.evaluation_protocol(config.env, config.seed),
        mtrl.envs.make,
        config.seed,
        config.eval.episodes_per_task,
        config.eval.max_episode_steps,
        config.device,
    )


def print_summary(loop: Loop, steps: int) -> None:
    """Wall time, time and rate of each phase over this session's `steps`, and peak memory (of live processes)."""
    state, seconds = loop.state, loop.timer.seconds
    rate = state.env_steps / state.training_time if state.training_time else 0.0
    done = f"{state.env_steps:,} steps, {state.updates:,} updates in {duration(state.wall_time)}"
    print(f"{done} ({rate:,.0f} steps/s training)")
    for phase in ("env", "inference", "wait", "update", "evaluation", "checkpoint", "other"):
        if phase in seconds:
            per_second = f"  {steps / seconds[phase]:,.0f} steps/s" if phase in ("env", "inference", "update") else ""
            print(f"  {phase:<10} {duration(seconds[phase]):>7}{per_second}")
    print(f"Peak memory {peak_memory_bytes() / 2**30:.2f} GiB (all processes). Run folder: {loop.run_dir}")


def initialise(
    learner: Learner, source: str, parts: list[str] | None, tasks: Sequence[str], report: Callable[[str], None]
) -> None:
    """Takes weights from a run or checkpoint (all networks that both have), or from a policy folder (the policy).

    What belongs to one task goes to the task of the same name; `report` is told of the `tasks` without a counterpart.
    """
    folder = find_policy(source)
    networks = learner.networks
    have = stored_tasks(folder)
    state = folder.parent / "training_state" / "learner"
    target: torch.nn.Module
    if state.is_dir():
        found = load_networks(state)
        shared = {name.split(".")[0] for name in found} & set(networks)
        tensors = {name: tensor for name, tensor in found.items() if name.split(".")[0] in shared}
        target = torch.nn.ModuleDict({name: networks[name] for name in shared})
        taken = load_parts(target, tensors, parts, have, tasks)
    else:
        target = networks["policy"]
        taken = load_parts(target, read_policy(folder).tensors, parts, have, tasks)
    fresh = [name for name in tasks if name not in have]
    if fresh and not task_axes(target).keys().isdisjoint(taken):
        report(f"{source} was not trained in {', '.join(fresh)}: what belongs to one task alone begins fresh there.")


def check_tasks(policy: Path, tasks: Sequence[str]) -> None:
    """Raises `UserError` unless a stored policy has the same tasks in the same order."""
    have = stored_tasks(policy)
    if have != tuple(tasks):
        raise UserError(
            f"The run cannot go on with other tasks or another order: its checkpoint has [{', '.join(have)}], the "
            f"environment now [{', '.join(tasks)}]. Put back what was changed in its config.yaml, or use init_from to "
            "start a new run from this one's weights."
        )


def sinks(config: TrainConfig, run_dir: Path, step: int) -> list[Any]:
    """The places besides `metrics.jsonl` where metrics go; rows after `step` are superseded there."""
    chosen: list[Any] = []
    if config.log.tensorboard:
        chosen.append(TensorBoardSink(run_dir / "tensorboard", purge_step=step or None))
    if config.log.wandb:
        chosen.append(WandbSink(run_dir, project="mtrl", name=run_dir.name, config=config.plain()))
    return chosen


def check_extras(config: TrainConfig) -> None:
    """Raises `UserError` for an extra that is chosen and not installed, or not ready to be used."""
    if config.log.wandb:
        check_wandb()


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Within, an error of the disk is a `UserError`."""
    try:
        yield
    except OSError as error:
        found = Path(error.filename or run_dir)
        where = "" if found == run_dir else f"{found.name}: "
        raise UserError(f"Cannot write the run folder {run_dir}: {where}{error.strerror or error}.") from error


def check_run_dir(config: TrainConfig) -> None:
    """Raises `UserError` if a folder with content is named for a new run."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        with writing(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise in_use(path)


def in_use(path: Path) -> UserError:
    """The error for a new run in the folder of another."""
    resume = shlex.quote(f"resume={path}")
    return UserError(f"run_dir={path} is not empty: choose another, or {resume} to go on with that run.")


def new_run_dir(config: TrainConfig, held: ExitStack) -> Path:
    """Makes the folder of a new run, which no process but this one writes until `held` ends. Raises `UserError`."""
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{config.env['name']}_{config.agent['name']}_seed{config.seed}"
    named, number = config.run_dir is not None, 0
    while True:
        path = Path(config.run_dir or Path("runs") / (f"{stem}-{number}" if number else stem))
        with writing(path), suppress(FileExistsError):
            path.mkdir(parents=True, exist_ok=named)
            held.enter_context(locked(path / "env.txt", new=True))
            return path
        if named:
            raise in_use(path)
        number += 1


def start_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Writes `config.yaml` and `env.txt`. Raises `UserError` if the run folder cannot be written."""
    with writing(run_dir):
        save_yaml(run_dir / "config.yaml", config.plain())
        describe_session(run_dir)


def clear_dead_start(run_dir: Path) -> None:
    """Empties the folder of a run that was killed before its first checkpoint.

    Raises:
        UserError: It holds something that no run writes, another process is training in it, or it cannot be changed.
    """
    if not run_dir.is_dir():
        return
    found = {path.name for path in run_dir.iterdir() if not path.name.startswith(".tmp-")}
    if others := found - set(WRITTEN):
        raise UserError(f"run_dir={run_dir} holds {', '.join(sorted(others))}, which no run writes: choose another.")
    lock = run_dir / "env.txt"
    try:
        # A run makes an empty env.txt, and writes config.yaml before anything else.
        if found - {lock.name} or (lock.exists() and lock.stat().st_size):
            load_train_yaml(run_dir / "config.yaml")
    except UserError as error:
        raise UserError(f"run_dir={run_dir} is not empty, and not the folder of a run: {error}") from error
    with writing(run_dir), locked(lock):
        for path in (*run_dir.glob(".tmp-*"), *(run_dir / name for name in WRITTEN)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def tell_of_schedules(config: TrainConfig, run_dir: Path, report: Callable[[str], None]) -> None:
    """Says it in a line if the schedules of a resumed run are not what they were."""
    stored = load_train_yaml(run_dir / "config.yaml")
    before, now = (c.schedule_steps or c.total for c in (stored, config))
    if before != now:
        report(
            f"Schedules (learning rates, resets) end at step {now:,} from here on, before at {before:,}: "
            f"schedule_steps={before} keeps them."
        )


def resume_run_dir(run_dir: Path, config: TrainConfig, step: int) -> None:
    """Stores what was given anew, and drops evaluations of what came after the checkpoint. Raises `UserError`."""
    with writing(run_dir):
        save_yaml(run_dir / "config.yaml", config.plain())
        describe_session(run_dir)
        for path in (run_dir / "eval").glob("*.json"):
            if path.name.startswith(".tmp-") or (path.stem.isdecimal() and int(path.stem) > step):
                path.unlink()


def describe_session(run_dir: Path) -> None:
    """Appends to `env.txt` where this session of the run takes place."""
    with (run_dir / "env.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(("\n" if file.tell() else "") + environment_description())


def environment_description() -> str:
    """Versions, device and git state, for the run folder."""

    def git(*arguments: str) -> str:
        try:
            found = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
            )
            return found.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "not a checkout"

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("mtrl-suite", "torch", "numpy", "gymnasium", "metaworld", "mujoco", "ale-py")
    lines = [
        f"time: {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
        f"command: python -m mtrl.train {shlex.join(sys.argv[1:])}",
        f"git commit: {git('rev-parse', 'HEAD')}",
        f"git changes: {len(git('status', '--porcelain').splitlines())} files",
        f"python: {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package}: {installed(package)}" for package in packages),
        f"cores: {available_cores()}, torch threads: {torch.get_num_threads()}",
        f"gpu: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
    ]
    return "\n".join(lines) + "\n"


PATHS = ("run_dir", "resume", "init_from")
"""Settings that are paths."""
FLAGS_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun")
"""Of Hydra, followed by a value."""


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    arguments, folders = split_folders(arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(__doc__, folders), end="")
        return 0
    if any(argument.startswith("-") for argument in arguments):
        return _hydra_main(arguments, folders)
    others, paths = split_paths(arguments, PATHS)
    resume = paths.pop("resume", None)
    if resume == "auto":
        return _resume_or_start(check_config({**composed(others, "train", folders), **paths}))
    if resume is not None:
        stored = load_train_yaml(Path(resume) / "config.yaml").plain()
        return train(check_config(resumed(stored, parse(others), paths)), Path(resume))
    return train(check_config({**composed(others, "train", folders), **paths}))


def _resume_or_start(config: TrainConfig) -> int:
    """Goes on with the run in `run_dir`, or begins it there: the same command every time, as schedulers repeat it."""
    if config.run_dir is None:
        raise UserError("resume=auto needs the run's folder: run_dir=...")
    run_dir = Path(config.run_dir)
    if not any_checkpoint(run_dir / "checkpoints"):
        clear_dead_start(run_dir)
        return train(config)
    if differ := differing(config, load_train_yaml(run_dir / "config.yaml")):
        raise UserError(f"The run in {run_dir} was begun with another {', '.join(differ)}: choose another run_dir.")
    return train(config, run_dir)


def _hydra_main(arguments: list[str], folders: list[Path]) -> int:
    """Sweeps (`-m`), `--cfg job` and Hydra's other flags."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    if not {"--config-path", "-cp", "--config-name", "-cn"}.isdisjoint(flag.split("=")[0] for flag in arguments):
        raise UserError("A run's settings are those of train.yaml: change them in an experiment, in a --config-dir.")
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        follows = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if argument.startswith("-") or follows else overrides).append(argument)
    sweep = not {"-m", "--multirun"}.isdisjoint(flags)
    if any(override.key_or_group in ("resume", "run_dir") for override in parse(overrides, sweep)):
        raise UserError("resume and run_dir name one run: they cannot be combined with a sweep (-m) or another flag.")
    if flags in (["--cfg", "job"], ["-c", "job"]):
        print(to_yaml(composed(overrides, "train", folders)), end="")
        return 0

    def job(_: Any) -> None:
        try:
            code = train(check_config(composed(HydraConfig.get().overrides.task, "train", folders)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        if code:
            sys.exit(code)

    offer_components(folders)
    sys.argv[1:] = [*flags, *search_path(folders), *checked(overrides, "train", sweep, folders)]
    hydra.main(str(config_dir().resolve()), "train", version_base="1.3")(job)()
    return 0


if __name__ == "__main__":
    main()
