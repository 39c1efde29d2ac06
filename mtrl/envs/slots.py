"""`SlotVecEnv`: a `VecEnv` of single-slot numpy environments in a few worker processes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.envs.base import Assignments, check_action, check_num_envs, check_truncate
from mtrl.envs.worker import MakeSlots, SlotError, SlotGroup
from mtrl.system.cores import available_cores
from mtrl.system.process import ServingProcess, close_all
from mtrl.types import EnvSpec, State, Step

__all__ = ["SlotError", "SlotVecEnv"]


class _Local:
    """Slots in this process, with the interface of a worker."""

    def __init__(self, *group: Any) -> None:
        self._group = SlotGroup(*group)

    def send(self, method: str, *args: Any) -> None:
        self._call = method, args

    def receive(self) -> Any:
        method, args = self._call
        return self._group.call(method, *args)

    def close(self) -> None:
        self._group.close()


class _Worker:
    """Slots in another process."""

    def __init__(self, name: str, *group: Any) -> None:
        self._name = name
        self._process = ServingProcess("mtrl.envs.worker")
        self.send("start", *group)

    def send(self, method: str, *args: Any) -> None:
        try:
            self._process.connection.send((method, args))
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Any:
        try:
            done, result = self._process.next_message()
        except TimeoutError as error:
            seconds = self._process.patience
            raise SlotError(f"{self._name} did not answer within {seconds:.0f} seconds of the stop.") from error
        except (EOFError, OSError) as error:
            raise self._death() from error
        if not done:
            raise SlotError(f"{self._name}: {result}")
        return result

    def _death(self) -> SlotError:
        return SlotError(f"{self._name} {self._process.how_it_ended()}.")


def _close_local(groups: list[_Local]) -> None:
    while groups:
        groups.pop().close()


def _close_workers(workers: list[_Worker]) -> None:
    close_all(worker._process for worker in workers)
    workers.clear()


class SlotVecEnv:
    """A `VecEnv` over `Slot`s. Trajectories do not depend on the number of workers.

    `state_dict` holds the task, the goal and the actions so far of each episode, and `load_state_dict` repeats these
    actions. That is exact for every deterministic environment, and needs no access to its internals.

    Args:
        make_slots: Makes the slots of one worker, inside the worker.
        spec: Spec of the environment.
        num_envs: B; None for `slots_per_task` for each task.
        num_goals: Goals are drawn from 0 to this, exclusive.
        seed: Seed of the drawing of goals.
        device: Device of the tensors in a step.
        num_workers: Processes; None for one per core, 0 to step in this process.

    Raises:
        UserError: `num_envs` is not a multiple of the number of tasks.
        SlotError: A slot could not be made.
    """

    def __init__(
        self,
        make_slots: MakeSlots,
        spec: EnvSpec,
        num_envs: int | None,
        num_goals: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        num_workers: int | None = None,
        slots_per_task: int = 1,
    ) -> None:
        self.spec = spec
        self.num_envs = check_num_envs(num_envs, spec.num_tasks, slots_per_task)
        self.num_goals = num_goals
        self._device = torch.device(device)
        self._assignments = Assignments(self.num_envs, spec.num_tasks, num_goals, seed, torch.device("cpu"))
        if num_workers is None:
            num_workers = available_cores()
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, but is {num_workers}.")
        num_workers = min(num_workers, self.num_envs)
        # Slots of one task are adjacent; assigning them in turn gives each worker its share of the slow tasks.
        self._indices = [np.arange(i, self.num_envs, max(1, num_workers)) for i in range(max(1, num_workers))]
        dtype = str(spec.obs_dtype).removeprefix("torch.")
        self._workers: list[Any] = []
        self._finalizer = weakref.finalize(self, _close_workers if num_workers else _close_local, self._workers)
        self._finalizer.atexit = num_workers > 0  # without workers, nothing outlives this process
        try:
            for i, indices in enumerate(self._indices):
                group = (make_slots, indices.tolist(), spec.obs_shape, dtype)
                name = f"Environment worker {i} (slots {indices[0]} to {indices[-1]} by {len(self._indices)})"
                self._workers.append(_Worker(name, *group) if num_workers else _Local(*group))
            if num_workers:
                for worker in self._workers:
                    worker.receive()
        except BaseException:
            self.close()
            raise

        action = (spec.action_dim,) if spec.action_kind == "continuous" else ()
        action_dtype = np.float32 if spec.action_kind == "continuous" else np.int64
        self._actions = np.zeros((self.num_envs, spec.horizon or 256, *action), action_dtype)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._obs: NDArray[Any] | None = None
        self._task, self._goal = self._assignments.task, self._assignments.goal
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is not None:
            self._assignments.reseed(seed)
        self._task, self._goal = self._assignments.task.clone(), self._assignments.goal
        self._assignments.advance(torch.ones(self.num_envs, dtype=torch.bool))
        (self._obs,) = self._exchange("reset", self._task.numpy(), self._goal.numpy())
        self._lengths[:] = 0
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        return self._tensor(self._obs)

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        if self._obs is None:
            raise RuntimeError("Call reset before the first step.")
        moves = check_action(action, self.spec, self.task).numpy()
        next_task, next_goal = self._assignments.task, self._assignments.goal
        obs, reward, terminated, truncated, success, final_obs = self._exchange(
            "step", moves, check_truncate(truncate, self.num_envs).cpu().numpy(), next_task.numpy(), next_goal.numpy()
        )
        self._record(moves)
        self._obs = obs
        task, done = self.task, terminated | truncated
        if done.any():
            self._lengths[done] = 0
            mask = torch.from_numpy(done)
            self._task, self._goal = torch.where(mask, next_task, self._task), torch.where(mask, next_goal, self._goal)
            self._assignments.advance(mask)
            self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        return Step(
            obs=self._tensor(obs),
            reward=self._tensor(reward),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            success=self._tensor(success),
            task=task,
            final_obs=self._tensor(final_obs),
        )

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        self._assignments.assign(task, goal)

    def render(self, slot: int = 0) -> NDArray[np.uint8]:
        """RGB image (height, width, 3) of one slot, if the environment was made with `render=True`."""
        self._check_open()
        worker = self._workers[slot % len(self._indices)]
        worker.send("render", slot // len(self._indices))
        return worker.receive()

    def state_dict(self) -> State:
        longest = int(self._lengths.max())
        return {
            "task": self._task.clone(),
            "goal": self._goal.clone(),
            "actions": torch.from_numpy(self._actions[:, :longest].copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "obs": torch.empty(0) if self._obs is None else torch.from_numpy(self._obs.copy()),
            "assignments": self._assignments.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores the running episodes by repeating their actions, in all workers at once.

        Raises:
            ValueError: The state has a different number of slots.
        """
        self._assignments.check_running(state)
        self._assignments.load_state_dict(state["assignments"])
        self._task, self._goal = state["task"].cpu().clone(), state["goal"].cpu().clone()
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        saved, self._lengths = state["actions"].cpu().numpy(), state["lengths"].cpu().numpy().copy()
        if not 0 <= self._lengths.min() <= self._lengths.max() == saved.shape[1]:
            raise ValueError(f"actions: expected those of {self._lengths.max()} steps, found {saved.shape[1]}")
        self._grow(saved.shape[1])
        self._actions[:, : saved.shape[1]] = saved
        if not len(state["obs"]):  # saved before the first reset
            self._obs = None
            return
        (self._obs,) = self._exchange("replay", self._task.numpy(), self._goal.numpy(), saved, self._lengths)
        if not np.array_equal(self._obs, state["obs"].cpu().numpy(), equal_nan=self._obs.dtype.kind == "f"):
            warnings.warn(
                "Repeating the saved actions led to other observations than when they were saved: the environment is "
                "not deterministic, or its version or the machine differs. The run continues, but not exactly.",
                stacklevel=2,
            )

    def close(self) -> None:
        self._finalizer()

    def _check_open(self) -> None:
        if not self._workers:
            raise RuntimeError("The environment is closed.")

    def _exchange(self, method: str, *args: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """Calls a method in all workers with their rows of the arguments, and joins their results by slot."""
        self._check_open()
        try:
            for worker, indices in zip(self._workers, self._indices, strict=True):
                worker.send(method, *(argument[indices] for argument in args))
            parts = [worker.receive() for worker in self._workers]
        except BaseException:  # also an interrupt: replies left in the pipes would be taken for those of the next call
            self.close()
            raise
        parts = [part if isinstance(part, tuple) else (part,) for part in parts]
        results = []
        for rows in zip(*parts, strict=True):
            joined = np.empty((self.num_envs, *rows[0].shape[1:]), rows[0].dtype)
            for indices, row in zip(self._indices, rows, strict=True):
                joined[indices] = row
            results.append(joined)
        return results

    def _record(self, moves: NDArray[Any]) -> None:
        self._grow(int(self._lengths.max()) + 1)
        self._actions[np.arange(self.num_envs), self._lengths] = moves
        self._lengths += 1

    def _grow(self, length: int) -> None:
        """Makes room for `length` actions per episode, which has no upper bound without a horizon."""
        room = self._actions.shape[1]
        if length > room:
            wider = np.zeros((self.num_envs, max(length, 2 * room), *self._actions.shape[2:]), self._actions.dtype)
            wider[:, :room] = self._actions
            self._actions = wider

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
