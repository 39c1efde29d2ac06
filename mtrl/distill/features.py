"""Feature regression: the teacher's features can be predicted from the student's.

Parisotto et al., "Actor-Mimic" (2016), equation 4. Features are what the heads read, the last hidden layer.

Differences from the paper:
    1. A teacher of several tasks has a regression for each of them, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import not_negative
from mtrl.distill.batch import Labelled
from mtrl.distill.teachers import Teacher
from mtrl.nn.layers import TaskLinear, mark_per_task
from mtrl.types import Metrics, UserError


class NoRegression:
    """The student's features are its own."""

    networks: Mapping[str, nn.Module] = {}
    """What is learned together with the student, but is not a part of its policy."""

    def targets(self, batch: Labelled) -> Float[Tensor, "K n G"]:
        """Features of the teacher, without gradient."""
        return batch.label[..., :0]

    def loss(
        self, features: Float[Tensor, "K n H"], targets: Float[Tensor, "K n G"]
    ) -> tuple[Float[Tensor, " K"], Metrics]:
        """What is added to the loss of each task, for the student's features; and metrics per task."""
        return features.new_zeros(len(features)), {}


class FeatureRegression(NoRegression):
    """A coefficient times ||f_k(h(s)) - h_k(s)||^2: h are the student's features, h_k the teacher's, f_k is linear.

    The teacher is asked for its features in every batch, which costs it a forward pass, so that the dataset does not
    hold them: they are often ten times as wide as an observation.

    Args:
        coefficient: beta of the paper, which has .01.
        teacher: None: unknown, as are the shapes of the regressions then.
        features: H, the width of the student's features.

    Raises:
        UserError: The teacher has no features, or features of several widths, or a memory on which they depend.
    """

    def __init__(self, coefficient: float, teacher: Teacher | None, features: int, num_tasks: int) -> None:
        self.coefficient, self.teacher = coefficient, teacher
        width = 0 if teacher is None else feature_width(teacher)
        self.regressions = TaskLinear(num_tasks, features, width, "orthogonal")
        mark_per_task(*self.regressions.parameters())
        self.networks = {"feature_regression": self.regressions}

    def targets(self, batch: Labelled) -> Float[Tensor, "K n G"]:
        assert self.teacher is not None
        target_features = self.teacher.features(batch.obs.flatten(0, 1), batch.task.flatten())
        return target_features.unflatten(0, batch.task.shape)

    def loss(
        self, features: Float[Tensor, "K n H"], targets: Float[Tensor, "K n G"]
    ) -> tuple[Float[Tensor, " K"], Metrics]:
        predicted = self.regressions(features.transpose(0, 1)).transpose(0, 1)
        loss = (predicted - targets).square().sum(-1).mean(-1)
        return self.coefficient * loss, {"feature_loss": loss.detach()}


def feature_width(teacher: Teacher) -> int:
    """G, the width of a teacher's features. Raises `UserError` if they cannot be regressed on."""
    widths, so = sorted(set(teacher.feature_widths)), "use another teacher, or agent.feature_coef=0."
    if not widths:
        raise UserError(f"agent.feature_coef needs a teacher with features, not {teacher.description}: {so}")
    if len(widths) > 1:
        listed = ", ".join(map(str, widths))
        raise UserError(
            f"agent.feature_coef needs features of one width, but {teacher.description} have the widths {listed}: {so}"
        )
    if teacher.state_size:
        raise UserError(
            f"agent.feature_coef asks for features of single observations, but the teacher ({teacher.description}) has "
            f"a memory (core): {so}"
        )
    return widths[0]


def feature_regression(coefficient: float, teacher: Teacher | None, features: int, num_tasks: int) -> NoRegression:
    """For the arguments and errors see `FeatureRegression`. A coefficient of 0 asks nothing of the teacher."""
    not_negative(feature_coef=coefficient)
    return FeatureRegression(coefficient, teacher, features, num_tasks) if coefficient else NoRegression()
