"""The student's update against arithmetic on copies of its parameters."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtrl.distill.batch import Labelled
from mtrl.distill.learner import Distill
from mtrl.distill.teachers import FunctionTeacher
from mtrl.nn.networks import build_policy
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform
from mtrl.registry import build
from mtrl.types import NonFiniteLossError
from tests.helpers import TRUNK, copy_parameters, describe, given, make_spec, naive_network

K, N, OBS, A, G = 3, 4, 5, 3, 2
MASK = ((True, True, False), (True, True, True), (False, True, True))
SPEC = make_spec(K, OBS, A, "continuous", MASK)
LR = 0.1


class Knowing(FunctionTeacher):
    """Has G features: the observation's first numbers, times the task's id plus one."""

    feature_widths = (G,)

    def features(self, obs: Tensor, task: Tensor) -> Tensor:
        return obs[:, :G] * (task[:, None] + 1)


def make_learner(
    obs_norm: str = "none",
    trunk: dict[str, Any] = TRUNK,
    loss: str = "mse",
    end_factor: float = 0.0,
    feature_coef: float = 0.0,
) -> Distill:
    torch.manual_seed(0)
    policy = build_policy(describe("gaussian", obs_norm=obs_norm, trunk=trunk), SPEC).double()
    with torch.no_grad():  # away from the small initial weights, so that every term matters
        for parameter in policy.head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)

    def step(module: nn.Module, max_norm: float, has_positive: bool) -> MultiTaskOptimizer:
        parameters = list(module.parameters())
        optimizer = torch.optim.SGD([{"params": parameters, "initial_lr": LR}], lr=LR)
        return MultiTaskOptimizer(parameters, optimizer, Uniform(), Sum(), max_norm, has_positive)

    norm = build("value_norm", {"name": "none"}, num_tasks=K)
    teacher = Knowing(lambda obs, task: obs, "action" if loss in ("mse", "nll") else "gaussian")
    components = given(SPEC, policy, (), norm, step, teacher=teacher)
    options = {"end_factor": end_factor, "max_grad_norm": float("inf"), "feature_coef": feature_coef}
    learner = Distill(components, {}, {"name": loss}, **options)
    learner.networks.double()
    return learner


def make_batch(kind: Any = "action") -> Labelled:
    g = torch.Generator().manual_seed(1)
    size = A if kind == "action" else 2 * A
    return Labelled(
        obs=torch.randn(K, N, OBS, generator=g, dtype=torch.float64),
        label=torch.rand(K, N, size, generator=g, dtype=torch.float64) * 2 - 1,
        task=torch.arange(K)[:, None].expand(K, N),
        kind=kind,
    )


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_one_update_is_gradient_descent_on_the_mean_error_of_each_task(progress: float) -> None:
    """Sum over tasks of the mean over its samples of the mean squared error of the components that the task has."""
    learner, batch = make_learner(end_factor=0.2), make_batch()
    copies = copy_parameters(learner.policy)
    losses = []
    for k in range(K):
        errors = []
        for i in range(N):
            mean = naive_network(copies, batch.obs[k, i], k, K, head="head.head.")
            components = [a for a in range(A) if MASK[k][a]]
            errors.append(sum((mean[a] - batch.label[k, i, a]) ** 2 for a in components) / len(components))
        losses.append(sum(errors) / N)
    metrics = learner.update(batch, progress)
    expected = torch.stack([loss.detach() for loss in losses if isinstance(loss, Tensor)])
    torch.testing.assert_close(metrics["distill_loss"], expected)
    sum(losses).backward()  # type: ignore[union-attr]
    for name, parameter in learner.policy.named_parameters():
        gradient = copies[name].grad if copies[name].grad is not None else torch.zeros_like(copies[name])
        factor = 1 + (0.2 - 1) * progress
        torch.testing.assert_close(parameter.detach(), copies[name].detach() - LR * factor * gradient, msg=name)


def test_one_update_with_feature_regression_by_finite_differences() -> None:
    """Adds beta times the mean over samples of ||M_k h + c_k - features of the teacher||^2 to the loss of task k."""
    learner, batch, beta = make_learner(feature_coef=0.3), make_batch(), 0.3
    values = {name: p.detach().clone().numpy() for name, p in learner.networks.named_parameters()}

    def losses() -> tuple[list[float], list[float]]:
        action, feature = [0.0] * K, [0.0] * K
        weight = np.concatenate([values["policy.trunk.input.weight"], values["policy.trunk.task_input.weight"]], 1)
        for k, i in itertools.product(range(K), range(N)):
            x = batch.obs[k, i].numpy()
            hidden = np.tanh(weight @ np.concatenate([x, np.eye(K)[k]]) + values["policy.trunk.input.bias"])
            mean = values["policy.head.head.weight"][k] @ hidden + values["policy.head.head.bias"][k]
            errors = [(mean[a] - float(batch.label[k, i, a])) ** 2 for a in range(A) if MASK[k][a]]
            predicted = values["feature_regression.weight"][k] @ hidden + values["feature_regression.bias"][k]
            action[k] += sum(errors) / len(errors) / N
            feature[k] += sum((predicted[g] - (k + 1) * x[g]) ** 2 for g in range(G)) / N
        return action, feature

    def total() -> float:
        action, feature = losses()
        return sum(action) + beta * sum(feature)

    metrics = learner.update(batch, 0.0)
    for name, expected in zip(("distill_loss", "feature_loss"), losses(), strict=True):
        assert metrics[name].tolist() == pytest.approx(expected)
    found = {name: p.detach().numpy() for name, p in learner.networks.named_parameters()}
    assert found["feature_regression.weight"].shape == (K, G, TRUNK["width"])
    for name, value in values.items():
        start, step = value.copy(), 1e-6
        for place in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                value[place] = start[place] + sign * step
                sides.append(total())
            value[place] = start[place]
            gradient = (sides[0] - sides[1]) / (2 * step)
            assert found[name][place] == pytest.approx(start[place] - LR * gradient, abs=1e-8), (name, place)


def test_the_regression_is_no_part_of_the_policy() -> None:
    """And without a coefficient there is none: nothing is asked of the teacher, or stored."""
    assert {name.split(".")[0] for name in make_learner(feature_coef=0.1).networks.state_dict()} == {
        "policy",
        "feature_regression",
    }
    learner = make_learner(feature_coef=0.1)
    assert learner.policy.state_dict().keys() == make_learner().policy.state_dict().keys()
    assert set(make_learner().networks) == {"policy"}


def test_kl_moves_the_student_to_the_teacher() -> None:
    learner, batch = make_learner(loss="forward_kl", end_factor=1.0), make_batch("gaussian")
    first = learner.update(batch, 0.0)["distill_loss"]
    for _ in range(300):
        last = learner.update(batch, 0.0)["distill_loss"]
    assert (last < 0.5 * first).all()


def test_a_label_that_is_not_finite_names_its_task() -> None:
    learner, batch = make_learner(), make_batch()
    batch.label[1, 2] = torch.nan
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    with pytest.raises(NonFiniteLossError) as error:
        learner.update(batch, 0.0)
    assert error.value.tasks == [1]
    assert all(torch.equal(p, before[name]) for name, p in learner.policy.named_parameters())
