"""Learners with a teacher beside them: their steps against gradients taken by hand, in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl import registry
from mtrl.data.experience import EpisodeStatistics
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.distill.kickstart import TeacherLoss
from mtrl.distill.losses import Kind, label_of
from mtrl.distill.teachers import FunctionTeacher
from mtrl.registry import build
from mtrl.types import UserError
from tests.helpers import make_spec
from tests.oracle import test_impala, test_sac
from tests.oracle.test_sac import noise  # noqa: F401

K, OBS, A = test_sac.K, test_sac.OBS, test_sac.A
SPEC = make_spec(K, OBS, A)
SUCCESS = {"name": "success", "start": 2, "end": 0, "target": 1, "step_size": 1}


def double(obs: Tensor, task: Tensor) -> Tensor:
    """Mean twice the first half of the observation, logarithm of the deviation twice the second."""
    return 2 * obs


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(kind: Kind) -> FunctionTeacher:
        return FunctionTeacher(double, kind)

    monkeypatch.setitem(registry._components["teacher"], "double", fixed)


def taught(kind: str, loss: str = "forward_kl", **options: Any) -> tuple[TeacherLoss, EpisodeStatistics]:
    episodes = EpisodeStatistics(SPEC, Uniform(K))
    node = {"name": "teacher", "teacher": {"name": "double", "kind": kind}, "loss": {"name": loss}, **options}
    return build("aux_loss", node, spec=SPEC, device="cpu", episodes=episodes), episodes


def row(episodes: EpisodeStatistics, success: list[float]) -> None:
    """A row of the log with a success rate of each task."""
    for listener in episodes.listeners:
        listener({"success_rate": torch.tensor(success)})


def distance(policy: Any, obs: Tensor, task: Tensor, coefficient: list[float]) -> Tensor:
    """Sum over tasks of the coefficient and the mean over its samples of KL(teacher || student)."""
    output = policy(obs, task)
    mean, log_std = (2 * obs).chunk(2, -1)
    teacher = torch.distributions.Normal(mean, log_std.exp())
    student = torch.distributions.Normal(output.mean, output.log_std.exp())
    kl = torch.distributions.kl_divergence(teacher, student).sum(-1)
    return sum((coefficient[k] * kl[task == k].mean() for k in range(K)), torch.zeros(()).double())


def gradients(loss: Tensor, policy: torch.nn.Module) -> dict[str, Tensor]:
    parameters = dict(policy.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}


@pytest.mark.parametrize(
    ("coefficient", "rl", "expected", "own"),
    [
        (3, 1, [3, 3, 3], 1),
        ({"name": "linear", "start": 2, "end": 0}, {"name": "linear", "start": 0, "end": 1}, [1.5, 1.5, 1.5], 0.25),
        (SUCCESS, 0.5, [1, 0, 1.5], 0.5),
    ],
)
def test_the_vtrace_learner_by_hand(coefficient: Any, rl: Any, expected: list[float], own: float) -> None:
    """Plain gradient descent at a quarter of training: -rate (rl g_own + g_teacher), the coefficients as they are then.

    Success rates of .5, 1 and .25 make 2 - 2 rate = 1, 0 and 1.5.
    """
    learners, rollout = [test_impala.make_learner(), test_impala.make_learner()], test_impala.make_rollout()
    aux, episodes = taught("gaussian", coefficient=coefficient, rl_coefficient=rl)
    row(episodes, [0.5, 1, 0.25])
    learners[1].aux_losses = {"teacher": aux}
    start = {name: p.detach().clone() for name, p in learners[0].policy.named_parameters()}
    obs, task = rollout.obs.flatten(0, 1), rollout.task.flatten()
    hand = gradients(distance(learners[0].policy, obs, task, expected), learners[0].policy)
    metrics = []
    for learner in learners:
        torch.manual_seed(0)
        metrics.append(learner.update(rollout, 0.25))
    plain, found = (dict(learner.policy.named_parameters()) for learner in learners)
    for name, gradient in hand.items():
        step = own * (plain[name] - start[name]) - test_impala.LR * gradient
        torch.testing.assert_close(found[name] - start[name], step, rtol=1e-8, atol=1e-11)
    assert torch.equal(*(learner.value.trunk.input.weight for learner in learners))
    assert not any(key.startswith("aux/") for key in metrics[0])
    assert metrics[1]["aux/teacher_coefficient"].tolist() == expected
    assert metrics[1]["aux/rl_coefficient"].tolist() == [own] * K
    asked = [k for k in range(K) if expected[k]]
    before = test_impala.make_learner().policy.requires_grad_(False)
    kl = [float(distance(before, obs, task, torch.eye(K)[k].tolist())) for k in asked]
    assert metrics[1]["aux/teacher_loss"][asked].tolist() == pytest.approx(kl)


def test_sac_by_hand(noise: list[Tensor]) -> None:  # noqa: F811
    """Gradients of the policy: rl times its own and the teacher's, with coefficients of each task."""
    planted, found = list(noise), []
    for with_teacher in (False, True):
        learner = test_sac.make_learner()
        if with_teacher:
            aux, episodes = taught("tanh_gaussian", coefficient=SUCCESS, rl_coefficient=0.5)
            row(episodes, [0.5, 1, 0.25])
            learner.aux_losses = {"teacher": aux}
        for step in learner.optimizers.values():
            step.max_grad_norm = math.inf
        draws = iter(planted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda tensor, draws=draws, **_: next(draws))
            learner.update(test_sac.make_batch(), 0.5)
        found.append({name: p.grad for name, p in learner.policy.named_parameters() if p.grad is not None})
    start, batch = test_sac.make_learner(), test_sac.make_batch()
    hand = gradients(distance(start.policy, batch.obs, batch.task, [1, 0, 1.5]), start.policy)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, 0.5 * found[0][name] + hand[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "mse"])
def test_the_student_itself_has_nothing_to_teach(kind: str, loss: str) -> None:
    """With nothing of the learner's own but value losses, the policy stays where it is."""
    module = test_impala if kind == "gaussian" else test_sac
    learner: Any = module.make_learner()
    data = test_impala.make_rollout() if kind == "gaussian" else test_sac.make_batch()
    own = copy.deepcopy(learner.policy)
    linear = {"name": "linear", "start": 0, "end": 1}
    aux, _ = taught(kind, loss, rl_coefficient=linear)
    aux.teacher = FunctionTeacher(lambda obs, task: label_of(own(obs, task)), aux.teacher.kind)
    learner.aux_losses = {"teacher": aux}
    metrics = learner.update(data, 0.0)
    torch.testing.assert_close(metrics["aux/teacher_loss"], torch.zeros(K).double(), rtol=0, atol=1e-12)
    for name, parameter in learner.policy.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert float(gradient.abs().max()) < 1e-12, name


def test_only_tasks_with_a_coefficient_are_asked_of_the_teacher() -> None:
    aux, episodes = taught("gaussian", coefficient=SUCCESS)
    asked: list[list[int]] = []

    def label(obs: Tensor, task: Tensor) -> Tensor:
        asked.append(task.tolist())
        return double(obs, task)

    aux.teacher = FunctionTeacher(label, "gaussian")
    obs, task = torch.randn(2, 3, OBS), torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert torch.equal(aux.targets(obs, task, 0.0), 2 * obs)
    row(episodes, [0.5, 1, 1])
    assert torch.equal(aux.targets(obs, task, 0.0), torch.where((task == 0)[..., None], 2 * obs, 0))
    row(episodes, [1, 1, 1])
    assert not aux.targets(obs, task, 0.0).any()
    assert asked == [[0, 1, 2, 2, 1, 0], [0, 0]]


def test_coefficients_of_several_are_multiplied() -> None:
    """.5 times .25 of the learner's own; each its own of the others, which the log tells apart."""
    learner = test_impala.make_learner()
    one, _ = taught("gaussian", coefficient=2, rl_coefficient=0.5)
    two, _ = taught("gaussian", "mse", coefficient=3, rl_coefficient=0.25)
    learner.aux_losses = {"one": one, "two": two}
    metrics = learner.update(test_impala.make_rollout(), 0.0)
    assert metrics["aux/rl_coefficient"].tolist() == [0.125] * K
    assert metrics["aux/one_coefficient"].tolist() == [2] * K
    assert metrics["aux/two_coefficient"].tolist() == [3] * K
    assert not torch.equal(metrics["aux/one_loss"], metrics["aux/two_loss"])


def test_the_learner_keeps_what_the_schedules_know() -> None:
    one, episodes = taught("gaussian", coefficient=SUCCESS)
    row(episodes, [0.5, 1, 0.25])
    learner, other = test_impala.make_learner(), test_impala.make_learner()
    learner.aux_losses, other.aux_losses = {"one": one}, {"one": taught("gaussian", coefficient=SUCCESS)[0]}
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert torch.equal(torch.as_tensor(other.aux_losses["one"].coefficient(0.3)), torch.tensor([1, 0, 1.5]).double())
    assert "aux_losses" not in test_impala.make_learner().state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "action"}, "loss 'forward_kl' takes .*, but this teacher's labels are actions without probabilities"),
        ({"coefficient": -1}, "coefficient must not be negative"),
        ({"coefficient": {"name": "linear", "start": 1, "end": -1}}, "coefficient must not be negative"),
        ({"coefficient": "much"}, "coefficient must be a number or settings, not 'much'"),
        ({"rl_coefficient": 0}, "rl_coefficient stays 0, .* use agent=distill"),
        ({"rl_coefficient": {"name": "linear", "start": 1, "end": 0}}, "let it end above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        taught(**{"kind": "gaussian", **options})[0].check(test_impala.make_learner().policy)
    assert "\n" not in str(error.value)
