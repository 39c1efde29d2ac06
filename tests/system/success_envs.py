"""Gymnasium environments that differ in when they report success; `tests.system.success_envs:AtEnd-v0` is an id."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

LENGTH = 12


class Silent(gymnasium.Env[np.ndarray, np.ndarray]):
    """Reports no success. Episodes of 12 steps, with a reward of 1 each."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        self.odd = bool(seed and seed % 2)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.array([self.steps / LENGTH, 0], np.float32), 1.0, self.steps == LENGTH, False, self.info()

    def info(self) -> dict[str, Any]:
        return {}


class Always(Silent):
    """Reports with every step that it succeeded."""

    def info(self) -> dict[str, Any]:
        return {"success": 1.0}


class AtEnd(Silent):
    """Reports with the last step of an episode only, as Stable-Baselines3 documents `is_success`: that it succeeded."""

    def info(self) -> dict[str, Any]:
        return {"is_success": True} if self.steps == LENGTH else {}


class OnSuccess(Silent):
    """Mentions success only when there is some: at the end of episodes with an odd seed."""

    def info(self) -> dict[str, Any]:
        return {"is_success": True} if self.steps == LENGTH and self.odd else {}


for _env in (Silent, Always, AtEnd, OnSuccess):
    gymnasium.register(f"{_env.__name__}-v0", f"{__name__}:{_env.__name__}")
