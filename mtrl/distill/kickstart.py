"""Kickstarting: a learner that also listens to a teacher.

Schmitt et al., "Kickstarting Deep Reinforcement Learning" (2018), with V-trace; here beside any learner's own loss.
With coefficients that go from the teacher to reinforcement learning: teacher annealing (Clark et al., "BAM!", 2019).

Differences from the paper:
    1. Coefficients follow a schedule; the paper's are changed by population-based training.
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
from mtrl.registry import build, register
from mtrl.types import EnvSpec, State, UserError


@register("aux_loss", "teacher")
class TeacherLoss(AuxLoss):
    """The distance of the policy to a teacher, in the states that the learner learns from.

    Args:
        teacher: Node of a teacher.
        loss: Node of a loss of distillation.
        coefficient: Of this loss.
        rl_coefficient: Of the learner's own loss of the policy. Value functions learn all the while, so that 0 at the
            start is a warm-up for them. With several auxiliary losses, those of all are multiplied.

    Raises:
        UserError: The teacher cannot teach here, the loss cannot take its labels, a coefficient is negative, or that of
            reinforcement learning stays zero.
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
        if device == "meta":  # the learner is only planned
            return
        self.teacher: Teacher = build("teacher", teacher, spec=spec, device=device)
        self.loss.check(self.teacher.kind, spec.action_kind)
        self.target_size = label_size(self.teacher.kind, spec)

    def coefficient(self, progress: float) -> Tensor:
        return self._coefficient(progress)

    def rl_coefficient(self, progress: float) -> Tensor:
        return self._rl_coefficient(progress)

    def targets(
        self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*samples"], progress: float
    ) -> Float[Tensor, "*samples D"]:
        """The teacher's labels; zeros for tasks in which its coefficient is zero, where it need not be asked."""
        each, active = task.flatten(), (self.coefficient(progress) != 0).expand(self.num_tasks)
        rows = obs.reshape(len(each), *obs.shape[task.ndim :])
        if active.all():
            labels = self.teacher.label(rows, each)
        elif active.any():
            asked = active.to(task.device)[each]
            found = self.teacher.label(rows[asked], each[asked])
            labels = found.new_zeros(len(each), self.target_size)
            labels[asked] = found
        else:
            labels = torch.zeros(len(each), self.target_size, device=task.device)
        return labels.reshape(*task.shape, self.target_size)

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
