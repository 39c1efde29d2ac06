"""Gymnasium environments that fail after some steps; the id of one is `tests.system.broken_env:Broken-v0`."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import gymnasium
import numpy as np


class Sound(gymnasium.Env[np.ndarray, np.ndarray]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 15:
            self.fail()
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def fail(self) -> None:
        """Nothing happens."""


class Broken(Sound):
    def fail(self) -> None:
        raise ZeroDivisionError("the wheel came off")


class Killed(Sound):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Full(Sound):
    """From then on, no file of its process can grow."""

    def fail(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


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


for name in ("Sound", "Broken", "Killed", "Full"):
    gymnasium.register(f"{name}-v0", f"tests.system.broken_env:{name}", max_episode_steps=100)
gymnasium.register("NotFinite-v0", "tests.system.broken_env:NotFinite", max_episode_steps=100)
