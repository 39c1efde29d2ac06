"""Gymnasium environments that fail after some steps; the id of one is `tests.system.broken_env:Broken-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Broken(gymnasium.Env[np.ndarray, np.ndarray]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 15:
            raise ZeroDivisionError("the wheel came off")
        return np.zeros(2, np.float32), 0.0, False, False, {}


class NotFinite(gymnasium.Env[np.ndarray, np.ndarray]):
    """An observation or a reward of the 17th step of an episode is not finite."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, what: str) -> None:
        self.what = what

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs, reward = np.zeros(2, np.float32), 0.0
        if self.steps == 17 and self.what == "observation":
            obs[1] = np.nan
        if self.steps == 17 and self.what == "reward":
            reward = np.inf
        return obs, reward, False, False, {}


gymnasium.register("Broken-v0", "tests.system.broken_env:Broken", max_episode_steps=100)
gymnasium.register("NotFinite-v0", "tests.system.broken_env:NotFinite", max_episode_steps=100)
