"""Backends: rows of one game that step together, with ale-py's vector environment or EnvPool."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from ale_py import ALEInterface, LoggerMode
from ale_py.roms import get_rom_path
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from mtrl.registry import missing_extra

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Lives = NDArray[np.int32]


class Played(NamedTuple):
    """The results of the actions, by row. Where an episode ended, the next one has begun."""

    obs: Frames
    reward: NDArray[np.float32]
    terminated: Mask
    truncated: Mask
    lives: Lives
    final_obs: Frames
    """Last observations of the episodes that ended; other rows have no meaning."""


@runtime_checkable
class Rows(Protocol):
    """N rows of one game. All of them are reset before the first step."""

    seeds_episodes: bool
    """Whether a seed determines the episode. If not, seeds have an effect only when all rows are reset."""
    actions: list[int]
    """ALE's numbers of the game's actions, in the order of the rows' action indices."""

    def reset(self, seeds: NDArray[np.int64], rows: Mask) -> tuple[Frames, Lives]:
        """Begins seeded episodes in the rows of the mask. Returns first observations and lives of all N rows."""
        ...

    def send(self, actions: NDArray[np.int64]) -> None:
        """Starts to take the actions, one for each row."""
        ...

    def recv(self) -> Played:
        """Waits for the results."""
        ...


class AleRows:
    """ale-py's `AtariVectorEnv`. `options` are passed to it."""

    seeds_episodes = True

    def __init__(self, game: str, num_envs: int, **options: Any) -> None:
        self._env = AtariVectorEnv(game, num_envs, autoreset_mode="SameStep", **options)
        self.actions = [action.value for action in self._env.ale.get_action_set()]
        self._env.reset()  # single rows can be reset only after all rows were

    def reset(self, seeds: NDArray[np.int64], rows: Mask) -> tuple[Frames, Lives]:
        obs, info = self._env.reset(seed=seeds, options={"reset_mask": rows})
        return obs, info["lives"]

    def send(self, actions: NDArray[np.int64]) -> None:
        self._env.send(actions)

    def recv(self) -> Played:
        obs, reward, terminated, truncated, info = self._env.recv()
        return Played(obs, reward, terminated, truncated, info["lives"], info.get("final_obs", obs))


class EnvPoolRows:
    """EnvPool's Atari, with preprocessing according to the `options` of ale-py.

    EnvPool is seeded when it is made. Therefore it is made again when all rows are reset, while single rows continue
    with their random numbers.

    Raises:
        UserError: EnvPool is not installed.
    """

    seeds_episodes = False

    def __init__(self, game: str, num_envs: int, **options: Any) -> None:
        try:
            import envpool
        except ImportError as error:
            raise missing_extra("backend=envpool", "EnvPool", "atari,envpool") from error
        ALEInterface.setLoggerMode(LoggerMode.Error)
        ale = ALEInterface()
        ale.loadROM(str(get_rom_path(game)))
        minimal = ale.getLegalActionSet() if options["full_action_space"] else ale.getMinimalActionSet()
        self.actions = [action.value for action in minimal]
        self._make = envpool.make_gymnasium
        self._settings = {
            "task_id": "".join(word.capitalize() for word in game.split("_")) + "-v5",
            "num_envs": num_envs,
            "num_threads": options["num_threads"],
            "full_action_space": options["full_action_space"],
            "repeat_action_probability": options["repeat_action_probability"],
            "noop_max": max(1, options["noop_max"]),  # it draws from 1 to this
            "max_episode_steps": options["max_num_frames_per_episode"] // options["frameskip"],
            "frame_skip": options["frameskip"],
            "stack_num": options["stack_num"],
            "img_height": options["img_height"],
            "img_width": options["img_width"],
            "use_fire_reset": options["use_fire_reset"],
        }
        self._env: Any = None

    def reset(self, seeds: NDArray[np.int64], rows: Mask) -> tuple[Frames, Lives]:
        if rows.all():
            self._env = self._make(env_seed=seeds.tolist(), **self._settings)
        return self._begin(rows)

    def send(self, actions: NDArray[np.int64]) -> None:
        self._env.send(actions.astype(np.int32))

    def recv(self) -> Played:
        obs, reward, terminated, truncated, info = self._env.recv()
        lives, final_obs, done = info["lives"], obs, terminated | truncated
        if done.any():
            final_obs = obs.copy()
            obs[done], lives[done] = (first[done] for first in self._begin(done))
        return Played(obs, reward, terminated, truncated, lives, final_obs)

    def _begin(self, rows: Mask) -> tuple[Frames, Lives]:
        """Begins the next episodes of some rows, which takes as long as a step."""
        first, info = self._env.reset(np.flatnonzero(rows))
        obs, lives = np.empty((len(rows), *first.shape[1:]), np.uint8), np.zeros(len(rows), np.int32)
        obs[rows], lives[rows] = first, info["lives"]
        return obs, lives


BACKENDS: dict[str, type[AleRows | EnvPoolRows]] = {"ale": AleRows, "envpool": EnvPoolRows}
"""Backends by the values of `env.backend`."""
