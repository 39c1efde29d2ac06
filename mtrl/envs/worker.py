"""Single-slot numpy environments, and the process that steps many. No torch here, so that workers start fast."""

from __future__ import annotations

import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mtrl.system.process import EnvironmentFailedError


@runtime_checkable
class Slot(Protocol):
    """One environment for any of the tasks. Episodes depend only on (task, goal) and the actions."""

    def reset(self, task: int, goal: int) -> NDArray[Any]:
        """Begins an episode of a task; returns the first observation."""
        ...

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, bool]:
        """Takes float32 (A,) in [-1, 1], or an int; returns observation, reward, terminated, truncated, success."""
        ...

    def render(self) -> NDArray[np.uint8]:
        """RGB image (height, width, 3)."""
        ...

    def close(self) -> None: ...


E = TypeVar("E")


class EnvPool(Generic[E]):
    """Keeps the unused environments of one process by task, so that slots that change their task can reuse them.

    Args:
        make: Makes an environment for a task. It must have `close`.
    """

    def __init__(self, make: Callable[[int], E]) -> None:
        self._make = make
        self._free: dict[int, list[E]] = defaultdict(list)

    def take(self, task: int) -> E:
        return self._free[task].pop() if self._free[task] else self._make(task)

    def give(self, task: int, env: E) -> None:
        self._free[task].append(env)

    def close(self) -> None:
        for envs in self._free.values():
            for env in envs:
                env.close()  # type: ignore[attr-defined]
        self._free.clear()


MakeSlots = Callable[[int], Sequence[Slot]]
"""Makes n slots of one process. Must be picklable (a function of a module, or a partial of one)."""


class SlotError(EnvironmentFailedError):
    """An environment or its worker process failed."""


class SlotGroup:
    """The slots of one process, stepped one after the other. Arrays have one row per slot of the group."""

    def __init__(self, make_slots: MakeSlots, indices: Sequence[int], obs_shape: tuple[int, ...], dtype: str) -> None:
        self._indices = tuple(indices)
        self._slots = make_slots(len(indices))
        self._running = [(-1, -1)] * len(indices)  # (task, goal), for messages
        self._current = 0  # the slot that is being stepped, for messages
        self._shape, self._dtype = (len(indices), *obs_shape), np.dtype(dtype)

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method by name; failures become a `SlotError` that names the slot, its task and its goal."""
        try:
            return getattr(self, method)(*args)
        except Exception as error:
            task, goal = self._running[self._current]
            where = f"slot {self._indices[self._current]} (task {task}, goal {goal})"
            raise SlotError(f"{method} failed in {where}: {error}\n{traceback.format_exc()}") from error

    def reset(self, task: NDArray[np.int64], goal: NDArray[np.int64]) -> NDArray[Any]:
        obs = np.empty(self._shape, self._dtype)
        for i in range(len(self._slots)):
            obs[i] = self._reset_slot(i, task[i], goal[i])
        return obs

    def _reset_slot(self, i: int, task: np.int64, goal: np.int64) -> NDArray[Any]:
        self._current, self._running[i] = i, (int(task), int(goal))
        return self._slots[i].reset(int(task), int(goal))

    def step(
        self,
        action: NDArray[Any],
        truncate: NDArray[np.bool_],
        next_task: NDArray[np.int64],
        next_goal: NDArray[np.int64],
    ) -> tuple[NDArray[Any], ...]:
        """Steps every slot, truncates those in `truncate`, and resets those that are done to their next task and goal.

        Returns:
            obs, reward, terminated, truncated, success, final_obs.
        """
        n = len(self._slots)
        final_obs = np.empty(self._shape, self._dtype)
        reward = np.empty(n, np.float32)
        terminated, truncated, success = np.empty(n, bool), np.empty(n, bool), np.empty(n, bool)
        for i, slot in enumerate(self._slots):
            self._current = i
            final_obs[i], reward[i], terminated[i], truncated[i], success[i] = slot.step(action[i])
        truncated |= truncate & ~terminated
        obs = final_obs.copy()
        for i in np.flatnonzero(terminated | truncated).tolist():
            obs[i] = self._reset_slot(i, next_task[i], next_goal[i])
        return obs, reward, terminated, truncated, success, final_obs

    def replay(
        self, task: NDArray[np.int64], goal: NDArray[np.int64], action: NDArray[Any], length: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Resets each slot and repeats the first `length` of its actions (n, longest, ...).

        Returns the observations after these actions.
        """
        obs = self.reset(task, goal)
        for i, slot in enumerate(self._slots):
            self._current = i
            for t in range(length[i]):
                obs[i] = slot.step(action[i, t])[0]
        return obs

    def render(self, i: int) -> NDArray[np.uint8]:
        self._current = i
        return self._slots[i].render()

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        self._slots = ()


def main(fd: int) -> None:
    """Serves the parent through a pipe until it closes, which also happens when the parent is killed."""
    connection = Connection(fd)
    try:
        group: SlotGroup | None = None
        while True:
            method, args = connection.recv()
            try:
                if group is None:
                    group, result = SlotGroup(*args), None
                else:
                    result = group.call(method, *args)
                connection.send((True, result))
            except SlotError as error:
                connection.send((False, str(error)))
            except Exception as error:
                connection.send((False, f"{method} failed: {error}\n{traceback.format_exc()}"))
    except (EOFError, OSError):
        sys.exit(0)
