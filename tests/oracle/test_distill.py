"""The student's update against arithmetic on copies of its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.distill.batch import Labelled
from mtrl.distill.learner import Distill
from mtrl.nn.networks import build_policy
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform
from mtrl.registry import build
from mtrl.types import NonFiniteLossError
from tests.helpers import TRUNK, copy_parameters, describe, given, make_spec, naive_network

K, N, OBS, A = 3, 4, 5, 3
MASK = ((True, True, False), (True, True, True), (False, True, True))
SPEC = make_spec(K, OBS, A, "continuous", MASK)
LR = 0.1


def make_learner(
    obs_norm: str = "none", trunk: dict[str, Any] = TRUNK, loss: str = "mse", end_factor: float = 0.0
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
    components = given(SPEC, policy, (), norm, step, label_kind="action" if loss in ("mse", "nll") else "gaussian")
    return Distill(components, {}, {"name": loss}, end_factor, max_grad_norm=float("inf"))


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
