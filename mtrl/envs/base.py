"""Shared parts of environments: each slot's next task and goal, and checks of arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtrl.finite import check_actions
from mtrl.types import EnvSpec, State, Step, UserError


def check_num_envs(num_envs: int | None, num_tasks: int, slots_per_task: int = 1) -> int:
    """Number of slots: `num_envs`, or by default `slots_per_task` per task.

    Raises:
        UserError: It is not a positive multiple of the number of tasks.
    """
    if num_envs is None:
        return num_tasks * slots_per_task
    if num_envs <= 0 or num_envs % num_tasks:
        nearest = max(1, round(num_envs / num_tasks)) * num_tasks
        raise UserError(
            f"num_envs must be a positive multiple of the number of tasks ({num_tasks}), not {num_envs}: "
            f"use for example {nearest}."
        )
    return num_envs


def check_action(action: Tensor, spec: EnvSpec, task: Int[Tensor, " B"]) -> Tensor:
    """Converts actions to float32 (B, A) clipped to [-1, 1], or to int64 (B,), on the device of `task`.

    On an accelerator, checking their values would wait for it. This is left to the caller of the environment
    (`mtrl.finite.check_actions`), at a time that suits it; indices of actions are clamped to those that exist.

    Raises:
        ValueError: Wrong shape or dtype; on a CPU also NaN, or an action that does not exist in the slot's task.
    """
    num_envs = len(task)
    shape = (num_envs, spec.action_dim) if spec.action_kind == "continuous" else (num_envs,)
    if tuple(action.shape) != shape:
        raise ValueError(f"Actions must have the shape {shape}, not {tuple(action.shape)}.")
    if spec.action_kind == "continuous":
        if not action.is_floating_point():
            raise ValueError(f"Continuous actions must be floating point, not {action.dtype}.")
        taken = action.detach().to(task.device).float()
        if task.device.type == "cpu":
            check_actions(taken, spec, task)
        return taken.clamp(-1.0, 1.0)
    if action.is_floating_point() or action.is_complex() or action.dtype == torch.bool:
        raise ValueError(f"Discrete actions must be integers, not {action.dtype}.")
    taken = action.detach().to(task.device).long()
    if task.device.type == "cpu":
        check_actions(taken, spec, task)
    return taken.clamp(0, spec.action_dim - 1)


def check_truncate(truncate: Tensor | None, num_envs: int) -> Bool[Tensor, " B"]:
    """The slots to truncate; none by default. Raises `ValueError` for a wrong shape or dtype."""
    if truncate is None:
        return torch.zeros(num_envs, dtype=torch.bool)
    if truncate.dtype != torch.bool or tuple(truncate.shape) != (num_envs,):
        raise ValueError(f"truncate must be bool of shape {(num_envs,)}, not {truncate.dtype} {tuple(truncate.shape)}.")
    return truncate


class Assignments:
    """The task and goal that each slot runs from its next episode on.

    A goal that is not assigned is drawn uniformly for each episode. Goals are drawn when an episode ends, for the slots
    that ended, in slot order: they depend neither on how slots are distributed over workers, nor on calls of `assign`.
    """

    def __init__(self, num_envs: int, num_tasks: int, num_goals: int, seed: int, device: torch.device) -> None:
        self.num_tasks, self.num_goals, self.device = num_tasks, num_goals, device
        self.task = torch.arange(num_tasks, device=device).repeat_interleave(num_envs // num_tasks)
        self.assigned = torch.full((num_envs,), -1, device=device)
        """Goal that is assigned to each slot, or -1."""
        self._drawn = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.generator = torch.Generator(device)
        self.reseed(seed)

    @property
    def goal(self) -> Int[Tensor, " B"]:
        """Goal of each slot's next episode."""
        return torch.where(self.assigned >= 0, self.assigned, self._drawn)

    def reseed(self, seed: int) -> None:
        """Restarts the random numbers with a seed."""
        self.generator.manual_seed(seed)
        self.advance(torch.ones_like(self._drawn, dtype=torch.bool))

    def advance(self, done: Bool[Tensor, " B"]) -> None:
        """Draws the next episode's goal for the slots whose episode has just begun."""
        size = (len(self._drawn),) if self.device.type != "cpu" else (int(done.sum()),)
        drawn = torch.randint(self.num_goals, size, generator=self.generator, device=self.device)
        # On an accelerator all slots draw, because counting those that are done would wait for it.
        self._drawn = self._drawn.masked_scatter(done, drawn) if len(drawn) else self._drawn

    def assign(self, task: Int[Tensor, " B"], goal: Int[Tensor, " B"] | None) -> None:
        """See `VecEnv.assign`. Raises `ValueError` for a wrong shape or a task or goal that does not exist."""
        task = self._checked("task", task, 0, self.num_tasks)
        goal = torch.full_like(task, -1) if goal is None else self._checked("goal", goal, -1, self.num_goals)
        self.task, self.assigned = task, goal

    def _checked(self, what: str, value: Tensor, low: int, high: int) -> Tensor:
        if tuple(value.shape) != tuple(self._drawn.shape) or value.is_floating_point():
            raise ValueError(
                f"{what} must be integers of shape {tuple(self._drawn.shape)}, not {value.dtype} {tuple(value.shape)}."
            )
        if ((value < low) | (value >= high)).any():
            raise ValueError(f"{what} must be from {low} to {high - 1}, found {value.min()} to {value.max()}.")
        return value.detach().to(self.device, torch.int64, copy=True)

    def state_dict(self) -> State:
        return {
            "task": self.task.clone(),
            "assigned": self.assigned.clone(),
            "drawn": self._drawn.clone(),
            "rng": self.generator.get_state(),
        }

    def check_running(self, state: State) -> None:
        """Raises `ValueError` if a state has another number of slots, or tasks or goals that do not exist."""
        if len(state["task"]) != len(self._drawn):
            raise ValueError(f"The saved state has {len(state['task'])} slots, this environment {len(self._drawn)}.")
        self._checked("task", state["task"], 0, self.num_tasks)
        self._checked("goal", state["goal"], -1, self.num_goals)

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` for tasks or goals that do not exist."""
        self.assign(state["task"], state["assigned"])
        self._drawn = self._checked("drawn", state["drawn"], 0, self.num_goals)
        self.generator.set_state(state["rng"].cpu())


class TorchVecEnv(ABC):
    """A `VecEnv` in batched torch operations, on any device. Subclasses define `begin`, `advance` and `observe`.

    Everything that changes is a tensor with one row per slot in `self.variables`, which is the state that is saved.
    `self.variables["step"]` (B,) int64 counts the steps of the running episode, and is maintained by this class.

    Args:
        spec: Spec of the environment.
        num_envs: B; None for `slots_per_task` per task.
        num_goals: Goals are drawn from 0 to this, exclusive.
        seed: Seed of the goals drawn.
        device: Device of all tensors.

    Raises:
        UserError: `num_envs` is not a multiple of the number of tasks.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int | None,
        num_goals: int,
        seed: int,
        device: torch.device | str,
        slots_per_task: int = 1,
    ) -> None:
        self.spec = spec
        self.num_envs = check_num_envs(num_envs, spec.num_tasks, slots_per_task)
        self.num_goals = num_goals
        self.device = torch.device(device)
        self._assignments = Assignments(self.num_envs, spec.num_tasks, num_goals, seed, self.device)
        self.task, self.goal = self._assignments.task.clone(), self._assignments.goal
        self.variables: dict[str, Tensor] = {"step": torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)}
        self._running = False

    @abstractmethod
    def begin(self) -> dict[str, Tensor]:
        """Initial variables of an episode of `self.task` and `self.goal` in every slot; used where one begins."""

    @abstractmethod
    def advance(
        self, action: Tensor
    ) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"], Bool[Tensor, " B"]]:
        """Advances the variables by one step (already counted); returns reward, terminated, truncated, success."""

    @abstractmethod
    def observe(self) -> Tensor:
        """Observation (B, *obs) of the current variables."""

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is not None:
            self._assignments.reseed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._running = True
        return self.observe()

    def _begin(self, done: Bool[Tensor, " B"]) -> None:
        self.task = torch.where(done, self._assignments.task, self.task)
        self.goal = torch.where(done, self._assignments.goal, self.goal)
        self._assignments.advance(done)
        for name, fresh in ({"step": torch.zeros_like(self.variables["step"])} | self.begin()).items():
            rows = done.reshape(-1, *[1] * (fresh.ndim - 1))
            self.variables[name] = torch.where(rows, fresh, self.variables[name])

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        if not self._running:
            raise RuntimeError("Call reset before the first step, and do not step a closed environment.")
        action = check_action(action, self.spec, self.task)
        self.variables["step"] = self.variables["step"] + 1
        reward, terminated, truncated, success = self.advance(action)
        truncated = truncated | (check_truncate(truncate, self.num_envs).to(self.device) & ~terminated)
        task, final_obs, done = self.task, self.observe(), terminated | truncated
        self._begin(done)
        return Step(self.observe(), reward, terminated, truncated, success, task, final_obs)

    def assign(self, task: Int[Tensor, " B"], goal: Int[Tensor, " B"] | None = None) -> None:
        self._assignments.assign(task, goal)

    def state_dict(self) -> State:
        return {
            "task": self.task.clone(),
            "goal": self.goal.clone(),
            "running": self._running,
            "variables": {name: value.clone() for name, value in self.variables.items()},
            "assignments": self._assignments.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if the state has another number of slots."""
        self._assignments.check_running(state)
        self.task, self.goal = (state[name].to(self.device, copy=True) for name in ("task", "goal"))
        self.variables = {name: value.to(self.device, copy=True) for name, value in state["variables"].items()}
        self._running = state["running"]
        self._assignments.load_state_dict(state["assignments"])

    def close(self) -> None:
        self._running = False
