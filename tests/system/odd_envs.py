"""Gymnasium environments that misbehave, some as files in the working folder say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class Plain(gymnasium.Env[np.ndarray, np.ndarray]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Unmended(Plain):
    """Fails in evaluations (whose episodes have the seeds 0, 1, ...) unless there is a file `mended`."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        # The first 0 is that of the trial in which the suite looks at the environment.
        if seed == 1 and not Path("mended").exists():
            raise ZeroDivisionError("the wheel came off")
        return super().reset()


class Hanging(Plain):
    """Does not come back from `step` while there is a file `hang`, and says so with a file `hanging`."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        while Path("hang").exists():
            Path("hanging").touch()
            time.sleep(0.1)
        return super().step(action)


class Talkative(Plain):
    """Prints more than a buffer holds, every step."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        print("step " * 4000, flush=True)
        return super().step(action)


for env in (Unmended, Hanging, Talkative):
    gymnasium.register(f"{env.__name__}-v0", f"{env.__module__}:{env.__name__}", max_episode_steps=20)
gymnasium.register("Endless-v0", f"{__name__}:Plain")
