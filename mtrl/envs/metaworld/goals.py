"""The 50 official goals of each task, as drawn by the official class of a benchmark."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.cache import cache_path, read_arrays, write_arrays
from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.metaworld.pinned import with_pinned_mujoco
from mtrl.registry import unknown
from mtrl.types import UserError

NUM_GOALS = 50
"""Official goals per task."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """The tasks of a benchmark, which determine the goals that the official class draws."""

    name: str
    """"MT1", "MT10", "MT25", "MT50", "ML1", "ML10", "ML25" or "ML45"; "" for any list of tasks."""
    task_names: tuple[str, ...]
    split: Literal["train", "test"] = "train"
    """Split of a meta-learning benchmark."""

    def __post_init__(self) -> None:
        for task in self.task_names:
            if task not in MT50:
                raise UserError(unknown("Meta-World task", str(task), MT50))

    @property
    def goal_visible(self) -> bool:
        return not self.name.startswith("ML")


def official_goals(benchmark: Benchmark, seed: int) -> tuple[NDArray[np.float64], ...]:
    """The 50 random vectors of each task, (50, size) each, as drawn by the official class of the benchmark.

    Drawing compiles and resets every task (a second each), so the result is cached on disk.

    Args:
        benchmark: Tasks in order, since the draws of one task depend on those before it.
        seed: Seed of the official class.
    """
    names = benchmark.task_names
    path = cache_path("goals", {**asdict(benchmark), "seed": seed})
    arrays = read_arrays(path)
    goals = None if arrays is None else _checked_goals(path, arrays, names)
    if goals is None:
        goals = _draw_goals(benchmark, seed)
        write_arrays(path, dict(zip(names, goals, strict=True)))
    return goals


def _draw_goals(benchmark: Benchmark, seed: int, num_goals: int = NUM_GOALS) -> tuple[NDArray[np.float64], ...]:
    goals: tuple[NDArray[np.float64], ...] = with_pinned_mujoco(_draw_all, benchmark, seed, num_goals)
    return goals


def _draw_all(benchmark: Benchmark, seed: int, num_goals: int) -> tuple[NDArray[np.float64], ...]:
    # As in `metaworld._make_tasks` for the lists of each class. Only `ML1` has another seed for its test split.
    if benchmark.name == "ML1" and benchmark.split == "test":
        seed += 1
    before = np.random.get_state()
    np.random.seed(seed)  # all tasks draw from one stream, in order
    try:
        return tuple(_draw(task, num_goals) for task in benchmark.task_names)
    finally:
        np.random.set_state(before)


def _draw(task: str, num_goals: int) -> NDArray[np.float64]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    published = ALL_V3_ENVIRONMENTS[task]
    env: Any = type(published.__name__, (WithoutPhysics, published), {})()
    env._freeze_rand_vec, env._set_task_called = False, True
    env._set_task_inner()
    vectors = []
    for _ in range(num_goals):
        env.reset()
        vectors.append(env._last_rand_vec)
    env.close()
    return np.array(vectors)


class WithoutPhysics:
    """Mixin for an environment that only draws goals, which do not depend on the physics of the resets."""

    def _step_mujoco_simulation(self: Any, ctrl: object, n_frames: int) -> None:
        import mujoco

        mujoco.mj_kinematics(self.model, self.data)  # poses, which observations need


def _checked_goals(
    path: Path | None, arrays: dict[str, NDArray[np.float64]], task_names: Sequence[str]
) -> tuple[NDArray[np.float64], ...] | None:
    """Goals from the cache; None if they are invalid."""
    goals = tuple(arrays[name] for name in task_names if name in arrays)
    if len(goals) == len(task_names) and all(
        vectors.ndim == 2 and len(vectors) == NUM_GOALS and np.isfinite(vectors).all() for vectors in goals
    ):
        return goals
    log.warning("The cached goals in %s are not %d vectors per task and will be drawn again.", path, NUM_GOALS)
    return None
