"""Gymnasium environments as slots. No torch here: this runs in workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from mtrl.envs.rendering import image
from mtrl.envs.worker import EnvPool

SUCCESS_KEYS = ("is_success", "success")

Layout = Literal["flat", "grey", "first", "last"]
"""Layout of observations: a vector, or an image with no channel axis, or with that axis first or last."""


@dataclass(frozen=True)
class GymTask:
    """Everything a worker needs to make the environment of a task."""

    registered: EnvSpec
    """The registration behind the id, which may be known only in the process that registered it."""
    kwargs: Mapping[str, Any]
    layout: Layout


def make_env(registered: str | EnvSpec, kwargs: Mapping[str, Any], render: bool = False) -> gymnasium.Env[Any, Any]:
    """Makes an environment as registered, including its time limit, but without Gymnasium's environment checker."""
    mode = {"render_mode": "rgb_array"} if render else {}  # not every constructor accepts it
    return gymnasium.make(registered, **{"disable_env_checker": True, **kwargs, **mode})


def arrange(obs: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Moves the channels of an image to the first axis."""
    if layout == "grey":
        return obs[None]
    return np.moveaxis(obs, -1, 0) if layout == "last" else obs


def rescale(action: NDArray[np.float32], space: spaces.Box) -> NDArray[Any]:
    """Rescales an action from [-1, 1]^A to the bounds of a space. Bounds map exactly; no result is outside of them."""
    is_integer = np.issubdtype(space.dtype, np.integer)
    # The last digit of a float64 can decide which of two integers is nearer.
    wide: type[np.floating[Any]] = np.longdouble if is_integer else np.float64
    low, high, unit = space.low.astype(wide), space.high.astype(wide), action.reshape(space.shape).astype(wide)
    point = (1 - unit) / 2 * low + (1 + unit) / 2 * high
    if is_integer:
        point = np.rint(point)
    return np.clip(point.astype(space.dtype), space.low, space.high)


class GymSlot:
    """One slot over a list of gymnasium environments. The goal is the seed of the episode.

    Args:
        pool: Shared by the slots of a process.
        layouts: Layout of the observations of each task.
        obs_shape: Shape of all observations. Smaller ones are flattened and padded with zeros.
    """

    def __init__(
        self, pool: EnvPool[gymnasium.Env[Any, Any]], layouts: Sequence[Layout], obs_shape: tuple[int, ...]
    ) -> None:
        self._pool, self._layouts, self._shape = pool, layouts, obs_shape
        self._task: int | None = None
        self._env: gymnasium.Env[Any, Any] | None = None

    def reset(self, task: int, goal: int) -> NDArray[Any]:
        if task != self._task:
            self._release()
            self._env, self._task = self._pool.take(task), task
        assert self._env is not None
        return self._observation(self._env.reset(seed=goal)[0])

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, bool]:
        assert self._env is not None
        space = self._env.action_space
        if isinstance(space, spaces.Box):
            move = rescale(action[: int(np.prod(space.shape))], space)
        else:
            assert isinstance(space, spaces.Discrete)
            move = space.start + int(action)
        obs, reward, terminated, truncated, info = self._env.step(move)
        success = any(bool(info.get(key, False)) for key in SUCCESS_KEYS)
        return self._observation(obs), float(reward), bool(terminated), bool(truncated), success

    def _observation(self, obs: Any) -> NDArray[Any]:
        assert self._env is not None
        assert self._task is not None
        space, layout = self._env.observation_space, self._layouts[self._task]
        if layout != "flat":
            return arrange(np.asarray(obs), layout)
        if space.shape == self._shape and isinstance(space, spaces.Box):
            return np.asarray(obs)
        flat = np.asarray(spaces.flatten(space, obs))
        return np.pad(flat, (0, self._shape[0] - len(flat)))

    def render(self) -> NDArray[np.uint8]:
        assert self._env is not None
        return image(self._env)

    def close(self) -> None:
        self._release()
        self._pool.close()

    def _release(self) -> None:
        if self._env is not None and self._task is not None:
            self._pool.give(self._task, self._env)
        self._env = self._task = None


def make_slots(num_slots: int, tasks: Sequence[GymTask], obs_shape: tuple[int, ...], render: bool) -> list[GymSlot]:
    """The slots of one worker."""
    pool = EnvPool(lambda task: make_env(tasks[task].registered, tasks[task].kwargs, render))
    layouts = [task.layout for task in tasks]
    return [GymSlot(pool, layouts, obs_shape) for _ in range(num_slots)]
