"""Meta-World's benchmarks: their tasks, and the 50 official goals of each task.

Registers `mt1`, `mt10`, `mt25`, `mt50` and `metaworld` (any list of tasks) as environments. What simulates them is
registered under the kind "physics".
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl import registry
from mtrl.envs.base import check_num_envs
from mtrl.envs.metaworld.cache import cache_path, read_arrays, write_arrays
from mtrl.envs.metaworld.catalog import DESCRIPTIONS, MT10, MT25, MT50
from mtrl.envs.slots import SlotVecEnv
from mtrl.types import EnvSpec, UserError, VecEnv

NUM_GOALS = 50
"""Official goals per task."""
MAX_HORIZON = 500
"""Where the published environments end an episode."""
OBS_SIZE, ACTION_SIZE = 39, 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """What a physics simulates."""

    task_names: tuple[str, ...]
    goals: tuple[NDArray[np.float64], ...]
    """The official random vectors of each task, (50, size) each: object and goal positions."""
    reward_version: str
    horizon: int

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            task_names=self.task_names,
            obs_shape=(OBS_SIZE,),
            obs_dtype=torch.float32,
            action_kind="continuous",
            action_dim=ACTION_SIZE,
            action_mask=((True,) * ACTION_SIZE,) * len(self.task_names),
            horizon=self.horizon,
            has_success=True,
            num_goals=NUM_GOALS,
            task_descriptions=tuple(DESCRIPTIONS[name] for name in self.task_names),
        )


@registry.register("physics", "official")
def official(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The published gymnasium environments, spread over processes."""
    from mtrl.envs.metaworld.official import make_slots

    slots = functools.partial(
        make_slots,
        task_names=suite.task_names,
        goals=suite.goals,
        reward_version=suite.reward_version,
        horizon=suite.horizon,
        render=render,
    )
    return SlotVecEnv(slots, suite.spec, num_envs, NUM_GOALS, seed, device, num_workers)


@registry.register("physics", "rollout")
def rollout(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The same trajectories from C MuJoCo in `num_workers` threads, with batched rewards: several times as fast."""
    from mtrl.envs.metaworld.rollout_physics import RolloutVecEnv

    if render:
        raise UserError("physics=rollout cannot render: use physics=official.")
    return RolloutVecEnv(suite, num_envs, seed, device, num_workers)


def official_goals(benchmark: str, task_names: Sequence[str], seed: int) -> tuple[NDArray[np.float64], ...]:
    """The 50 random vectors of each task, (50, size) each, as the official class of the benchmark draws them.

    Drawing resets every task 50 times (half a second per task), so the result is kept on disk.

    Args:
        benchmark: "mt1", "mt10", "mt25", "mt50", or "metaworld" for any list of tasks.
        task_names: The tasks, in order: the draws of one task depend on those before it.
        seed: Of the official class.
    """
    path = cache_path("goals", {"benchmark": benchmark, "tasks": list(task_names), "seed": seed})
    arrays = read_arrays(path)
    goals = None if arrays is None else _checked_goals(path, arrays, task_names)
    if goals is None:
        goals = _draw_goals(benchmark, task_names, seed)
        write_arrays(path, dict(zip(task_names, goals, strict=True)))
    return goals


def _draw_goals(benchmark: str, task_names: Sequence[str], seed: int) -> tuple[NDArray[np.float64], ...]:
    import pickle

    import metaworld
    from metaworld import env_dict

    if benchmark == "metaworld":
        # The benchmark classes are this call with their own lists.
        classes = env_dict._get_env_dict(task_names)
        kwargs = env_dict._get_args_kwargs(env_dict.ALL_V3_ENVIRONMENTS, classes)
        tasks = metaworld._make_tasks(classes, kwargs, metaworld._MT_OVERRIDE, seed=seed)
    elif benchmark == "mt1":
        tasks = metaworld.MT1(task_names[0], seed=seed).train_tasks
    else:
        tasks = getattr(metaworld, benchmark.upper())(seed=seed).train_tasks
    return tuple(
        # Not from a file: the pickles were made by the call above, in this process.
        np.array([pickle.loads(task.data)["rand_vec"] for task in tasks if task.env_name == name])  # noqa: TID251
        for name in task_names
    )


def _checked_goals(
    path: Path, arrays: dict[str, NDArray[np.float64]], task_names: Sequence[str]
) -> tuple[NDArray[np.float64], ...] | None:
    """Goals from the cache; None if they are not what they should be."""
    goals = tuple(arrays[name] for name in task_names if name in arrays)
    if len(goals) == len(task_names) and all(
        vectors.ndim == 2 and len(vectors) == NUM_GOALS and np.isfinite(vectors).all() for vectors in goals
    ):
        return goals
    log.warning("The cached goals in %s are not %d vectors per task and will be drawn again.", path, NUM_GOALS)
    return None


def _make(
    benchmark: str,
    task_names: Sequence[str],
    physics: str,
    reward_version: str,
    horizon: int,
    seed: int,
    goal_seed: int | None,
    **simulation: Any,
) -> VecEnv:
    """What all factories below do; `simulation` is for the physics."""
    # What can be wrong is found before goals are drawn, which may take half a minute.
    registry.lookup("physics", physics)
    if not 1 <= horizon <= MAX_HORIZON:
        raise UserError(f"horizon must be from 1 to {MAX_HORIZON}, not {horizon}: Meta-World's episodes end there.")
    goal_seed = seed if goal_seed is None else goal_seed
    if not 0 <= goal_seed < 2**32:
        raise UserError(f"Meta-World's seed must be from 0 to 2**32 - 1, not {goal_seed}.")
    try:
        version("metaworld")
    except PackageNotFoundError:
        raise UserError("Meta-World is not installed: pip install metaworld==3.1.1") from None
    suite = Suite(tuple(task_names), official_goals(benchmark, task_names, goal_seed), reward_version, horizon)
    return registry.build("physics", {"name": physics}, suite=suite, seed=seed, **simulation)


def _check_task(name: str) -> None:
    if name not in MT50:
        raise UserError(registry.unknown("Meta-World task", str(name), MT50))


@registry.register("env", "mt1")
def mt1(
    task: str,
    num_envs: int | None,
    seed: int,
    device: str,
    physics: str = "rollout",
    reward_version: Literal["v1", "v2"] = "v2",
    horizon: int = MAX_HORIZON,
    goal_seed: int | None = None,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
) -> VecEnv:
    """One task with its 50 goals."""
    _check_task(task)
    num_envs = check_num_envs(num_envs, 1, slots_per_task)
    simulation = {"num_envs": num_envs, "device": device, "num_workers": num_workers, "render": render}
    return _make("mt1", (task,), physics, reward_version, horizon, seed, goal_seed, **simulation)


@registry.register("env", "metaworld")
def metaworld_tasks(
    tasks: Sequence[str],
    num_envs: int | None,
    seed: int,
    device: str,
    physics: str = "rollout",
    reward_version: Literal["v1", "v2"] = "v2",
    horizon: int = MAX_HORIZON,
    goal_seed: int | None = None,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
) -> VecEnv:
    """Any list of tasks, in the order given."""
    if isinstance(tasks, str) or not len(tasks):
        raise UserError(f"tasks must be a list of Meta-World tasks, not {tasks!r}: for example [reach-v3, push-v3].")
    for task in tasks:
        _check_task(task)
    if len(set(tasks)) < len(tasks):
        raise UserError(f"Each task may be named once, found {', '.join(tasks)}.")
    num_envs = check_num_envs(num_envs, len(tasks), slots_per_task)
    simulation = {"num_envs": num_envs, "device": device, "num_workers": num_workers, "render": render}
    return _make("metaworld", tuple(tasks), physics, reward_version, horizon, seed, goal_seed, **simulation)


def _benchmark(benchmark: str, task_names: Sequence[str]) -> Callable[..., VecEnv]:
    def make(
        num_envs: int | None,
        seed: int,
        device: str,
        physics: str = "rollout",
        reward_version: Literal["v1", "v2"] = "v2",
        horizon: int = MAX_HORIZON,
        goal_seed: int | None = None,
        num_workers: int | None = None,
        render: bool = False,
        slots_per_task: int = 1,
    ) -> VecEnv:
        num_envs = check_num_envs(num_envs, len(task_names), slots_per_task)
        simulation = {"num_envs": num_envs, "device": device, "num_workers": num_workers, "render": render}
        return _make(benchmark, task_names, physics, reward_version, horizon, seed, goal_seed, **simulation)

    make.__name__ = make.__qualname__ = benchmark
    return make


for _name, _tasks in {"mt10": MT10, "mt25": MT25, "mt50": MT50}.items():
    registry.register("env", _name)(_benchmark(_name, _tasks))
