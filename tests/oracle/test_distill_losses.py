"""Losses of distillation against torch.distributions, numerical integration and finite differences, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as torch_kl

import mtrl.distill  # noqa: F401
from mtrl import registry
from mtrl.distill.losses import (
    KINDS,
    DistillLoss,
    Kind,
    kind_of,
    label_of,
    label_size,
    teacher_action,
    teacher_distribution,
)
from mtrl.nn.distributions import Categorical, Distribution, Gaussian, TanhGaussian
from mtrl.types import UserError
from tests.helpers import make_spec

SHAPE, A = (3, 2), 4
CLASSES: dict[str, type] = {"gaussian": Gaussian, "tanh_gaussian": TanhGaussian}
LOSSES = registry.names("distill_loss")
PAIRS = [(name, kind) for name in LOSSES for kind in registry.lookup("distill_loss", name).kinds]  # type: ignore[attr-defined]
SETTINGS: list[tuple[dict[str, Any], Kind]] = [({"name": name}, kind) for name, kind in PAIRS]
SETTINGS += [
    ({"name": "cross_entropy", "entropy_coef": 0.3}, "gaussian"),
    ({"name": "cross_entropy", "entropy_coef": 0.3, "temperature": 0.5}, "categorical"),
    ({"name": "forward_kl", "temperature": 0.5}, "categorical"),
    ({"name": "reverse_kl", "temperature": 2.0}, "categorical"),
]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(a: int = A) -> Tensor:
    return torch.ones(*SHAPE, a, dtype=torch.bool)


def student_of(kind: str, parameters: Tensor, mask: Tensor) -> Distribution:
    """Of a network's 2A outputs: of a discrete one, the first A are logits. Actions are a Gaussian student's."""
    first, second = parameters.chunk(2, -1)
    return Categorical(first, mask) if kind == "categorical" else CLASSES.get(kind, Gaussian)(first, second * 0.5, mask)


def label_for(kind: str, seed: int) -> Tensor:
    if kind == "categorical":
        return draw(seed, *SHAPE, A).log_softmax(-1)
    if kind == "action":
        return draw(seed, *SHAPE, A).tanh()
    return torch.cat([draw(seed, *SHAPE, A), 0.5 * draw(seed + 1, *SHAPE, A)], -1)


def made(name: str, **options: Any) -> DistillLoss:
    loss: DistillLoss = registry.build("distill_loss", {"name": name, **options})
    return loss


# --- values ---------------------------------------------------------------------------------------------------------


def normals(label: Tensor) -> Normal:
    mean, log_std = label.chunk(2, -1)
    return Normal(mean, log_std.exp())


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_of_gaussians_against_torch(kind: Kind) -> None:
    ours, theirs = label_for(kind, 0), label_for(kind, 5)
    student = teacher_distribution(kind, ours, full())
    p, q = normals(theirs), normals(ours)

    def loss(name: str, **options: Any) -> Tensor:
        return made(name, **options)(student, kind, theirs, full())

    torch.testing.assert_close(loss("forward_kl"), torch_kl(p, q).sum(-1))
    torch.testing.assert_close(loss("reverse_kl"), torch_kl(q, p).sum(-1))
    torch.testing.assert_close(loss("cross_entropy"), (torch_kl(p, q) + p.entropy()).sum(-1))
    actions = [p.mean.clamp(-1, 1), p.mean.tanh()]
    if kind == "gaussian":
        torch.testing.assert_close(loss("nll"), -q.log_prob(actions[0]).sum(-1))
        torch.testing.assert_close(loss("mse"), (q.mean - p.mean).square().mean(-1))
        bonus = Normal(q.mean, q.stddev.clamp(max=1)).entropy().sum(-1)
        regularised = (torch_kl(p, q) + p.entropy()).sum(-1) - 0.25 * bonus
        torch.testing.assert_close(loss("cross_entropy", entropy_coef=0.25), regularised)
    else:
        squashed = TransformedDistribution(q, TanhTransform())
        torch.testing.assert_close(loss("nll"), -squashed.log_prob(actions[1]).sum(-1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(loss("mse"), (q.mean.tanh() - actions[1]).square().mean(-1))


def test_of_categoricals_against_torch() -> None:
    ours, theirs = draw(0, *SHAPE, A), label_for("categorical", 5)
    student = Categorical(ours, full())
    p, q = torch.distributions.Categorical(logits=theirs), torch.distributions.Categorical(logits=ours)
    sharp = torch.distributions.Categorical(logits=theirs / 0.1)

    def loss(name: str, **options: Any) -> Tensor:
        return made(name, **options)(student, "categorical", theirs, full())

    torch.testing.assert_close(loss("forward_kl"), torch_kl(p, q))
    torch.testing.assert_close(loss("forward_kl", temperature=0.1), torch_kl(sharp, q))
    torch.testing.assert_close(loss("reverse_kl"), torch_kl(q, p))
    torch.testing.assert_close(loss("reverse_kl", temperature=0.1), torch_kl(q, sharp))
    cross = -(p.probs * q.logits).sum(-1)
    torch.testing.assert_close(loss("cross_entropy"), cross)
    torch.testing.assert_close(loss("cross_entropy", entropy_coef=0.25), cross - 0.25 * q.entropy())
    torch.testing.assert_close(loss("nll"), -q.log_prob(theirs.argmax(-1)))


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_divergences_are_integrals(kind: Kind) -> None:
    """One component each, integrated over the actions themselves: tanh changes no KL."""
    ours, theirs, mask = torch.tensor([[0.4, -0.7]]), torch.tensor([[-0.3, -0.4]]), torch.tensor([[True]])
    ours, theirs = ours.double(), theirs.double()
    student = teacher_distribution(kind, ours, mask)

    def density(label: Tensor, x: float) -> float:
        mean, std = float(label[0, 0]), float(label[0, 1].exp())
        if kind == "gaussian":
            return float(scipy.stats.norm.pdf(x, mean, std))
        return float(scipy.stats.norm.pdf(np.arctanh(x), mean, std) / (1 - x * x))

    def integral(p: Tensor, q: Tensor) -> float:
        """Of p log(p / q)."""

        def integrand(x: float) -> float:
            if density(p, x) < 1e-200:
                return 0.0
            return density(p, x) * np.log(density(p, x) / density(q, x))

        limit = 8.0 if kind == "gaussian" else 1 - 1e-9
        return float(scipy.integrate.quad(integrand, -limit, limit, limit=500)[0])

    forward, reverse = made("forward_kl"), made("reverse_kl")
    assert float(forward(student, kind, theirs, mask)) == pytest.approx(integral(theirs, ours), rel=1e-6)
    assert float(reverse(student, kind, theirs, mask)) == pytest.approx(integral(ours, theirs), rel=1e-6)


def test_the_cross_entropy_is_an_integral() -> None:
    """- p log q, for Gaussians over all numbers."""
    ours, theirs, mask = torch.tensor([[0.4, -0.7]]), torch.tensor([[-0.3, -0.4]]), torch.tensor([[True]])
    p, q = (scipy.stats.norm(float(x[0, 0]), float(x[0, 1].exp())) for x in (theirs, ours))
    expected, _ = scipy.integrate.quad(lambda x: -p.pdf(x) * q.logpdf(x), -10, 10)
    found = made("cross_entropy")(teacher_distribution("gaussian", ours, mask), "gaussian", theirs, mask)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_of_an_action_by_hand() -> None:
    """Mean (.5, 2), action (1, -1): errors .5 and 3; means are not clipped. Log-density of a unit Gaussian there."""
    student = Gaussian(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    label, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert float(made("mse")(student, "action", label, mask)) == (0.25 + 9) / 2
    # 0.5^2 / 2 below beta = 1, and |-3| - 1/2 above.
    assert float(made("smooth_l1", beta=1.0)(student, "action", label, mask)) == (0.125 + 2.5) / 2
    expected = 0.5 * (0.25 + 9) + np.log(2 * np.pi)
    assert float(made("nll")(student, "action", label, mask)) == pytest.approx(expected, rel=1e-6)


def test_the_nll_of_a_discrete_action() -> None:
    logits = draw(0, *SHAPE, A)
    action = torch.tensor([[0, 1], [2, 3], [1, 1]])
    found = made("nll")(Categorical(logits, full()), "action", action[..., None].double(), full())
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), action.flatten(), reduction="none")
    torch.testing.assert_close(found.flatten(), expected)


# --- properties of every registered loss ----------------------------------------------------------------------------


@pytest.mark.parametrize(("node", "kind"), SETTINGS)
def test_gradients_are_those_of_finite_differences(node: dict[str, Any], kind: Kind) -> None:
    mask = full()
    mask[0, 0, 1] = False
    loss, label = made(**node), label_for(kind, 7)

    def values(parameters: Tensor) -> Tensor:
        return loss(student_of(kind, parameters, mask), kind, label, mask)

    assert values(draw(3, *SHAPE, 2 * A)).shape == SHAPE
    assert torch.autograd.gradcheck(values, draw(3, *SHAPE, 2 * A).requires_grad_())


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] != "action"])
def test_a_teacher_equal_to_the_student_has_nothing_to_teach(name: str, kind: Kind) -> None:
    """Zero loss and zero gradient. (The others are not zero: they are entropies, or pull the spread to nothing.)"""
    mask = full()
    mask[1, 1, 0] = False
    parameters = draw(3, *SHAPE, 2 * A).requires_grad_()
    student = student_of(kind, parameters, mask)
    loss = made(name)(student, kind, label_of(student).detach(), mask)
    (gradient,) = torch.autograd.grad(loss.sum(), parameters)
    if name in ("forward_kl", "reverse_kl", "mse", "smooth_l1"):
        torch.testing.assert_close(loss, torch.zeros(SHAPE, dtype=torch.float64), rtol=0, atol=1e-12)
    if name in ("forward_kl", "reverse_kl", "mse", "smooth_l1", "cross_entropy"):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("node", "kind"), SETTINGS)
def test_masked_components_count_nothing(node: dict[str, Any], kind: Kind) -> None:
    """Whatever the student and the teacher say of them: as if there were only the others; no gradient."""
    mask = full()
    mask[..., 1] = False
    kept = [0, 2, 3]
    label, parameters = label_for(kind, 7), draw(3, *SHAPE, 2 * A)
    changed_label, changed = label.clone(), parameters.clone()
    for x in (changed_label, changed):
        for first in range(0, x.shape[-1], A):
            x[..., first + 1] = 0.9
    changed.requires_grad_()
    loss = made(**node)
    found = loss(student_of(kind, changed, mask), kind, changed_label, mask)
    torch.testing.assert_close(found, loss(student_of(kind, parameters, mask), kind, label, mask))
    fewer = [torch.cat([part[..., kept] for part in x.split(A, -1)], -1) for x in (parameters, label)]
    torch.testing.assert_close(found, loss(student_of(kind, fewer[0], full(3)), kind, fewer[1], full(3)))
    (gradient,) = torch.autograd.grad(found.sum(), changed)
    assert not gradient[..., [1, A + 1]].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_a_loss_cannot_take_are_refused_in_a_line(name: str, kind: Kind) -> None:
    loss, student = made(name), type(student_of(kind, draw(0, *SHAPE, 2 * A), full()))
    if kind in loss.kinds:
        loss.check(kind, student)
        return
    with pytest.raises(UserError, match=rf"^loss '{name}' [^\n]*$"):
        loss.check(kind, student)


@pytest.mark.parametrize(
    ("node", "kind", "student", "message"),
    [
        ({"name": "forward_kl"}, "action", Gaussian, "this teacher's labels are actions without probabilities"),
        ({"name": "mse"}, "action", Categorical, "for continuous actions: use forward_kl, or nll"),
        ({"name": "mse"}, "categorical", Gaussian, "of the kind categorical"),
        ({"name": "forward_kl", "temperature": 0.5}, "gaussian", Gaussian, "a temperature is for discrete actions"),
    ],
)
def test_what_is_refused(node: dict[str, Any], kind: Kind, student: type[Distribution], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**node).check(kind, student)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "cross_entropy"])
def test_distributions_of_different_kinds_are_not_compared(name: str) -> None:
    student, message = student_of("tanh_gaussian", draw(0, *SHAPE, 2 * A), full()), "student's is tanh_gaussian and the"
    with pytest.raises(UserError, match=rf"{message} teacher's gaussian: use .* mse or nll"):
        made(name).check("gaussian", TanhGaussian)
    with pytest.raises(UserError, match=message):
        made(name)(student, "gaussian", label_for("gaussian", 0), full())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, "temperature must be positive"), ({"entropy_coef": -1}, "must not be negative")],
)
def test_settings_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made("cross_entropy", **options)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian", "categorical"])
def test_a_label_describes_its_distribution(kind: Kind) -> None:
    mask = full()
    mask[0, 0, 2] = False
    student = student_of(kind, draw(1, *SHAPE, 2 * A), mask)
    label = label_of(student)
    assert kind_of(type(student)) == kind
    assert label.shape[-1] == label_size(kind, make_spec(action_dim=A))
    again = teacher_distribution(kind, label, mask)
    assert type(again) is type(student)
    torch.testing.assert_close(
        student.kl_divergence(again), torch.zeros(SHAPE, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert torch.equal(teacher_action(kind, label, mask), student.mode())


def test_actions_are_clipped_masked_and_whole_numbers() -> None:
    mask = torch.tensor([[True, True, False]])
    assert teacher_action("action", torch.tensor([[0.5, -3.0, 1.0]]), mask).tolist() == [[0.5, -1, 0]]
    discrete = teacher_action("action", torch.tensor([[2.0]]), mask)
    assert discrete.tolist() == [2]
    assert discrete.dtype == torch.int64
    assert label_size("action", make_spec(action_dim=3)) == 3
    assert label_size("action", make_spec(action_dim=3, action_kind="discrete")) == 1
    with pytest.raises(ValueError, match="no distribution"):
        teacher_distribution("action", torch.zeros(1, 3), mask)


def test_a_teacher_with_more_actions_is_taken_among_those_that_are_left() -> None:
    """(.5, .3, .2) without the last is (.625, .375)."""
    label, mask = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[True, True, False]])
    teacher = teacher_distribution("categorical", label, mask)
    assert isinstance(teacher, Categorical)
    torch.testing.assert_close(teacher.log_probs.exp(), torch.tensor([[0.625, 0.375, 0.0]]))
