"""Train one policy for many tasks.

python -m mtrl.train env=mt10                                   # the default agent: the fastest to learn
python -m mtrl.train env=mt10 agent=sac seed=3                  # a choice from each group, and any setting
python -m mtrl.train resume=runs/...                            # continues exactly where it stopped
python -m mtrl.train env=mt10 run_dir=runs/a resume=auto        # begins or continues: for jobs that are restarted
python -m mtrl.train -m env=mt10 aggregation=mean,pcgrad seed=1,2,3    # a sweep, in a folder for python -m mtrl.sweep
torchrun --nproc-per-node=4 -m mtrl.train env=mt10 device=cuda  # learners in several processes, a GPU for each
python -m mtrl.train --help                                     # every choice and every setting
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtrl.envs
from mtrl.agents.components import Components
from mtrl.agents.transfer import Transfer
from mtrl.build import build_episodes, build_learner
from mtrl.config import (
    TrainConfig,
    checked,
    composed,
    config_dir,
    differing,
    flat,
    load_train_yaml,
    offer_components,
    parse,
    resumed,
    run_or_exit,
    search_path,
    split_folders,
    split_paths,
    to_yaml,
)
from mtrl.config import train_config as check_config
from mtrl.data.experience import EpisodeStatistics
from mtrl.foreign import check_planned, check_run_dir, check_tasks, save_settings
from mtrl.help import help_text
from mtrl.parallel.ranks import started_ranks
from mtrl.policy import check_device, find_policy, read_policy, save_policy, stored_tasks
from mtrl.registry import build
from mtrl.run.checkpoint.rng import RngStates
from mtrl.run.checkpoint.rotation import Checkpointer, any_checkpoint
from mtrl.run.checkpoint.transfer import load_networks, load_parts, task_axes
from mtrl.run.console import Progress
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.run.evaluation.report import show
from mtrl.run.folder import SWEEP, check_unused, clear_dead_start, describe_run, drop_evaluations, new_run_dir, writing
from mtrl.run.lock import locked
from mtrl.run.logger import Logger, NoLogger
from mtrl.run.loop import Loop, seed_everything
from mtrl.run.schedule import Every, Until
from mtrl.run.sinks import Sink, TensorBoardSink, WandbSink, check_wandb
from mtrl.run.summary import print_summary
from mtrl.run.timing import PhaseTimer
from mtrl.system.tuning import keep_freed_memory, threads_beside
from mtrl.types import ONE_PROCESS, DataSource, Learner, Ranks, UserError

PATHS = ("run_dir", "resume", "init_from")
"""Settings that are paths."""
FLAGS_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun")
"""Hydra's flags that are followed by a value."""


def train(config: TrainConfig, resume: Path | None = None, ranks: Ranks = ONE_PROCESS) -> int:
    """Trains until the end, in a new run or in the one in the folder `resume`. Returns the exit code.

    Args:
        ranks: The processes that call this together.

    Raises:
        UserError: The configuration or the run folder is invalid, before training begins; or training failed, after
            which everything up to the last checkpoint is safe.
    """
    check_device(config.device)
    check_ranks(config, ranks)
    if config.log.wandb:
        check_wandb()
    keep_freed_memory()
    timer = PhaseTimer()
    progress = Progress()
    with ExitStack() as held:
        if resume is None:
            if config.run_dir is not None:
                check_unused(Path(config.run_dir))
        else:
            check_run_dir(resume)
            ranks.first(lambda: lock(resume, held))
            check_planned(config, resume, make_learner)
        seed_everything(seed_of_rank(config.seed, ranks.rank))
        source, episodes, num_envs = make_source(config, timer, progress.print, held, ranks)
        evaluator = make_evaluator(config)
        held.callback(evaluator.close)
        held.enter_context(threads_beside(config.actors))
        spec = episodes.spec
        learner = make_learner(config, episodes, source)
        source.connect(learner.policy)
        if resume is None:
            if config.init_from is not None:
                initialise(learner, config.init_from, config.init_from_parts, spec.task_names, progress.print)
            run_dir = ranks.first(lambda: begin_run(config, held))
        else:
            run_dir = resume

        def store(checkpoint: Path) -> None:
            save_policy(checkpoint / "policy", learner.policy, learner.policy.description, spec)
            save_settings(config, checkpoint)

        logger = Logger(run_dir, spec.task_names) if ranks.rank == 0 else NoLogger(spec.task_names)
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
            ranks=ranks,
        )
        checkpointer = Checkpointer(
            run_dir / "checkpoints",
            {**loop.savables(), "rng": RngStates()},
            config.checkpoint.keep,
            report=progress.print,
            per_rank=("data", "metrics", "rng"),
            ranks=ranks,
        )
        step = env_steps = 0
        if resume is not None:
            step = checkpointer.restore(check=lambda path: check_tasks(path / "policy", spec.task_names))
            logger.truncate(step, loop.state.evaluating)
            progress.print(f"Resuming {run_dir} at step {step:,}.")
            report_schedules(config, load_train_yaml(run_dir / "config.yaml"), progress.print)
            ranks.first(lambda: go_on(config, run_dir, step))
            env_steps = loop.state.env_steps
            if step >= config.total:
                key = "total_steps" if config.total_updates is None else "total_updates"
                progress.print(f"The run has done its {key}={config.total}: increase it to continue.")
        if ranks.rank == 0:
            logger.sinks += make_sinks(config, run_dir, step)
        shared = f" in {ranks.size} ranks" if ranks.size > 1 else ""
        progress.print(f"Run folder: {run_dir}. {num_envs} slots{shared}, {spec.num_tasks} tasks.")
        timer.reset()
        stopped_by = loop.run(checkpointer)
        logger.close()
        if stopped_by is not None:
            command = shlex.join([*ranks.launcher, "-m", "mtrl.train", f"resume={run_dir}"])
            print(f"Stopped at step {loop.state.step:,}. Go on with: {command}")
            return 128 + stopped_by
        if loop.last_evaluation is not None:
            show(loop.last_evaluation)
        print_summary(loop, loop.state.env_steps - env_steps)
    return 0


def check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """Raises `UserError` for settings that make no sense in several ranks."""
    if ranks.size == 1:
        return
    if config.actors:
        raise UserError(f"actors={config.actors} act for one learner: use actors=0 in {ranks.size} ranks.")
    if config.device.startswith("cuda:"):
        raise UserError(f"device={config.device} is one GPU, and each rank has its own: use device=cuda.")
    gpus = torch.cuda.device_count()
    if config.device == "cuda" and gpus < ranks.local_size:
        raise UserError(
            f"device=cuda needs a GPU for each of the {ranks.local_size} ranks of a machine, but it has {gpus}."
        )


def lock(run_dir: Path, held: ExitStack) -> None:
    """Locks a run folder against other processes until `held` closes. Raises `UserError`."""
    with writing(run_dir):
        held.enter_context(locked(run_dir / "env.txt"))


def begin_run(config: TrainConfig, held: ExitStack) -> Path:
    """Makes and describes the folder of a new run, locked until `held` closes. Raises `UserError`."""
    name = f"{config.env['name']}_{config.agent['name']}_seed{config.seed}"
    run_dir = new_run_dir(Path(config.run_dir) if config.run_dir else None, name, held)
    describe_run(run_dir, to_yaml(config.plain()))
    return run_dir


def go_on(config: TrainConfig, run_dir: Path, step: int) -> None:
    """Describes a run that is resumed at a step, and drops what came later. Raises `UserError`."""
    describe_run(run_dir, to_yaml(config.plain()))
    drop_evaluations(run_dir, step)


def seed_of_rank(seed: int, rank: int) -> int:
    """Seed of a rank's episodes and actions; that of the first one is the run's."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed


def make_source(
    config: TrainConfig, timer: PhaseTimer, report: Callable[[str], None], held: ExitStack, ranks: Ranks = ONE_PROCESS
) -> tuple[DataSource, EpisodeStatistics, int]:
    """Makes the data source of a rank (closed by `held`).

    Returns it, its statistics of episodes and the number of slots of all ranks.
    """
    node, shares = dict(config.env), max(config.actors, 1)  # each actor has its share of the slots
    if node.get("num_envs") is not None:
        node["num_envs"] = ranks.share("env.num_envs", node["num_envs"]) // shares
    if config.actors and "num_workers" in node and node["num_workers"] is None:
        node["num_workers"] = 0  # the actor itself
    slots_per_task = config.data.get("slots_per_task", 1)
    if node.get("num_envs") is None:
        slots_per_task = ranks.share("data.slots_per_task", slots_per_task) // shares
    make_env = partial(mtrl.envs.make, **node, seed=config.seed, slots_per_task=slots_per_task)
    env = make_env()
    held.callback(env.close)
    if ranks.rank:
        env.reset(seed_of_rank(config.seed, ranks.rank))
    num_envs = ranks.size * shares * env.num_envs
    episodes = build_episodes(config.task_sampling, env.spec, num_envs, ranks)
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
        transport=config.transport,
        gamma=config.agent.get("gamma"),
    )
    held.callback(source.close)
    if ranks.size > 1 and not source.joins_ranks:
        raise UserError(f"data={config.data['name']} is for one process: start it without torchrun.")
    if not source.makes_steps and config.total_updates is None:
        raise UserError(f"data={config.data['name']} steps no environment: set its end with total_updates=...")
    return source, episodes, num_envs


def make_learner(
    config: TrainConfig, episodes: EpisodeStatistics, source: DataSource | type[DataSource] = DataSource
) -> Learner:
    """Makes the learner with its components.

    Args:
        source: Describes the batches. The class itself stands for a source that says nothing about them.
    """
    spec = episodes.spec
    runtime, aux_losses = {"spec": spec, "device": config.device, "episodes": episodes}, config.aux_losses
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
        teacher=source.teacher,
        aux_losses={name: build("aux_loss", {"name": name, **node}, **runtime) for name, node in aux_losses.items()},
        compile=config.compile,
    )
    learner = build_learner(
        config.agent, components, source.yields, config.precision, config.resets, config.log.lookahead
    )
    by_part = (config.lr_factors, config.freeze, config.l2_sp)
    return Transfer(learner, *by_part) if any(by_part) else learner


def make_evaluator(config: TrainConfig) -> Evaluator:
    """Makes the evaluator of a run, which follows the protocol of its environment."""
    return Evaluator(
        mtrl.envs.evaluation_protocol(config.env, config.seed),
        mtrl.envs.make,
        config.seed,
        config.eval.episodes_per_task,
        config.eval.max_episode_steps,
        config.device,
        config.eval.stop_at_success,
    )


def initialise(
    learner: Learner, source: str, parts: list[str] | None, tasks: Sequence[str], report: Callable[[str], None]
) -> None:
    """Loads weights from a run or checkpoint (all networks that both have), or from a policy folder (the policy).

    Per-task weights go to the task of the same name; `report` is called about `tasks` without a counterpart.
    """
    folder = find_policy(source)
    networks = learner.networks
    have = stored_tasks(folder)
    state = folder.parent / "training_state" / "learner"
    if state.is_dir():
        stored = load_networks(state)
    else:
        stored = {f"policy.{name}": tensor for name, tensor in read_policy(folder).tensors.items()}
    shared = {name.split(".")[0] for name in stored} & set(networks)
    tensors = {name: tensor for name, tensor in stored.items() if name.split(".")[0] in shared}
    target = torch.nn.ModuleDict({name: networks[name] for name in shared})
    taken = load_parts(target, tensors, parts, have, tasks)
    fresh = [name for name in tasks if name not in have]
    if fresh and not task_axes(target).keys().isdisjoint(taken):
        report(f"{source} was not trained in {', '.join(fresh)}: weights of these tasks start from scratch.")
    learner.initialised(taken)


def make_sinks(config: TrainConfig, run_dir: Path, step: int) -> list[Sink]:
    """Makes the places besides `metrics.jsonl` where metrics go. Rows after `step` are superseded there."""
    chosen: list[Sink] = []
    if config.log.tensorboard:
        settings = {key: value for key, value in flat(config.plain()).items() if key != "run_dir"}
        chosen.append(TensorBoardSink(run_dir / "tensorboard", settings, purge_step=step or None))
    if config.log.wandb:
        in_sweep = (run_dir.parent / SWEEP).is_file()
        chosen.append(
            WandbSink(
                run_dir,
                project=config.log.wandb_project,
                entity=config.log.wandb_entity,
                group=config.log.wandb_group or (run_dir.resolve().parent.name if in_sweep else None),
                tags=config.log.wandb_tags,
                name=run_dir.name,
                config=config.plain(),
            )
        )
    return chosen


def report_schedules(config: TrainConfig, stored: TrainConfig, report: Callable[[str], None]) -> None:
    """Reports whether the schedules of a resumed run end at another step than those of the `stored` configuration."""
    before, now = (c.schedule_steps or c.total for c in (stored, config))
    if before != now:
        report(
            f"Schedules (learning rates, resets) now end at step {now:,} instead of {before:,}: "
            f"schedule_steps={before} keeps them."
        )


def main() -> None:
    """Command line."""
    with started_ranks() as ranks:
        run_or_exit(partial(_main, ranks=ranks), sys.argv[1:], ranks.reports)


def _main(arguments: list[str], ranks: Ranks = ONE_PROCESS) -> int:
    arguments, folders = split_folders(arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(__doc__, folders), end="")
        return 0
    if any(argument.startswith("-") for argument in arguments):
        return _hydra_main(arguments, folders, ranks)
    overrides, paths = split_paths(arguments, PATHS)
    resume = paths.pop("resume", None)
    if resume == "auto":
        return _resume_or_start(check_config({**composed(overrides, "train", folders), **paths}), ranks)
    if resume is not None:
        stored = load_train_yaml(Path(resume) / "config.yaml").plain()
        return train(check_config(resumed(stored, parse(overrides), paths)), Path(resume), ranks)
    return train(check_config({**composed(overrides, "train", folders), **paths}), None, ranks)


def _resume_or_start(config: TrainConfig, ranks: Ranks) -> int:
    """Continues the run in `run_dir`, or begins it there, so that schedulers can repeat the same command."""
    if config.run_dir is None:
        raise UserError("resume=auto needs the run's folder: run_dir=...")
    run_dir = Path(config.run_dir)
    if not ranks.first(lambda: _can_resume(run_dir)):
        return train(config, None, ranks)
    if differ := differing(config, load_train_yaml(run_dir / "config.yaml")):
        several = [*differ[:4], f"and {len(differ) - 4} other settings"] if len(differ) > 5 else differ
        raise UserError(f"The run in {run_dir} was begun with {'; '.join(several)}: choose another run_dir.")
    return train(config, run_dir, ranks)


def _can_resume(run_dir: Path) -> bool:
    """Whether there is something to resume. If not, what is left of a dead start is removed. Raises `UserError`."""
    if any_checkpoint(run_dir / "checkpoints"):
        return True
    clear_dead_start(run_dir, load_train_yaml)
    return False


def _hydra_main(arguments: list[str], folders: list[Path], ranks: Ranks) -> int:
    """Sweeps (`-m`), `--cfg job` and Hydra's other flags."""
    import hydra

    from mtrl.sweep.launch import sweep

    if not {"--config-path", "-cp", "--config-name", "-cn"}.isdisjoint(flag.split("=")[0] for flag in arguments):
        raise UserError("A run's settings are those of train.yaml: change them in an experiment, in a --config-dir.")
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        follows = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        (flags if argument.startswith("-") or follows else overrides).append(argument)
    sweeps = bool(flags) and flags[0] in ("-m", "--multirun")
    if any(override.key_or_group in ("resume", "run_dir") for override in parse(overrides, sweeps)):
        raise UserError("resume and run_dir name one run: they cannot be combined with a sweep (-m) or another flag.")
    if ranks.size > 1 and sweeps:
        raise UserError("A sweep (-m) starts its runs itself, each in one process: start it without torchrun.")
    if sweeps:
        settings, paths = split_paths(overrides, ("sweep_dir",))
        return sweep(settings, folders, paths.get("sweep_dir"))
    if flags in (["--cfg", "job"], ["-c", "job"]):
        print(to_yaml(composed(overrides, "train", folders)), end="")
        return 0
    offer_components(folders)
    sys.argv[1:] = [*flags, *search_path(folders), *checked(overrides, "train", folders=folders)]
    hydra.main(str(config_dir().resolve()), "train", version_base="1.3")(_no_job)()
    return 0


def _no_job(_: Any) -> None:
    raise UserError("This flag of Hydra's runs nothing here: python -m mtrl.train without it does.")


if __name__ == "__main__":
    main()
