"""Physics `official`: the published Meta-World environments, stepped in Python. The reference for parity.

Importing this module loads neither Meta-World nor MuJoCo: a process may need another mujoco (physics `warp`), and have
these environments in workers.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.rendering import image
from mtrl.envs.worker import EnvPool

PICTURE = 320
"""Pixels along each side of a rendered image."""


class OfficialSlot:
    """One slot over the published environments. An episode is truncated after `horizon` steps.

    Uses the environment class directly: a reset depends only on (task, goal), so no wrapper and no seed is needed.

    Args:
        pool: Shared by the slots of a process.
        task_names: Names of the tasks by task id.
        goals: The official random vectors of each task, (50, size) each.
        goal_visible: Whether the goal is part of the observation.
        horizon: At most 500, the limit of the published environments.
    """

    def __init__(
        self,
        pool: EnvPool[Any],
        task_names: Sequence[str],
        goals: Sequence[NDArray[np.float64]],
        goal_visible: bool,
        horizon: int,
    ) -> None:
        self._pool, self._names, self._goals, self._horizon = pool, task_names, goals, horizon
        self._goal_visible = goal_visible
        self._task: int | None = None
        self._env: Any = None
        self._steps = 0

    def reset(self, task: int, goal: int) -> NDArray[np.float64]:
        if task != self._task:
            self._release()
            self._env, self._task = self._pool.take(task), task
        assert self._env is not None
        self._env.set_task(official_task(self._names[task], self._goals[task][goal], self._goal_visible))
        self._steps = 0
        return self._env.reset()[0]

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, bool]:
        assert self._env is not None
        obs, reward, _, _, info = self._env.step(action)  # never terminates
        self._steps += 1
        return obs, float(reward), False, self._steps >= self._horizon, bool(info["success"] > 0)

    def render(self) -> NDArray[np.uint8]:
        assert self._env is not None
        return image(self._env)[::-1, ::-1]  # the camera hangs upside down

    def close(self) -> None:
        self._release()
        self._pool.close()

    def _release(self) -> None:
        if self._env is not None and self._task is not None:
            self._pool.give(self._task, self._env)
        self._env = self._task = None


def official_task(name: str, rand_vec: NDArray[np.float64], goal_visible: bool = True) -> Any:
    """The argument of `set_task`."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.types import Task

    data = {"rand_vec": rand_vec, "env_cls": ALL_V3_ENVIRONMENTS[name], "partially_observable": not goal_visible}
    return Task(env_name=name, data=pickle.dumps(data))


class SharedCompilation:
    """Compiles each scene once per process; further environments get a copy of the model, in a fifth of the time."""

    compiled: ClassVar[dict[str, Any]] = {}
    """`MjModel`s by the path of the scene; never modified."""

    def _initialize_simulation(self: Any) -> tuple[Any, Any]:
        import mujoco

        path = self.fullpath
        if path not in self.compiled:
            self.compiled[path], _ = super()._initialize_simulation()  # type: ignore[misc]
        model = copy.deepcopy(self.compiled[path])  # goals are written into the model, so each needs its own
        return model, mujoco.MjData(model)


def make_env(name: str, **keywords: Any) -> Any:
    """A published environment (`SawyerXYZEnv`) that shares its compiled scene."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    published = ALL_V3_ENVIRONMENTS[name]
    return type(published.__name__, (SharedCompilation, published), {})(**keywords)


def make_slots(
    num_slots: int,
    task_names: Sequence[str],
    goals: Sequence[NDArray[np.float64]],
    goal_visible: bool,
    reward_version: str,
    horizon: int,
    render: bool,
) -> list[OfficialSlot]:
    """The slots of one worker."""
    keywords: dict[str, Any] = {"reward_function_version": reward_version}
    if render:
        keywords |= {"render_mode": "rgb_array", "camera_name": "corner2", "width": PICTURE, "height": PICTURE}

    def make(task: int) -> Any:
        env = make_env(task_names[task], **keywords)
        # Affects images only. Without a graphics card, shadows take most of the time.
        env.model.vis.quality.shadowsize = env.model.vis.quality.offsamples = 0
        return env

    pool = EnvPool(make)
    return [OfficialSlot(pool, task_names, goals, goal_visible, horizon) for _ in range(num_slots)]
