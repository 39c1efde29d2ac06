"""Teachers, which label observations with how a student should act."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mtrl.distill.losses import Kind, kind_of, label_of, label_size, teacher_action, teacher_distribution
from mtrl.nn.distributions import Distribution
from mtrl.policy import load_policy
from mtrl.registry import build, register, unknown
from mtrl.types import EnvSpec, UserError


@runtime_checkable
class Teacher(Protocol):
    """Labels observations. Registered under the kind "teacher"; a constructor may name `spec` and `device`.

    Subclasses inherit the attributes that have a value and the methods that have a body.
    """

    kind: Kind
    """Meaning of the labels: see `mtrl.distill.losses`."""
    description: str
    """How messages refer to the teacher."""
    state_size: int = 0
    """S, the size of its recurrent state; 0 for a teacher without memory."""
    feature_widths: Sequence[int] = ()
    """Widths of the features of the networks that it consists of; none for a teacher without features."""

    def label(
        self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N S"]]:
        """Labels of raw observations, without gradient, on their device; and the states for the next observations.

        Args:
            task: The student's task ids.
            state: Recurrent states. At the beginning of an episode they are zero: so the caller sets them where one
                ends, as for `Actor.act`.

        Raises:
            UserError: The observations lack information that the teacher needs.
        """
        ...

    def features(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N G"]:
        """What its heads read, the last hidden layer, as if an episode began with each observation, without gradient.

        Only for teachers with `feature_widths`, all of which are G.
        """
        raise NotImplementedError


@register("teacher", "policy")
class PolicyTeacher(Teacher):
    """A saved policy of this package, with its own normalisation, which is frozen.

    Tasks are matched by name. Labels are distributions, so they contain the policy's exploration noise, but not samples
    of it.

    Use it where one policy knows all of the tasks.

    Args:
        path: Run folder, checkpoint, policy folder or name of a shipped policy.

    Raises:
        UserError: The policy cannot be loaded, does not know every task, or has other observations or actions.
    """

    def __init__(self, path: str, spec: EnvSpec, device: str) -> None:
        self.description = f"the policy in {path}"
        with torch.random.fork_rng(devices=[]):  # a run with a teacher starts like one without
            loaded = load_policy(path, device)
        if missing := [name for name in spec.task_names if name not in loaded.tasks]:
            raise UserError(
                f"The teacher in {path} was not trained in {', '.join(missing)}. Its tasks: {', '.join(loaded.tasks)}."
            )
        try:
            loaded.for_env(spec)
        except UserError as error:
            raise UserError(f"The teacher in {path} cannot teach here. {error}") from error
        self._network = loaded.network
        self._ids = torch.tensor([loaded.tasks.index(name) for name in spec.task_names], device=device)
        self.kind: Kind = kind_of(self._network.distribution_class)
        self.state_size = self._network.core.state_size
        self.feature_widths = (self._network.trunk.out_features,)

    @torch.no_grad()
    def label(
        self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N S"]]:
        distribution, _, states = self._ask(obs, task, state)
        return label_of(distribution), states

    @torch.no_grad()
    def features(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N G"]:
        _, hidden, _ = self._ask(obs, task, self._network.initial_state(len(task)))
        return hidden

    def _ask(self, obs: Tensor, task: Tensor, state: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        """Distributions, features of the last hidden layer, and the states after."""
        ids = self._ids[task]
        first = torch.zeros_like(ids, dtype=torch.bool)
        features, states = self._network.unroll(obs[None], ids[None], first[None], state)
        return *self._network.distribution_and_hidden(features[0], ids), states[0]


@register("teacher", "specialists")
class Specialists(Teacher):
    """A saved policy for each task. Their recurrent states share the columns of one, which is as wide as the widest.

    Use it where each task was learned on its own.

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
        self.state_size = max(teacher.state_size for _, teacher in self._teachers)
        self.feature_widths = [width for _, teacher in self._teachers for width in teacher.feature_widths]

    @torch.no_grad()
    def label(
        self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N S"]]:
        labels, after = torch.zeros(len(task), self._size, device=obs.device), torch.zeros_like(state)
        for teacher, rows, their_task in self._asked(task):
            size = teacher.state_size
            label, next_state = teacher.label(obs[rows], their_task, state[rows, :size])
            labels[rows], after[rows, :size] = label.to(labels.dtype), next_state
        return labels, after

    @torch.no_grad()
    def features(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N G"]:
        features = torch.zeros(len(task), self.feature_widths[0], device=obs.device)
        for teacher, rows, their_task in self._asked(task):
            features[rows] = teacher.features(obs[rows], their_task)
        return features

    def _asked(self, task: Int[Tensor, " N"]) -> Iterator[tuple[PolicyTeacher, Int[Tensor, " n"], Int[Tensor, " n"]]]:
        """The specialists of some samples, each with the places of its samples, and their tasks by its own ids."""
        for ids, teacher in self._teachers:
            place = (task[:, None] == ids).long()  # (N, their tasks)
            (rows,) = place.any(1).nonzero(as_tuple=True)
            if len(rows):
                yield teacher, rows, place[rows].argmax(1)


def _only(spec: EnvSpec, tasks: list[int]) -> EnvSpec:
    """The spec restricted to some of an environment's tasks."""
    per_task = ("task_names", "action_mask", "reports_success", "task_descriptions")
    columns: dict[str, Any] = {name: getattr(spec, name) for name in per_task}
    chosen: dict[str, Any] = {
        name: tuple(column[task] for task in tasks) for name, column in columns.items() if column is not None
    }
    return dataclasses.replace(spec, **chosen)


class FunctionTeacher(Teacher):
    """A Python function or module as a teacher, without memory and features.

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
    def label(
        self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N S"]]:
        labels = self._function(obs, task)
        if labels.ndim != 2 or len(labels) != len(task):
            raise UserError(
                f"The teacher {self.description} must give labels ({len(task)}, L), not {tuple(labels.shape)}."
            )
        return labels.to(obs.device), state


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
        return torch.zeros(num, self.teacher.state_size, device=self._mask.device)

    @torch.no_grad()
    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`."""
        label, state = self.teacher.label(obs, task, state)
        kind, mask = self.teacher.kind, self._mask[task]
        if kind == "action":
            return teacher_action(kind, label, mask), torch.zeros(len(task), device=task.device), state
        distribution = teacher_distribution(kind, label, mask)
        if explore:
            return *distribution.sample(), state
        action = distribution.mode()
        return action, distribution.log_prob(action), state


def teacher_actor(node: Mapping[str, Any], spec: EnvSpec) -> TeacherActor:
    """A teacher in an environment, on the CPU, from its config node. Raises like `build`."""
    return TeacherActor(build("teacher", node, spec=spec, device="cpu"), spec)
