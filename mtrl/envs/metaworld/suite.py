"""Meta-World's benchmarks: their tasks, and the 50 official goals of each task.

Registers `mt1`, `mt10`, `mt25`, `mt50` and `metaworld` (any list of tasks) as environments, and the meta-learning
benchmarks `ml1`, `ml10`, `ml25` and `ml45`, whose observations hide the goal. What simulates them is registered under
the kind "physics".
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl import registry
from mtrl.envs.base import check_num_envs
from mtrl.envs.metaworld import catalog
from mtrl.envs.metaworld.cache import cache_path, read_arrays, write_arrays
from mtrl.envs.metaworld.catalog import DESCRIPTIONS, MT50
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
    goal_visible: bool
    """Whether the goal is part of the observation; if not, zeros stand in its place."""
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
            reports_success=(True,) * len(self.task_names),
            comparable_returns=self.reward_version == "v2" or len(self.task_names) == 1,
            num_goals=NUM_GOALS,
            task_descriptions=tuple(DESCRIPTIONS[name] for name in self.task_names),
        )


@registry.register("physics", "official")
def official(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The published gymnasium environments, spread over processes."""
    from mtrl.envs.metaworld.official import make_slots
    from mtrl.envs.rendering import check_mujoco_draws

    if render:
        check_mujoco_draws()
    slots = functools.partial(
        make_slots,
        task_names=suite.task_names,
        goals=suite.goals,
        goal_visible=suite.goal_visible,
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


@dataclass(frozen=True)
class Benchmark:
    """Which goals of which tasks: what the official class of that name draws."""

    name: str
    """"MT1", "MT10", "MT25", "MT50", "ML1", "ML10", "ML25" or "ML45"; "" for any list of tasks."""
    task_names: tuple[str, ...]
    split: Literal["train", "test"] = "train"
    """Of a meta-learning benchmark."""

    def __post_init__(self) -> None:
        for task in self.task_names:
            if task not in MT50:
                raise UserError(registry.unknown("Meta-World task", str(task), MT50))

    @property
    def goal_visible(self) -> bool:
        return not self.name.startswith("ML")


def official_goals(benchmark: Benchmark, seed: int) -> tuple[NDArray[np.float64], ...]:
    """The 50 random vectors of each task, (50, size) each, as the official class of the benchmark draws them.

    Drawing compiles and resets every task (a second each), so the result is kept on disk.

    Args:
        benchmark: Whose tasks and in which order: the draws of one task depend on those before it.
        seed: Of the official class.
    """
    names = benchmark.task_names
    path = cache_path("goals", {**asdict(benchmark), "seed": seed})
    arrays = read_arrays(path)
    goals = None if arrays is None else _checked_goals(path, arrays, names)
    if goals is None:
        goals = _draw_goals(benchmark, seed)
        write_arrays(path, dict(zip(names, goals, strict=True)))
    return goals


def _draw_goals(benchmark: Benchmark, seed: int) -> tuple[NDArray[np.float64], ...]:
    import pickle
    from unittest import mock

    import metaworld
    import mujoco
    from gymnasium.envs.mujoco import MujocoEnv
    from metaworld import env_dict

    def pose(env: MujocoEnv, ctrl: object, n_frames: int) -> None:
        mujoco.mj_kinematics(env.model, env.data)  # what observations are made of

    # The draws do not depend on the physics of the resets between them, which would be four fifths of the time.
    without_physics = mock.patch.object(MujocoEnv, "_step_mujoco_simulation", pose)
    if not benchmark.name:
        # The benchmark classes are this call with their own lists.
        classes = env_dict._get_env_dict(benchmark.task_names)
        kwargs = env_dict._get_args_kwargs(env_dict.ALL_V3_ENVIRONMENTS, classes)
        with without_physics:
            tasks = metaworld._make_tasks(classes, kwargs, metaworld._MT_OVERRIDE, seed=seed)
    else:
        arguments = benchmark.task_names if benchmark.name in ("MT1", "ML1") else ()
        with without_physics:
            official = getattr(metaworld, benchmark.name)(*arguments, seed=seed)
        tasks = official.train_tasks if benchmark.split == "train" else official.test_tasks
    return tuple(
        # Not from a file: the pickles were made by the call above, in this process.
        np.array([pickle.loads(task.data)["rand_vec"] for task in tasks if task.env_name == name])  # noqa: TID251
        for name in benchmark.task_names
    )


def _checked_goals(
    path: Path | None, arrays: dict[str, NDArray[np.float64]], task_names: Sequence[str]
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
    benchmark: Benchmark,
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
    # What can be wrong is found before goals are drawn, which may take half a minute.
    registry.lookup("physics", physics)
    num_envs = check_num_envs(num_envs, len(benchmark.task_names), slots_per_task)
    if not 1 <= horizon <= MAX_HORIZON:
        raise UserError(f"horizon must be from 1 to {MAX_HORIZON}, not {horizon}: Meta-World's episodes end there.")
    goal_seed = seed if goal_seed is None else goal_seed
    if not 0 <= goal_seed < 2**32:
        raise UserError(f"Meta-World's seed must be from 0 to 2**32 - 1, not {goal_seed}.")
    try:
        version("metaworld")
    except PackageNotFoundError:
        raise UserError("Meta-World is not installed: pip install metaworld==3.1.1") from None
    goals = official_goals(benchmark, goal_seed)
    suite = Suite(benchmark.task_names, goals, benchmark.goal_visible, reward_version, horizon)
    simulation = {"num_envs": num_envs, "seed": seed, "device": device, "num_workers": num_workers, "render": render}
    return registry.build("physics", {"name": physics}, suite=suite, **simulation)


def _register(name: str) -> Callable[[Callable[..., Benchmark]], Callable[..., Benchmark]]:
    """Registers the environment of a benchmark: its options are those of the decorated function and of `_make`."""

    def decorate(choose: Callable[..., Benchmark]) -> Callable[..., Benchmark]:
        chosen = inspect.signature(choose).parameters
        shared = list(inspect.signature(_make).parameters.values())[1:]

        def make(**options: Any) -> VecEnv:
            benchmark = choose(**{key: options.pop(key) for key in chosen if key in options})
            return _make(benchmark, **options)

        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*chosen.values(), *shared)]
        make.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        make.__annotations__ = {**choose.__annotations__, **_make.__annotations__}
        registry.register("env", name)(make)
        return choose

    return decorate


@_register("metaworld")
def _any_tasks(tasks: Sequence[str]) -> Benchmark:
    if isinstance(tasks, str) or not len(tasks):
        raise UserError(f"tasks must be a list of Meta-World tasks, not {tasks!r}: for example [reach-v3, push-v3].")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"Each task may be named once, found {', '.join(tasks)}.")
    return Benchmark("", tuple(tasks))


@_register("mt1")
def _mt1(task: str) -> Benchmark:
    return Benchmark("MT1", (task,))


@_register("ml1")
def _ml1(task: str, split: Literal["train", "test"] = "train") -> Benchmark:
    return Benchmark("ML1", (task,), split)


@_register("mt10")
def _mt10() -> Benchmark:
    return Benchmark("MT10", catalog.MT10)


@_register("mt25")
def _mt25() -> Benchmark:
    return Benchmark("MT25", catalog.MT25)


@_register("mt50")
def _mt50() -> Benchmark:
    return Benchmark("MT50", MT50)


@_register("ml10")
def _ml10(split: Literal["train", "test"] = "train") -> Benchmark:
    return Benchmark("ML10", catalog.ML10_TRAIN if split == "train" else catalog.ML10_TEST, split)


@_register("ml25")
def _ml25(split: Literal["train", "test"] = "train") -> Benchmark:
    return Benchmark("ML25", catalog.ML25_TRAIN if split == "train" else catalog.ML25_TEST, split)


@_register("ml45")
def _ml45(split: Literal["train", "test"] = "train") -> Benchmark:
    return Benchmark("ML45", catalog.ML45_TRAIN if split == "train" else catalog.ML45_TEST, split)
