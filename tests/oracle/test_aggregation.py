"""Gradient aggregations against naive loops over vectors, scipy and TorchJD."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torchjd import aggregation as torchjd
from torchjd.linalg import QuadprogProjector

from mtrl.optim.aggregation import GradVac
from mtrl.optim.aggregation.pcgrad import random_orders
from mtrl.registry import build
from mtrl.types import UserError

P = 60


def gradients(num_tasks: int, seed: int, conflict: float = 0.6, scales: bool = False) -> Tensor:
    """(K, P) of which the second half opposes the sum of the first, so that there are conflicts of every strength."""
    g = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(num_tasks, P, generator=g, dtype=torch.float64)
    half = num_tasks // 2
    jacobian[half:] -= conflict * jacobian[:half].sum(0)
    if scales:
        jacobian *= 10 ** (4 * torch.rand(num_tasks, 1, generator=g, dtype=torch.float64) - 2)
    return jacobian


def combine(name: str, jacobian: Tensor, **options: Any) -> Tensor:
    return build("aggregation", {"name": name, **options}, num_tasks=len(jacobian)).combine(jacobian)


def naive_pcgrad(jacobian: Tensor, orders: Tensor) -> Tensor:
    projected = []
    for i, gradient in enumerate(jacobian):
        for j in orders[:, i].tolist():
            inner = float(gradient @ jacobian[j])
            if inner < 0:
                gradient = gradient - inner / float(jacobian[j] @ jacobian[j]) * jacobian[j]
        projected.append(gradient)
    return torch.stack(projected).mean(0)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("scales", [False, True])
def test_pcgrad_is_the_naive_loop(num_tasks: int, scales: bool) -> None:
    jacobian = gradients(num_tasks, 0, scales=scales)
    torch.manual_seed(1)
    orders = random_orders(jacobian @ jacobian.T)
    torch.manual_seed(1)
    torch.testing.assert_close(combine("pcgrad", jacobian), naive_pcgrad(jacobian, orders))
    if num_tasks > 1:
        assert not torch.allclose(naive_pcgrad(jacobian, orders), jacobian.mean(0))  # something was projected


def test_pcgrad_orders() -> None:
    """Each task meets every other once, in an order of its own (public code shuffles once for all, or not at all)."""
    torch.manual_seed(0)
    orders = random_orders(torch.ones(6, 6))
    for i in range(6):
        assert sorted(orders[:, i].tolist()) == [j for j in range(6) if j != i]
    ranks = [[j for j in orders[:, i].tolist() if j not in (0, 1)] for i in (0, 1)]
    assert ranks[0] != ranks[1]
    assert not torch.equal(orders, random_orders(torch.ones(6, 6)))


def test_pcgrad_is_torchjds() -> None:
    """With two tasks there is one order. TorchJD sums."""
    jacobian = gradients(2, 3)
    torch.testing.assert_close(2 * combine("pcgrad", jacobian), torchjd.PCGrad()(jacobian))


def test_pcgrad_by_hand() -> None:
    """g_1 = (1, 0), g_2 = (-1, 1), inner product -1.

    g_1' = (1, 0) + 1/2 (-1, 1) = (1/2, 1/2); g_2' = (-1, 1) + (1, 0) = (0, 1); their mean is (1/4, 3/4).
    """
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(combine("pcgrad", jacobian), torch.tensor([0.25, 0.75]))


def naive_gradvac(jacobian: Tensor, orders: Tensor, target: dict[tuple[int, int], float], beta: float) -> Tensor:
    changed = []
    for i, gradient in enumerate(jacobian):
        for j in orders[:, i].tolist():
            other = jacobian[j]
            phi = float(gradient @ other / gradient.norm() / other.norm())
            goal = target.get((i, j), 0.0)
            if phi < goal:
                step = float(gradient.norm()) * (goal * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - goal**2))
                gradient = gradient + step / (float(other.norm()) * math.sqrt(1 - goal**2)) * other
            target[i, j] = (1 - beta) * goal + beta * phi
        changed.append(gradient)
    return torch.stack(changed).mean(0)


@pytest.mark.parametrize("num_tasks", [1, 2, 7])
def test_gradvac_is_the_naive_loop(num_tasks: int) -> None:
    """Over several steps, in which the targets move."""
    ours, target = GradVac(num_tasks, beta=0.3), {}
    for seed in range(4):
        jacobian = gradients(num_tasks, seed)
        torch.manual_seed(seed)
        orders = random_orders(jacobian @ jacobian.T)
        torch.manual_seed(seed)
        torch.testing.assert_close(ours.combine(jacobian), naive_gradvac(jacobian, orders, target, 0.3))
    for (i, j), goal in target.items():
        assert float(ours.target[i, j]) == pytest.approx(goal)


def test_gradvac_reaches_its_target() -> None:
    """Two tasks: the changed g_1 has the target cosine to g_2 (what the paper's step is solved for)."""
    ours, jacobian = GradVac(2, beta=0.0), gradients(2, 0)
    ours.target.fill_(0.5)
    weights = torch.eye(2, dtype=torch.float64)
    # The mean's coefficients are (1 + a_2, 1 + a_1) / 2, where g_1' = g_1 + a_1 g_2 and g_2' = g_2 + a_2 g_1.
    mean = ours.weights(jacobian @ jacobian.T)
    weights[0, 1], weights[1, 0] = 2 * mean[1] - 1, 2 * mean[0] - 1
    for i in range(2):
        changed = weights[i] @ jacobian
        other = jacobian[1 - i]
        assert float(changed @ other / changed.norm() / other.norm()) == pytest.approx(0.5)


def simplex_minimum(objective: Any, num_tasks: int) -> Any:
    uniform = np.full(num_tasks, 1 / num_tasks)
    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    options = {"ftol": 1e-14, "maxiter": 1000}
    return minimize(objective, uniform, bounds=[(0, 1)] * num_tasks, constraints=constraint, options=options)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_mgda_is_the_shortest_combination(num_tasks: int, seed: int) -> None:
    jacobian = gradients(num_tasks, seed, conflict=0.1)
    gramian = (jacobian @ jacobian.T).numpy()
    best = simplex_minimum(lambda w: w @ gramian @ w, num_tasks)
    direction = combine("mgda", jacobian)
    assert float(direction.square().sum()) == pytest.approx(best.fun, rel=1e-5)
    # The condition of optimality: no gradient has a smaller inner product with it than itself.
    assert float((jacobian @ direction).min()) == pytest.approx(float(direction @ direction), rel=1e-6)


def test_mgda_is_torchjds() -> None:
    jacobian = gradients(4, 2, conflict=0.1)
    theirs = torchjd.MGDA(epsilon=1e-7, max_iters=20_000)(jacobian)
    torch.testing.assert_close(combine("mgda", jacobian), theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
@pytest.mark.parametrize("conflict", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("c", [0.0, 0.5, 1.5])
def test_cagrad_is_the_optimum(num_tasks: int, conflict: float, c: float) -> None:
    """Feasible, and with the value of the dual problem that the authors' code gives to scipy."""
    jacobian = gradients(num_tasks, 0, conflict)
    mean, gramian = jacobian.mean(0), (jacobian @ jacobian.T).numpy()
    radius = c * float(mean.norm())
    to_mean = gramian.mean(0)
    dual = simplex_minimum(lambda w: w @ to_mean + radius * np.sqrt(max(w @ gramian @ w, 1e-30)), num_tasks)
    direction = combine("cagrad", jacobian, c=c)
    assert float((direction - mean).norm()) <= radius * (1 + 1e-6) + 1e-12
    tolerance = 1e-5 * float(mean.square().sum())
    assert float((jacobian @ direction).min()) == pytest.approx(dual.fun, rel=1e-4, abs=tolerance)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20, 50])
def test_gem_is_torchjds_dual_projection(num_tasks: int) -> None:
    pytest.importorskip("quadprog")
    jacobian = gradients(num_tasks, 1, conflict=2.0)
    theirs = torchjd.DualProj(projector=QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12))(jacobian)
    torch.testing.assert_close(combine("gem", jacobian), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_tasks", [2, 5, 20])
def test_gem_is_the_projection(num_tasks: int) -> None:
    """Conflicts with no task, and the distance to the mean is orthogonal to the result (projection onto a cone)."""
    jacobian = gradients(num_tasks, 1, conflict=2.0)
    direction, mean = combine("gem", jacobian), jacobian.mean(0)
    assert (jacobian @ mean).min() < -0.1
    assert (jacobian @ direction).min() > -1e-9 * float(jacobian.norm())
    assert abs(float(direction @ (direction - mean))) < 1e-9 * float(mean @ mean)
    # The difference is a combination of the gradients with weights of at least zero.
    weights = np.linalg.lstsq(jacobian.T.numpy(), (direction - mean).numpy())[0]
    assert weights.min() > -1e-9


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
def test_agem_is_the_naive_loop(num_tasks: int) -> None:
    jacobian = gradients(num_tasks, 1)
    projected = []
    for i, gradient in enumerate(jacobian):
        others = [g for j, g in enumerate(jacobian) if j != i]
        if others:
            reference = sum(others) / len(others)
            if gradient @ reference < 0:
                gradient = gradient - (gradient @ reference) / (reference @ reference) * reference
        projected.append(gradient)
    torch.testing.assert_close(combine("agem", jacobian), torch.stack(projected).mean(0))


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_great_is_the_naive_loop(num_tasks: int) -> None:
    """Three steps in the formulas' derivatives: of |v|^-1 v, softmax and cross-entropy."""
    ours = build("aggregation", {"name": "great", "lr": 0.1, "adversary_lr": 0.5}, num_tasks=num_tasks)
    scale, adversary = np.ones((num_tasks, P)), np.zeros((num_tasks, P))
    for seed in range(3):
        jacobian = gradients(num_tasks, seed, scales=True)
        jacobian[1:2] *= seed != 1  # a task that is absent once
        expected, to_scale, to_adversary = np.zeros(P), np.zeros((num_tasks, P)), np.zeros((num_tasks, P))
        for k, gradient in enumerate(jacobian.numpy()):
            norm = np.linalg.norm(gradient)
            if norm == 0:
                continue
            u = gradient / norm
            v = scale[k] * u
            a = v / np.linalg.norm(v)
            expected += norm * a / num_tasks
            logits = adversary @ a
            error = np.exp(logits) / np.exp(logits).sum() - np.eye(num_tasks)[k]
            to_a = adversary.T @ error
            to_scale[k] = (to_a - a * (a @ to_a)) / np.linalg.norm(v) * u
            to_adversary += np.outer(error, a)
        torch.testing.assert_close(ours.combine(jacobian), torch.from_numpy(expected))
        scale = np.clip(scale + 0.1 * P * to_scale, 0, 10)
        adversary = adversary - 0.5 * to_adversary
    torch.testing.assert_close(ours.scale, torch.from_numpy(scale))
    torch.testing.assert_close(ours.adversary, torch.from_numpy(adversary))
    assert num_tasks == 1 or not np.allclose(scale, 1, atol=0.01)


def test_great_aligns_the_gradients() -> None:
    """What the tasks have in common stays, what tells one from another goes: cosines rise from .2 to above .8."""
    ours = build("aggregation", {"name": "great"}, num_tasks=4)
    g = torch.Generator().manual_seed(0)
    common, own = torch.randn(1, P, generator=g), 3 * torch.randn(4, P, generator=g)
    common[:, P // 2 :], own[:, : P // 2] = 0, 0

    def cosine(rows: Tensor) -> float:
        rows = rows / rows.norm(dim=1, keepdim=True)
        return float((rows @ rows.T)[~torch.eye(4, dtype=torch.bool)].mean())

    for _ in range(500):
        ours.combine(common + own + 0.1 * torch.randn(4, P, generator=g))
    assert cosine(common + own) < 0.3
    assert cosine(ours.scale * (common + own)) > 0.8


@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "gem", "agem", "measured_mean"])
def test_without_conflict_it_is_the_mean(name: str) -> None:
    jacobian = gradients(5, 0).abs()
    torch.testing.assert_close(combine(name, jacobian), jacobian.mean(0))


@pytest.mark.parametrize("aggregator", ["Mean", "Sum", "MGDA", "PCGrad", "IMTLG", "AlignedMTL", "GradDrop", "UPGrad"])
def test_torchjd_by_name(aggregator: str) -> None:
    if aggregator == "UPGrad":
        pytest.importorskip("quadprog")
    jacobian = gradients(4, 0).float()
    torch.manual_seed(0)
    ours = combine("torchjd", jacobian, aggregator=aggregator)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, getattr(torchjd, aggregator)()(jacobian))


def test_torchjd_options() -> None:
    jacobian = gradients(3, 0).float()
    weights = [1.0, 0.0, 2.0]
    ours = combine("torchjd", jacobian, aggregator="Constant", options={"weights": weights})
    torch.testing.assert_close(ours, jacobian[0] + 2 * jacobian[2])
    with pytest.raises(UserError, match="Did you mean 'UPGrad'"):
        build("aggregation", {"name": "torchjd", "aggregator": "UpGrad"}, num_tasks=3)
    with pytest.raises(UserError, match=r"option of TorchJD's MGDA: 'epsilonn'\. Did you mean 'epsilon'"):
        build("aggregation", {"name": "torchjd", "aggregator": "MGDA", "options": {"epsilonn": 1.0}}, num_tasks=3)


@pytest.mark.parametrize("aggregator", ["Mean", "MGDA", "IMTLG", "AlignedMTL", "GradDrop"])
def test_torchjd_sees_the_tasks_that_are_there(aggregator: str) -> None:
    """The zero rows of the others would make MGDA's direction nothing, and change what others normalise by."""
    jacobian = gradients(4, 0).float()
    jacobian[[0, 2]] = 0
    torch.manual_seed(0)
    ours = combine("torchjd", jacobian, aggregator=aggregator)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, getattr(torchjd, aggregator)()(jacobian[[1, 3]]))
    assert ours.any()
    assert not combine("torchjd", 0 * jacobian, aggregator=aggregator).any()


def test_torchjd_aggregators_of_a_fixed_number_of_tasks() -> None:
    """A weight for each, at least so many, or what was learned about each: these see a zero row."""
    jacobian = gradients(4, 0).float()
    jacobian[1] = 0
    ours = combine("torchjd", jacobian, aggregator="Constant", options={"weights": [1.0, 2.0, 3.0, 4.0]})
    torch.testing.assert_close(ours, jacobian[0] + 3 * jacobian[2] + 4 * jacobian[3])
    options = {"n_byzantine": 1, "n_selected": 2}
    ours = combine("torchjd", jacobian, aggregator="Krum", options=options)
    torch.testing.assert_close(ours, torchjd.Krum(**options)(jacobian))
    learned, theirs = build("aggregation", {"name": "torchjd", "aggregator": "GradVac"}, num_tasks=4), torchjd.GradVac()
    for seed in range(3):
        rows = gradients(4, seed).float()
        rows[seed] = 0
        torch.manual_seed(seed)
        ours = learned.combine(rows)
        torch.manual_seed(seed)
        torch.testing.assert_close(ours, theirs(rows))


def test_nash_mtl_is_told_the_number_of_tasks() -> None:
    """Where what it needs is missing, the error is about that."""
    if importlib.util.find_spec("cvxpy") and importlib.util.find_spec("ecos"):
        assert combine("torchjd", gradients(3, 0).float(), aggregator="NashMTL").any()
    else:
        with pytest.raises(UserError, match=r"torchjd\[nash_mtl\]"):
            build("aggregation", {"name": "torchjd", "aggregator": "NashMTL"}, num_tasks=3)


def test_torchjd_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r'-e "\.\[aggregators\]"'):
        build("aggregation", {"name": "torchjd", "aggregator": "UPGrad"}, num_tasks=3)
