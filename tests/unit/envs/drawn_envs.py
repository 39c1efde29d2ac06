"""Gymnasium environments that cannot be drawn, in a module that workers can import."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Plain(gymnasium.Env[np.ndarray, np.ndarray]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Drawn(Plain):
    def __init__(self, drawn: str, render_mode: str | None = None) -> None:
        self.drawn, self.render_mode = drawn, render_mode

    def render(self) -> Any:
        if self.drawn == "error":
            raise NotImplementedError
        return {"nothing": None, "wide": np.zeros((4, 4))}[self.drawn]


gymnasium.register("Plain-v0", "tests.unit.envs.drawn_envs:Plain", max_episode_steps=9)
gymnasium.register("Drawn-v0", "tests.unit.envs.drawn_envs:Drawn", max_episode_steps=9)
