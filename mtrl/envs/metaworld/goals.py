"""The 50 official goals of each task, as the official class of a benchmark draws them."""

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
from mtrl.registry import unknown
from mtrl.types import UserError

NUM_GOALS = 50
"""Official goals per task."""

log = logging.getLogger(__name__)


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
                raise UserError(unknown("Meta-World task", str(task), MT50))

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


def _draw_goals(benchmark: Benchmark, seed: int, num_goals: int = NUM_GOALS) -> tuple[NDArray[np.float64], ...]:
    # What `metaworld._make_tasks` does for the lists of each class; `ML1` alone has another seed for its test split.
    if benchmark.name == "ML1" and benchmark.split == "test":
        seed += 1
    before = np.random.get_state()
    np.random.seed(seed)  # one stream for all tasks, one after the other
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
    """Mixin of an environment that only draws: its draws do not depend on the physics of the resets between them."""

    def _step_mujoco_simulation(self: Any, ctrl: object, n_frames: int) -> None:
        import mujoco

        mujoco.mj_kinematics(self.model, self.data)  # what observations are made of


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
