"""Gymnasium environments as slots. No torch here: this runs in workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtrl.envs.worker import EnvPool

SUCCESS_KEYS = ("is_success", "success")


def make_env(env_id: str, render: bool = False) -> gymnasium.Env[Any, Any]:
    """The environment as registered, time limit included; without the checker, which warns about each oddity."""
    options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}  # not every constructor takes it
    return gymnasium.make(env_id, disable_env_checker=True, **options)


class GymSlot:
    """One slot over a list of gymnasium environments. The goal is the seed of the episode.

    Args:
        pool: Shared by the slots of a process.
        obs_shape: Of all tasks. A smaller observation is flattened and followed by zeros.
    """

    def __init__(self, pool: EnvPool[gymnasium.Env[Any, Any]], obs_shape: tuple[int, ...]) -> None:
        self._pool, self._shape = pool, obs_shape
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
            own = np.asarray(action[: int(np.prod(space.shape))], np.float64).reshape(space.shape)
            move = (space.low + (own + 1.0) / 2.0 * (space.high - space.low)).astype(space.dtype)
        else:
            assert isinstance(space, spaces.Discrete)
            move = space.start + int(action)
        obs, reward, terminated, truncated, info = self._env.step(move)
        success = any(bool(info.get(key, False)) for key in SUCCESS_KEYS)
        return self._observation(obs), float(reward), bool(terminated), bool(truncated), success

    def _observation(self, obs: Any) -> NDArray[Any]:
        assert self._env is not None
        space = self._env.observation_space
        if space.shape == self._shape and isinstance(space, spaces.Box):
            return np.asarray(obs)
        flat = np.asarray(spaces.flatten(space, obs))
        return np.pad(flat, (0, self._shape[0] - len(flat)))

    def render(self) -> NDArray[np.uint8]:
        assert self._env is not None
        picture = self._env.render()
        if picture is None:
            raise RuntimeError("The environment cannot render: make it with render=True.")
        return np.asarray(picture)

    def close(self) -> None:
        self._release()
        self._pool.close()

    def _release(self) -> None:
        if self._env is not None and self._task is not None:
            self._pool.give(self._task, self._env)
        self._env = self._task = None


def make_slots(num_slots: int, ids: Sequence[str], obs_shape: tuple[int, ...], render: bool) -> list[GymSlot]:
    """The slots of one worker."""
    pool = EnvPool(lambda task: make_env(ids[task], render))
    return [GymSlot(pool, obs_shape) for _ in range(num_slots)]
