"""Checks of a run folder before it is used, since it may be damaged, edited or untrusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mtrl.build import build_episodes
from mtrl.config import TrainConfig
from mtrl.data.experience import EpisodeStatistics
from mtrl.policy import read_policy, stored_tasks
from mtrl.run.checkpoint.codec import CheckpointError, load_state, save_state
from mtrl.run.checkpoint.rotation import checkpoints, newest_valid, number_of_ranks
from mtrl.run.checkpoint.transfer import networks_of
from mtrl.run.reading import check_inside, check_sizes, count, ordinary, reason
from mtrl.state import check_like, planned, shown
from mtrl.types import Learner, State, UserError


def check_run_dir(run_dir: Path) -> None:
    """Raises `UserError` if a path that a run uses leads out of its folder, or if there is no checkpoint."""
    for name in ("eval", "checkpoints", "tensorboard", "config.yaml", "metrics.jsonl", "env.txt"):
        path = run_dir / name
        try:
            check_inside(path, run_dir)
            if path.suffix and path.exists():
                ordinary(path, run_dir)
        except ValueError as error:
            raise UserError(f"{path} cannot be used: {error}.") from error
    if not checkpoints(run_dir / "checkpoints"):
        newest_valid(run_dir / "checkpoints")  # raises an error that lists what is there instead


def check_planned(
    config: TrainConfig, run_dir: Path, make_learner: Callable[[TrainConfig, EpisodeStatistics], Learner]
) -> None:
    """Compares the learner that a configuration describes with the checkpoints, before memory is allocated for it.

    Args:
        make_learner: Makes the learner.

    Raises:
        UserError: The learner fits no checkpoint, or cannot be made.
    """
    problems = []
    for path in checkpoints(run_dir / "checkpoints"):
        try:
            _check_fits(config, path, make_learner)
            return
        except (ValueError, CheckpointError) as error:
            problems.append(f"{path.name}: {reason(error)}.")
        except UserError as error:
            raise UserError(f"{run_dir / 'config.yaml'} cannot be used: {error}") from error
    raise UserError(f"{run_dir / 'config.yaml'} does not fit any checkpoint. {' '.join(problems)}")


def _check_fits(
    config: TrainConfig, path: Path, make_learner: Callable[[TrainConfig, EpisodeStatistics], Learner]
) -> None:
    """Raises `ValueError` or `CheckpointError`."""
    spec = read_policy(path / "policy").spec
    if (path / "settings").is_dir():  # not in checkpoints of earlier versions
        _check_same(config.plain(), load_state(path / "settings"))
    learner, data = (load_state(path / "training_state" / name, headers_only=True) for name in ("learner", "data"))
    num_envs = config.env.get("num_envs") or config.data.get("slots_per_task", 1) * spec.num_tasks
    collector = data.get("collector")
    task = collector.get("task") if isinstance(collector, Mapping) else None  # no collector with actors
    ranks = number_of_ranks(folder.name for folder in (path / "training_state").iterdir())
    if isinstance(task, Tensor) and ranks * len(task) != num_envs:
        raise ValueError(f"expected {num_envs:,} slots, found {ranks * len(task):,}")
    networks = networks_of(learner)
    described = ("network", "torso", "core", "task_encoder", "value_head")
    check_sizes({key: getattr(config, key) for key in described}, count(networks), "")

    def state() -> State:
        episodes = build_episodes(config.task_sampling, spec, num_envs)
        return make_learner(replace(config, device="meta", compile=False), episodes).state_dict()

    plan = planned(state, len(networks))
    if plan is not None:
        check_like(learner, plan, "learner")


def check_tasks(policy: Path, tasks: Sequence[str]) -> None:
    """Raises `UserError` unless a stored policy has the same tasks in the same order."""
    have = stored_tasks(policy)
    if have != tuple(tasks):
        raise UserError(
            f"The run cannot continue with other tasks or another order: its checkpoint has [{', '.join(have)}], the "
            f"environment now [{', '.join(tasks)}]. Put back what was changed in its config.yaml, or use init_from to "
            "start a new run from this one's weights."
        )


def save_settings(config: TrainConfig, folder: Path) -> None:
    """Stores the settings in a checkpoint, because `config.yaml` has no checksum and may be edited."""
    save_state(folder / "settings", config.lasting())


def _check_same(given: Any, stored: Any, entry: str = "") -> None:
    """Raises `ValueError` for the first setting that differs. Settings that are not stored come from later versions."""
    if isinstance(given, Mapping) and isinstance(stored, Mapping):
        for key in stored:
            _check_same(given.get(key), stored[key], f"{entry}.{key}" if entry else str(key))
    elif given != stored:
        raise ValueError(
            f"{entry}: expected {shown(stored)}, with which the checkpoint was made, found {shown(given)}: put it "
            "back, or use init_from to start a new run from this one's weights"
        )
