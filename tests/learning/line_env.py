"""A point on a line, as gymnasium environments named `tests.learning.line_env:<name>-v0`, that differ in the reward.

`Still` and `Noise` have none; in `Noise` observations are random. `Far` has one at the end of the line, `Near` tells
the distance to a target, `Late` tells it after 2,500 steps only. `Milli` and `Kilo` are times 2^-10 and 2^10. Each has
4 actions, and with `Continuous` before its name 2 components, the first of which moves the point.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Line(gymnasium.Env[np.ndarray, Any]):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, reward: str, scale: float, continuous: bool) -> None:
        self.reward, self.scale, self.continuous, self.steps = reward, scale, continuous, 0
        box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = box if continuous else gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = float(action[0]) if self.continuous else (-1.0, 1.0, 0.0, 0.0)[action]
        self.x = float(np.clip(self.x + 0.1 * move, -1, 1))
        self.steps += 1
        arrived, distance = self.reward == "far" and self.x > 0.99, abs(self.x - 0.5)
        if self.reward == "far":
            reward = float(arrived)
        elif self.reward == "near" or (self.reward == "late" and self.steps > 2500):
            reward = -distance
        else:
            reward = 0.0
        # It stays where it should be at the end of the episode, so that passing by is no success.
        at_end = self.reward != "far" and self.steps % 50 == 0 and distance < 0.1
        return self._observation(), self.scale * reward, arrived, False, {"success": arrived or at_end}

    def _observation(self) -> np.ndarray:
        if self.reward == "noise":
            return self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return np.array([self.x, self.x**2, 1.0], np.float32)


for prefix, continuous in (("", False), ("Continuous", True)):
    for name, reward, scale in (
        ("Still", "none", 1.0),
        ("Noise", "noise", 1.0),
        ("Far", "far", 1.0),
        ("FarMilli", "far", 2.0**-10),
        ("Near", "near", 1.0),
        ("NearMilli", "near", 2.0**-10),
        ("NearKilo", "near", 2.0**10),
        ("Late", "late", 1.0),
    ):
        options = {"reward": reward, "scale": scale, "continuous": continuous}
        gymnasium.register(f"{prefix}{name}-v0", "tests.learning.line_env:Line", max_episode_steps=50, kwargs=options)
