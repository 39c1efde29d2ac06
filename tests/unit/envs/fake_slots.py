"""Slots that fail on request, in a module that workers can import (without torch, so that they start soon)."""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import NDArray


class FakeSlot:
    """Observation: (task, goal, steps, sum of actions). An action that starts with more than .5 triggers `what`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.closed = False

    def reset(self, task: int, goal: int) -> NDArray[np.float64]:
        self._state = np.array([task, goal, 0.0, 0.0])
        return self._state.copy()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, bool]:
        if action[0] > 0.5:
            if self._what == "raise":
                raise ZeroDivisionError("the wheel came off")
            if self._what == "die":
                os._exit(7)
            if self._what == "hang":
                time.sleep(3600)
            if self._what == "random":
                self._state[3] += np.random.default_rng().uniform()
        self._state[2:] += 1.0, action.sum()
        return self._state.copy(), 1.0, False, False, False  # an episode without end

    def render(self) -> NDArray[np.uint8]:
        return np.full((2, 3, 3), int(self._state[1]), np.uint8)

    def close(self) -> None:
        self.closed = True


def make_slots(num_slots: int, what: str) -> list[FakeSlot]:
    if what == "no start":
        raise OSError("no such scene")
    return [FakeSlot(what) for _ in range(num_slots)]
