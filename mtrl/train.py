"""Train one policy for many tasks.

python -m mtrl.train env=mt10                                   # the default agent: the one that gets there soonest
python -m mtrl.train env=mt10 agent=sac seed=3                  # a choice from each group, and any setting
python -m mtrl.train resume=runs/...                            # goes on exactly where it stopped
python -m mtrl.train --help                                     # every choice and every setting
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import mtrl.envs
from mtrl.build import Agent, Components, build_agent, build_episodes
from mtrl.config import (
    TrainConfig,
    checked,
    composed,
    config_dir,
    load_train_yaml,
    parse,
    resumed,
    run_or_exit,
    save_yaml,
    to_plain,
)
from mtrl.config import train_config as check_config
from mtrl.data.experience import Collector
from mtrl.envs.base import available_cores
from mtrl.evaluate import Evaluator
from mtrl.foreign import check_planned, check_run_dir, save_settings
from mtrl.help import help_text
from mtrl.parallel.actors import Actors, Asynchronous, Serial
from mtrl.policy import check_device, find_policy, read_policy, save_policy
from mtrl.run.checkpoint import Checkpointer, RngStates, load_networks, load_parts
from mtrl.run.evaluation import show
from mtrl.run.logger import Logger, PhaseTimer, Progress, TensorBoardSink, WandbSink, duration, peak_memory_bytes
from mtrl.run.loop import Loop, seed_everything
from mtrl.run.schedule import Every, Until
from mtrl.types import UserError


def train(config: TrainConfig, resume: Path | None = None) -> int:
    """Runs training to its end, or goes on with the run in a folder. Returns the exit code.

    Raises:
        UserError: Something in the configuration or the run folder is not as it must be; training has not begun, or
            everything up to the last checkpoint is safe.
    """
    check_device(config.device)
    check_extras(config)
    keep_freed_memory()
    run_dir = resume or new_run_dir(config)
    seed_everything(config.seed)
    timer = PhaseTimer()
    progress = Progress()
    if resume is not None:
        check_run_dir(resume)
        check_planned(config, resume, make_agent)
    actors = make_actors(config, timer, progress.print)
    evaluator = Evaluator(config.env, config.seed, config.eval.episodes_per_task, config.device)
    with threads_beside(config.actors), closing(actors), closing(evaluator):
        spec = actors.episodes.spec
        agent = make_agent(config, actors)
        if config.init_from is not None and resume is None:
            initialise(agent, config.init_from, config.init_from_parts)
        if resume is None:
            start_run_dir(run_dir, config)

        def save_beside(checkpoint: Path) -> None:
            save_policy(checkpoint / "policy", agent.learner.policy, agent.policy_description, spec)
            save_settings(config, checkpoint)

        logger = Logger(run_dir, spec.task_names)
        loop = Loop(
            agent.learner,
            agent.experience,
            evaluate=lambda report: evaluator(agent.learner, report),
            logger=logger,
            progress=progress,
            timer=timer,
            run_dir=run_dir,
            save_policy=save_beside,
            until=Until(config.total_steps),
            log_now=Every(config.log.every),
            evaluate_now=Every(config.eval.every),
            save_now=Every(config.checkpoint.every),
        )
        savables = {**loop.savables(), "rng": RngStates()}
        checkpointer = Checkpointer(run_dir / "checkpoints", savables, config.checkpoint.keep, report=progress.print)
        step = 0
        if resume is not None:
            step = checkpointer.restore()
            logger.truncate(step)
            resume_run_dir(run_dir, config, step)
            progress.print(f"Resuming {run_dir} at step {step:,}.")
            if step >= config.total_steps:
                progress.print(f"It has done its total_steps={config.total_steps}: give more to go on.")
        logger.sinks += sinks(config, run_dir, step)
        progress.print(f"Run folder: {run_dir}. {actors.num_envs} slots, {spec.num_tasks} tasks.")
        timer.reset()
        stopped_by = loop.run(checkpointer)
        logger.close()
        if stopped_by is not None:
            print(f"Stopped at step {loop.state.step:,}. Go on with: python -m mtrl.train resume={run_dir}")
            return 128 + stopped_by
        if loop.last_evaluation is not None:
            show(loop.last_evaluation)
        print_summary(loop, loop.state.step - step)
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


def make_actors(config: TrainConfig, timer: PhaseTimer, report: Callable[[str], None]) -> Actors:
    """The learner's process acts, or `config.actors` others, each in an environment with its share of the slots."""
    node, shares = dict(config.env), max(config.actors, 1)
    if node.get("num_envs") is not None:
        node["num_envs"] //= shares
    if config.actors and "num_workers" in node and node["num_workers"] is None:
        node["num_workers"] = 0  # the actor itself
    slots_per_task = config.agent["slots_per_task"] // shares
    make_env = partial(mtrl.envs.make, **node, seed=config.seed, slots_per_task=slots_per_task)
    env = make_env()
    options = {"random_start": float(config.agent["random_start"]), "gamma": config.agent.get("gamma", 0.99)}
    num_envs = shares * env.num_envs
    episodes = build_episodes(config.task_sampling, env.spec, num_envs)
    if not config.actors:
        return Serial(Collector(env, episodes, config.device, timer, **options))
    env.close()  # it was made to learn its spec, and to find here what is wrong with it
    return Asynchronous(config.actors, num_envs, make_env, episodes, config.device, timer, options, config.seed, report)


def make_agent(config: TrainConfig, actors: Actors) -> Agent:
    """The learner that `config.agent` names, with its components and its experience."""
    components = Components(
        network=config.network,
        torso=config.torso,
        core=config.core,
        task_encoder=config.task_encoder,
        aggregation=config.aggregation,
        weighting=config.weighting,
        value_norm=config.value_norm,
        value_head=config.value_head,
        spec=actors.episodes.spec,
        device=config.device,
        precision=config.precision,
        compile=config.compile,
    )
    return build_agent(config.agent, components, actors)


def print_summary(loop: Loop, steps: int) -> None:
    """Wall time, time and rate of each phase over this session's `steps`, and peak memory (of live processes)."""
    state, seconds = loop.state, loop.timer.seconds
    rate = state.step / state.training_time if state.training_time else 0.0
    print(
        f"{state.step:,} steps, {state.updates:,} updates in {duration(state.wall_time)} ({rate:,.0f} steps/s training)"
    )
    for phase in ("env", "inference", "wait", "update", "evaluation", "checkpoint", "other"):
        if phase in seconds:
            per_second = f"  {steps / seconds[phase]:,.0f} steps/s" if phase in ("env", "inference", "update") else ""
            print(f"  {phase:<10} {duration(seconds[phase]):>7}{per_second}")
    print(f"Peak memory {peak_memory_bytes() / 2**30:.2f} GiB (all processes). Run folder: {loop.run_dir}")


def initialise(agent: Agent, source: str, parts: list[str] | None) -> None:
    """Takes weights from a run or checkpoint (all networks that both have), or from a policy folder (the policy)."""
    folder = find_policy(source)
    networks = agent.learner.networks
    state = folder.parent / "training_state" / "learner"
    if state.is_dir():
        found = load_networks(state)
        shared = {name.split(".")[0] for name in found} & set(networks)
        tensors = {name: tensor for name, tensor in found.items() if name.split(".")[0] in shared}
        target = torch.nn.ModuleDict({name: networks[name] for name in shared})
        load_parts(target, tensors, parts)
    else:
        load_parts(networks["policy"], read_policy(folder).tensors, parts)


def sinks(config: TrainConfig, run_dir: Path, step: int) -> list[Any]:
    """The places besides `metrics.jsonl` where metrics go; rows after `step` are superseded there."""
    chosen: list[Any] = []
    if config.log.tensorboard:
        chosen.append(TensorBoardSink(run_dir / "tensorboard", purge_step=step or None))
    if config.log.wandb:
        chosen.append(WandbSink(run_dir, project="mtrl", name=run_dir.name, config=config.plain()))
    return chosen


def check_extras(config: TrainConfig) -> None:
    """Raises `UserError` for an extra that is chosen and not installed."""
    if config.log.wandb and find_spec("wandb") is None:
        raise UserError('log.wandb=true needs wandb: pip install "mtrl-suite[wandb]"')


def new_run_dir(config: TrainConfig) -> Path:
    """Folder of a new run. Raises `UserError` if one with content is named."""
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"run_dir={path} is not empty: choose another, or resume={path} to go on with that run.")
        return path
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{config.env['name']}_{config.agent['name']}_seed{config.seed}"
    candidates = (Path("runs") / (f"{stem}-{i}" if i else stem) for i in range(1000))
    return next(path for path in candidates if not path.exists())


def start_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Makes the run folder with `config.yaml` and `env.txt`. Raises `UserError` if it cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_yaml(run_dir / "config.yaml", config.plain())
        (run_dir / "env.txt").write_text(environment_description(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run_dir}: {error.strerror or error}.") from error


def resume_run_dir(run_dir: Path, config: TrainConfig, step: int) -> None:
    """Stores what was given anew, and drops evaluations of what came after the checkpoint. Raises `UserError`."""
    try:
        save_yaml(run_dir / "config.yaml", config.plain())
        for path in (run_dir / "eval").glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) > step:
                path.unlink()
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run_dir}: {error.strerror or error}.") from error


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
        f"command: python -m mtrl.train {' '.join(sys.argv[1:])}",
        f"git commit: {git('rev-parse', 'HEAD')}",
        f"git changes: {len(git('status', '--porcelain').splitlines())} files",
        f"python: {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package}: {installed(package)}" for package in packages),
        f"cores: {available_cores()}, torch threads: {torch.get_num_threads()}",
        f"gpu: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(help_text(__doc__), end="")
        return 0
    if any(argument.startswith("-") for argument in arguments):
        return _hydra_main(arguments)
    overrides = parse(arguments)
    resume = next((o.value() for o in overrides if o.key_or_group == "resume"), None)
    if resume is not None:
        run_dir = Path(str(resume))
        return train(check_config(resumed(load_train_yaml(run_dir / "config.yaml"), overrides)), run_dir)
    return train(check_config(composed(arguments, "train")))


def _hydra_main(arguments: list[str]) -> int:
    """Sweeps (`-m`), `--cfg job` and Hydra's other flags."""
    import hydra

    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        value_of_flag = flags[-1:] in (["--cfg"], ["-c"], ["--package"], ["-p"], ["--info"], ["-i"])
        (flags if argument.startswith("-") or value_of_flag else overrides).append(argument)
    if any(override.key_or_group in ("resume", "run_dir") for override in parse(overrides)):
        raise UserError("resume and run_dir name one run: they cannot be combined with a sweep (-m) or another flag.")

    def job(config: Mapping[str, Any]) -> None:
        try:
            code = train(check_config(to_plain(config)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        if code:
            sys.exit(code)

    sys.argv[1:] = [*flags, *checked(overrides, "train")]
    hydra.main(str(config_dir().resolve()), "train", version_base="1.3")(job)()
    return 0


if __name__ == "__main__":
    main()
