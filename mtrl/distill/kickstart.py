"""Kickstarting: a teacher's loss in addition to a learner's.

Schmitt et al., "Kickstarting Deep Reinforcement Learning" (2018), with V-trace; here with any learner's loss. With
coefficients that shift from the teacher to reinforcement learning: teacher annealing (Clark et al., "BAM!", 2019).

Differences from the paper:
    1. Coefficients follow a schedule instead of population-based training.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl.agents.aux_loss import AuxLoss
from mtrl.checks import not_negative
from mtrl.data.experience import EpisodeStatistics
from mtrl.distill.losses import DistillLoss, label_size
from mtrl.distill.schedules import Value, as_schedule
from mtrl.distill.teachers import Teacher
from mtrl.nn.distributions import Distribution
from mtrl.nn.networks import PolicyNetwork
from mtrl.registry import build, register
from mtrl.types import EnvSpec, State, UserError


@register("aux_loss", "teacher")
class TeacherLoss(AuxLoss):
    """Distance of the policy to a teacher, in the states that the learner learns from.

    Use it where reinforcement learning should begin from what a teacher can do (docs/distillation.md).

    Args:
        teacher: Config node of a `teacher`.
        loss: Config node of a `distill_loss`.
        coefficient: Coefficient of this loss, a number or a `schedule`.
        rl_coefficient: Coefficient of the learner's policy loss, likewise. Value functions are always learned, so 0 at
            the beginning is a warm-up for them. Those of several auxiliary losses multiply.

    Raises:
        UserError: The teacher does not suit the environment or has memory, a coefficient is negative, or
            `rl_coefficient` stays zero. In `check`: the loss cannot compare the teacher's labels with the policy.
    """

    def __init__(
        self,
        spec: EnvSpec,
        device: str,
        episodes: EpisodeStatistics,
        teacher: dict[str, Any],
        loss: dict[str, Any],
        coefficient: Value = 1.0,
        rl_coefficient: Value = 1.0,
    ) -> None:
        self._coefficient = as_schedule(coefficient, spec, episodes)
        self._rl_coefficient = as_schedule(rl_coefficient, spec, episodes)
        for schedule, name in ((self._coefficient, "coefficient"), (self._rl_coefficient, "rl_coefficient")):
            not_negative(**{name: min(schedule.start, schedule.end)})
        if self._rl_coefficient.end == 0:
            raise UserError(
                "rl_coefficient stays 0, so that the policy would never learn from rewards: let it end above 0, or use "
                "agent=distill."
            )
        self.loss: DistillLoss = build("distill_loss", loss)
        self.num_tasks = spec.num_tasks
        self._mask = torch.tensor(spec.action_mask, device=device)
        if device == "meta":  # the learner is only built for its shapes
            return
        self.teacher: Teacher = build("teacher", teacher, spec=spec, device=device)
        if self.teacher.state_size:
            raise UserError(
                f"The teacher ({self.teacher.description}) has a memory (core), which only agent=distill can follow: "
                "use that, or a teacher without memory."
            )
        self.target_size = label_size(self.teacher.kind, spec)

    def check(self, policy: PolicyNetwork) -> None:
        if not self._mask.is_meta:
            self.loss.check(self.teacher.kind, policy.distribution_class)

    def coefficient(self, progress: float) -> Tensor:
        return self._coefficient(progress)

    def rl_coefficient(self, progress: float) -> Tensor:
        return self._rl_coefficient(progress)

    def targets(
        self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*samples"], progress: float
    ) -> Float[Tensor, "*samples D"]:
        """The teacher's labels; zeros, without asking the teacher, for tasks in which the coefficient is zero."""
        flat_task, active = task.flatten(), (self.coefficient(progress) != 0).expand(self.num_tasks)
        rows = obs.reshape(len(flat_task), *obs.shape[task.ndim :])
        if active.all():
            labels = self._labels(rows, flat_task)
        elif active.any():
            asked = active.to(task.device)[flat_task]
            answers = self._labels(rows[asked], flat_task[asked])
            labels = answers.new_zeros(len(flat_task), self.target_size)
            labels[asked] = answers
        else:
            labels = torch.zeros(len(flat_task), self.target_size, device=task.device)
        return labels.reshape(*task.shape, self.target_size)

    def _labels(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        labels, _ = self.teacher.label(obs, task, torch.zeros(len(task), 0, device=task.device))
        return labels

    def __call__(
        self, minibatch: Any, output: Distribution, targets: Float[Tensor, "*samples D"]
    ) -> Float[Tensor, "*samples"]:
        return self.loss(output, self.teacher.kind, targets, self._mask[minibatch.task])

    def state_dict(self) -> State:
        schedules = {"coefficient": self._coefficient, "rl_coefficient": self._rl_coefficient}
        return {name: schedule.state_dict() for name, schedule in schedules.items()}

    def load_state_dict(self, state: State) -> None:
        self._coefficient.load_state_dict(state["coefficient"])
        self._rl_coefficient.load_state_dict(state["rl_coefficient"])
