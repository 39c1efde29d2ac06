"""Distillation losses: distances of a student's distribution over actions to its teacher's labels.

A label is a flat tensor (*samples, L). Its meaning is the teacher's kind:

    "action"         L = A numbers in [-1, 1], or L = 1: the index of a discrete action.
    "gaussian"       L = 2A: mean and logarithm of the standard deviation of a `Gaussian`.
    "tanh_gaussian"  L = 2A: the same of a `TanhGaussian`.
    "categorical"    L = A: log-probabilities, up to a constant.

Masks (*samples, A) say which components or actions the sample's task has: the others are ignored, whatever their
label. The distribution of a discrete teacher with more actions is renormalised over those that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mtrl.checks import not_negative, positive
from mtrl.nn.distributions import Categorical, Distribution, Gaussian, TanhGaussian
from mtrl.registry import register
from mtrl.types import EnvSpec, UserError

Kind = Literal["action", "gaussian", "tanh_gaussian", "categorical"]
"""Meaning of a teacher's labels."""
KINDS: tuple[Kind, ...] = get_args(Kind)
DISTRIBUTIONS: tuple[Kind, ...] = ("gaussian", "tanh_gaussian", "categorical")
"""Kinds of labels that describe a distribution."""
_KINDS: dict[type[Distribution], Kind] = {
    Gaussian: "gaussian",
    TanhGaussian: "tanh_gaussian",
    Categorical: "categorical",
}


def label_size(kind: Kind, spec: EnvSpec) -> int:
    """L, the size of a label for the tasks of an environment."""
    if kind == "action":
        return spec.action_dim if spec.action_kind == "continuous" else 1
    return spec.action_dim if kind == "categorical" else 2 * spec.action_dim


def kind_of(distribution_class: type[Distribution]) -> Kind:
    """Kind of the labels that describe distributions of a class. Raises `UserError` if there is none."""
    if distribution_class not in _KINDS:
        raise UserError(f"There are no labels for distributions of the class {distribution_class.__name__}.")
    return _KINDS[distribution_class]


def label_of(distribution: Distribution) -> Float[Tensor, "*samples L"]:
    """The label that describes a distribution; its kind is `kind_of(type(distribution))`."""
    if kind_of(type(distribution)) == "categorical":
        return cast(Categorical, distribution).log_probs
    gaussian = cast(Gaussian | TanhGaussian, distribution)
    mean, log_std = gaussian.mean, gaussian.log_std
    return torch.cat([mean, log_std.expand_as(mean)], -1)


def teacher_distribution(
    kind: Kind, label: Float[Tensor, "*samples L"], mask: Bool[Tensor, "*samples A"], temperature: float = 1.0
) -> Distribution:
    """The distribution that a label describes.

    Args:
        temperature: Divisor of the log-probabilities of a discrete distribution.

    Raises:
        ValueError: The label is a single action.
    """
    if kind == "categorical":
        return Categorical(label / temperature, mask)
    if kind == "action":
        raise ValueError("A label that is an action describes no distribution.")
    mean, log_std = label.chunk(2, dim=-1)
    return (Gaussian if kind == "gaussian" else TanhGaussian)(mean, log_std, mask)


def teacher_action(kind: Kind, label: Float[Tensor, "*samples L"], mask: Bool[Tensor, "*samples A"]) -> Tensor:
    """The teacher's deterministic action: (*samples, A) in [-1, 1], or (*samples,) int64 if discrete."""
    if kind != "action":
        return teacher_distribution(kind, label, mask).mode()
    if label.shape[-1] == 1 and mask.shape[-1] != 1:
        return label.squeeze(-1).long()
    return label.clamp(-1, 1) * mask


class DistillLoss:
    """Base of the distillation losses: pure functions of student and label, with settings but no state."""

    name: ClassVar[str]
    """Name under which it is registered."""
    kinds: ClassVar[tuple[Kind, ...]]
    """Kinds of labels that it accepts."""
    is_positive: ClassVar[bool] = True
    """Whether it is never negative, so that weightings for positive losses accept it."""

    def check(self, kind: Kind, student: type[Distribution]) -> None:
        """Raises `UserError` if it cannot compare labels of this kind with distributions of the student's class."""
        if kind not in self.kinds:
            lacks = "are actions without probabilities" if kind == "action" else f"are of the kind {kind}"
            raise UserError(f"loss {self.name!r} takes {' or '.join(self.kinds)}, but this teacher's labels {lacks}.")

    def __call__(
        self,
        student: Distribution,
        kind: Kind,
        label: Float[Tensor, "*samples L"],
        mask: Bool[Tensor, "*samples A"],
    ) -> Float[Tensor, "*samples"]:
        """Loss of each sample, differentiable in the student. For labels and masks see the top of this file.

        Raises:
            UserError: The student's distribution cannot be compared with labels of this kind.
        """
        raise NotImplementedError


class Divergence(DistillLoss):
    """Base of the losses between a teacher's and a student's distribution, which must be of one kind."""

    kinds: ClassVar[tuple[Kind, ...]] = DISTRIBUTIONS
    temperature: float = 1.0
    """Of a discrete teacher, but not of the student."""

    def check(self, kind: Kind, student: type[Distribution]) -> None:
        super().check(kind, student)
        if self.temperature != 1 and kind != "categorical":
            raise UserError(
                f"loss {self.name!r}: a temperature is for discrete actions, but this teacher's labels are {kind}."
            )
        if kind_of(student) != kind:
            raise UserError(
                f"loss {self.name!r} compares distributions of one kind, but the student's is {kind_of(student)} and "
                f"the teacher's {kind}: use the loss mse or nll."
            )

    def _teacher(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Distribution:
        """The teacher's distribution, of the same class as the student's."""
        self.check(kind, type(student))
        return teacher_distribution(kind, label, mask, self.temperature)


@register("distill_loss", "forward_kl")
@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher || student), in nats: the student covers all that the teacher does. Gaussians count before clipping.

    Use it where the teacher is a policy with a distribution, and the student has room for all that it does.

    Args:
        temperature: Temperature of a discrete teacher, but not of the student, as in Policy Distillation (Rusu et al.
            2015), which sharpens Q-values with .01; 1 in Actor-Mimic (Parisotto et al. 2015).
    """

    temperature: float = 1.0
    name: ClassVar[str] = "forward_kl"

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)

    def __call__(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Tensor:
        return self._teacher(student, kind, label, mask).kl_divergence(student)


@register("distill_loss", "reverse_kl")
@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student || teacher), in nats: the student does only what the teacher does. Gaussians count before clipping.

    Use it where the student is smaller than its teacher and should do one thing well.

    Args:
        temperature: Temperature of a discrete teacher, but not of the student.
    """

    temperature: float = 1.0
    name: ClassVar[str] = "reverse_kl"

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)

    def __call__(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Tensor:
        return student.kl_divergence(self._teacher(student, kind, label, mask))


@register("distill_loss", "cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """Cross-entropy of teacher and student minus the student's entropy times a coefficient, in nats.

    H(teacher, student) = KL(teacher || student) + H(teacher): the loss of kickstarting (Schmitt et al. 2018), with the
    gradient of `forward_kl`. For a tanh-Gaussian, H(teacher) is that of the Gaussian before tanh, which differs by a
    number that does not depend on the student. The student's entropy is the exploration bonus
    (`Distribution.entropy_bonus`) in the states of the batch, which are the student's states if the student acts.

    Use it for kickstarting, where the student should keep on exploring.

    Difference from "Distilling Policy Distillation" (Czarnecki et al. 2019):
        1. Only the terms of a single step. The terms that their expected entropy regularised distillation also adds to
           the rewards of later steps are not part of a per-sample loss.

    Args:
        entropy_coef: Weight of the student's entropy.
        temperature: Temperature of a discrete teacher, but not of the student.
    """

    entropy_coef: float = 0.0
    temperature: float = 1.0
    name: ClassVar[str] = "cross_entropy"
    is_positive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)
        not_negative(entropy_coef=self.entropy_coef)

    def __call__(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Tensor:
        teacher = self._teacher(student, kind, label, mask)
        if isinstance(teacher, TanhGaussian):
            teacher_entropy = Gaussian(teacher.mean, teacher.log_std, teacher.mask).entropy()
        else:
            teacher_entropy = teacher.entropy()
        loss = teacher.kl_divergence(student) + teacher_entropy
        return loss - self.entropy_coef * student.entropy_bonus() if self.entropy_coef else loss


@register("distill_loss", "nll")
@dataclass(frozen=True)
class NLL(DistillLoss):
    """Negative log-probability of the teacher's deterministic action under the student: behaviour cloning.

    Continuous actions are clipped to [-1, 1], as in the environment. Under a tanh-Gaussian, an action of 1 or -1 has
    the density of the adjacent float32 number: for teachers with such actions, `mse` is better behaved.

    Use it where the student should learn a distribution from deterministic actions.
    """

    name: ClassVar[str] = "nll"
    is_positive: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    def __call__(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Tensor:
        return -student.log_prob(teacher_action(kind, label, mask))


class ActionDistance(DistillLoss):
    """Base of the distances between deterministic continuous actions, averaged over the components that the task has.

    Both actions are taken before clipping to [-1, 1], so that an error has a gradient wherever the student is: the mean
    of a Gaussian, tanh of the mean of a tanh-Gaussian. Standard deviations do not matter.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("action", "gaussian", "tanh_gaussian")

    def check(self, kind: Kind, student: type[Distribution]) -> None:
        if student is Categorical:
            raise UserError(
                f"loss {self.name!r} is for continuous actions: use forward_kl, or nll for a teacher without logits."
            )
        super().check(kind, student)

    def distance(self, student: Float[Tensor, "*samples A"], teacher: Float[Tensor, "*samples A"]) -> Tensor:
        """Distance of each component (*samples, A)."""
        raise NotImplementedError

    def __call__(self, student: Distribution, kind: Kind, label: Tensor, mask: Tensor) -> Tensor:
        self.check(kind, type(student))
        target = label if kind == "action" else _unclipped(teacher_distribution(kind, label, mask))
        error = self.distance(_unclipped(student), target) * mask
        return error.sum(-1) / mask.sum(-1).clamp(min=1)


@register("distill_loss", "mse")
@dataclass(frozen=True)
class MSE(ActionDistance):
    """Squared error of the action. Where the teacher switches between two actions, the student plays their mean.

    Use it for teachers with deterministic actions, such as scripted ones.
    """

    name: ClassVar[str] = "mse"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square()


@register("distill_loss", "smooth_l1")
@dataclass(frozen=True)
class SmoothL1(ActionDistance):
    """Absolute error of the action, squared below `beta`: `torch.nn.SmoothL1Loss`.

    Where the teacher switches between two actions, the student plays the one that is more frequent, not their mean.

    Use it in place of `mse` where the teacher switches between actions.

    Args:
        beta: Where the error becomes linear.
    """

    beta: float = 0.1
    name: ClassVar[str] = "smooth_l1"

    def __post_init__(self) -> None:
        positive(beta=self.beta)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return functional.smooth_l1_loss(student, teacher, reduction="none", beta=self.beta)


def _unclipped(distribution: Distribution) -> Tensor:
    """The deterministic action before it is clipped."""
    gaussian = cast(Gaussian | TanhGaussian, distribution)
    return gaussian.mean.tanh() if isinstance(gaussian, TanhGaussian) else gaussian.mean
