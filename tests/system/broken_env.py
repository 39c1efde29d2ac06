"""A gymnasium environment that fails after some steps; its id is `tests.system.broken_env:Broken-v0`."""

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


gymnasium.register("Broken-v0", "tests.system.broken_env:Broken", max_episode_steps=100)
