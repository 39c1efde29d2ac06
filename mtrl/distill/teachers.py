"""Teachers, which label observations with how a student should act."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mtrl.distill.losses import Kind, kind_of, label_of, label_size, teacher_action, teacher_distribution
from mtrl.policy import load_policy
from mtrl.registry import register, unknown
from mtrl.types import EnvSpec, UserError


@runtime_checkable
class Teacher(Protocol):
    """Labels observations. Registered under the kind "teacher"; a constructor may name `spec` and `device`."""

    kind: Kind
    """Meaning of the labels: see `mtrl.distill.losses`."""
    description: str
    """How messages refer to the teacher."""

    def label(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
        """Labels of raw observations, without gradient, on their device. `task` holds the student's task ids.

        Raises:
            UserError: The observations lack information that the teacher needs.
        """
        ...


@register("teacher", "policy")
class PolicyTeacher:
    """A saved policy of this package, with its own normalisation, which is frozen.

    Tasks are matched by name. Labels are distributions, so they contain the policy's exploration noise, but not samples
    of it.

    Args:
        path: Run folder, checkpoint, policy folder or name of a shipped policy.

    Raises:
        UserError: The policy cannot be loaded, does not know every task, has other observations or actions, or has
            memory.
    """

    def __init__(self, path: str, spec: EnvSpec, device: str) -> None:
        self.description = f"the policy in {path}"
        with torch.random.fork_rng(devices=[]):  # a run with a teacher starts like one without
            loaded = load_policy(path, device)
        if missing := [name for name in spec.task_names if name not in loaded.tasks]:
            raise UserError(
                f"The teacher in {path} was not trained in {', '.join(missing)}. Its tasks: {', '.join(loaded.tasks)}."
            )
        if loaded.network.core.state_size:
            raise UserError(f"The teacher in {path} has a memory (core), which teachers cannot have yet.")
        try:
            loaded.for_env(spec)
        except UserError as error:
            raise UserError(f"The teacher in {path} cannot teach here. {error}") from error
        self._network = loaded.network
        self._ids = torch.tensor([loaded.tasks.index(name) for name in spec.task_names], device=device)
        self.kind: Kind = kind_of(self._network.distribution_class)

    @torch.no_grad()
    def label(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
        return label_of(self._network(obs, self._ids[task]))


@register("teacher", "specialists")
class Specialists:
    """A saved policy for each task.

    Args:
        paths: Path of every task's policy, by task name, as for `policy`. Tasks may share a policy.

    Raises:
        UserError: A task has no path, a name is not a task, a policy cannot teach its task, or kinds differ.
    """

    def __init__(self, paths: dict[str, str], spec: EnvSpec, device: str) -> None:
        for name in paths:
            if name not in spec.task_names:
                raise UserError(unknown("task of the teacher's paths:", name, spec.task_names))
        if missing := [name for name in spec.task_names if name not in paths]:
            raise UserError(
                f"The teacher 'specialists' needs a path for every task. There is none for: {', '.join(missing)}."
            )
        self.description = f"{len(set(paths.values()))} specialists"
        self._teachers: list[tuple[Int[Tensor, " n"], PolicyTeacher]] = []
        """Each with the student's ids of the tasks that it teaches."""
        for path in dict.fromkeys(paths[name] for name in spec.task_names):
            ids = [task for task, name in enumerate(spec.task_names) if paths[name] == path]
            self._teachers.append((torch.tensor(ids, device=device), PolicyTeacher(path, _only(spec, ids), device)))
        kinds = {teacher.kind: teacher.description for _, teacher in self._teachers}
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} of {description}" for kind, description in kinds.items())
            raise UserError(f"Specialists must have one kind of distribution, found {listed}.")
        self.kind: Kind = next(iter(kinds))
        self._size = label_size(self.kind, spec)

    @torch.no_grad()
    def label(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
        labels = torch.zeros(len(task), self._size, device=obs.device)
        for ids, teacher in self._teachers:
            place = (task[:, None] == ids).long()  # (N, n)
            (rows,) = place.any(1).nonzero(as_tuple=True)
            if len(rows):
                labels[rows] = teacher.label(obs[rows], place[rows].argmax(1)).to(labels.dtype)
        return labels


def _only(spec: EnvSpec, tasks: list[int]) -> EnvSpec:
    """The spec restricted to some of an environment's tasks."""
    per_task = ("task_names", "action_mask", "reports_success", "task_descriptions")
    columns: dict[str, Any] = {name: getattr(spec, name) for name in per_task}
    chosen: dict[str, Any] = {
        name: tuple(column[task] for task in tasks) for name, column in columns.items() if column is not None
    }
    return dataclasses.replace(spec, **chosen)


class FunctionTeacher:
    """A Python function or module as a teacher.

    Args:
        function: Returns labels (N, L) for observations (N, *obs) and tasks (N,). A module is put into evaluation mode,
            so that its labels are not noisy.
        kind: Meaning of the labels.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], kind: Kind) -> None:
        self.kind: Kind = kind
        self.description = getattr(function, "__name__", type(function).__name__)
        self._function = function.eval() if isinstance(function, nn.Module) else function

    @torch.no_grad()
    def label(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
        labels = self._function(obs, task)
        if labels.ndim != 2 or len(labels) != len(task):
            raise UserError(
                f"The teacher {self.description} must give labels ({len(task)}, L), not {tuple(labels.shape)}."
            )
        return labels.to(obs.device)


class TeacherActor:
    """A teacher as an `Actor`, for evaluation or to act in place of a student.

    To explore, it samples from its distribution. A teacher without one is always deterministic, with log-probability 0.

    Args:
        spec: Spec of the environment in which it acts.
        device: Device of the observations.
    """

    def __init__(self, teacher: Teacher, spec: EnvSpec, device: str = "cpu") -> None:
        self.teacher = teacher
        self._mask = torch.tensor(spec.action_mask, device=device)

    def initial_state(self, num: int) -> Tensor:
        """No memory: (num, 0)."""
        return torch.zeros(num, 0, device=self._mask.device)

    @torch.no_grad()
    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`."""
        kind, label = self.teacher.kind, self.teacher.label(obs, task)
        mask = self._mask[task]
        if kind == "action":
            return teacher_action(kind, label, mask), torch.zeros(len(task), device=task.device), state
        distribution = teacher_distribution(kind, label, mask)
        if explore:
            return *distribution.sample(), state
        action = distribution.mode()
        return action, distribution.log_prob(action), state
