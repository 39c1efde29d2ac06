"""Loss weightings against hand arithmetic, naive loops and TorchJD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac import Temperature
from mtrl.optim.weighting import DWA, FAMO, LBTW, AlphaSoftmax, Focal, GradNorm, ImplicitSchedule, Uncertainty
from mtrl.registry import build
from mtrl.types import UserError


def weights(weighting: torch.nn.Module, losses: list[float]) -> Tensor:
    values = torch.tensor(losses)
    return weighting(values) / values


def after(weighting: torch.nn.Module, *rows: list[float], norm: list[float] | None = None) -> None:
    for losses in rows:
        values = torch.tensor(losses)
        weighting.after_step(values, {"task_norm": torch.tensor(norm) if norm else values})


def test_uncertainty_finds_the_variances() -> None:
    """(exp(-s) L + s) / 2 is least where exp(s) = L: the weights become 1 / L, here 1/4 and 1 over their mean 5/8."""
    weighting = Uncertainty(2, lr=0.02)
    for _ in range(600):
        after(weighting, [4.0, 1.0])
    torch.testing.assert_close(weighting.logits.exp(), torch.tensor([4.0, 1.0]), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(weights(weighting, [4.0, 1.0]), torch.tensor([0.4, 1.6]), rtol=2e-2, atol=2e-2)


def test_uncertainty_gradient_is_that_of_its_loss() -> None:
    weighting = Uncertainty(3)
    with torch.no_grad():
        weighting.logits.copy_(torch.tensor([0.3, -1.0, 2.0]))
    s = weighting.logits.detach().clone().requires_grad_()
    losses = torch.tensor([0.5, 2.0, 7.0])
    (expected,) = torch.autograd.grad((((-s).exp() * losses + s) / 2).sum(), s)
    weighting.after_step(losses, {})
    torch.testing.assert_close(weighting.logits.grad, expected)


def test_dwa_by_hand() -> None:
    """Windows of two: means (4, 4), then (2, 4): ratios (1/2, 1). Weights 2 softmax(ratio / 2)."""
    weighting = DWA(2, temperature=2.0, window=2)
    after(weighting, [5.0, 3.0], [3.0, 5.0])
    assert weights(weighting, [1.0, 1.0]).tolist() == [1, 1]
    after(weighting, [2.5, 4.0])
    assert weights(weighting, [1.0, 1.0]).tolist() == [1, 1]
    after(weighting, [1.5, 4.0])
    first, second = math.exp(0.25), math.exp(0.5)
    expected = torch.tensor([first, second]) * 2 / (first + second)
    torch.testing.assert_close(weights(weighting, [1.0, 9.0]), expected)


def test_dwa_keeps_the_mean_of_an_absent_task() -> None:
    weighting = DWA(2, window=1)
    after(weighting, [4.0, 4.0], [0.0, 4.0])
    assert weighting.previous.tolist() == [4, 4]
    after(weighting, [2.0, 4.0])
    assert weighting.ratio.tolist() == [0.5, 1]


def test_lbtw_by_hand() -> None:
    """Losses began at (4, 1) and are (1, 1): ratios (1/4, 1), their roots (1/2, 1) over the mean 3/4. Then anew."""
    weighting = LBTW(2, alpha=0.5, window=3)
    assert weights(weighting, [4.0, 1.0]).tolist() == [1, 1]
    after(weighting, [4.0, 1.0])
    torch.testing.assert_close(weights(weighting, [1.0, 1.0]), torch.tensor([2 / 3, 4 / 3]))
    after(weighting, [1.0, 1.0], [1.0, 1.0])
    assert weights(weighting, [9.0, 1.0]).tolist() == [1, 1]  # what begins a window is its own beginning
    after(weighting, [2.0, 0.0])  # task 1 is absent
    torch.testing.assert_close(weights(weighting, [2.0, 3.0]), torch.ones(2))
    after(weighting, [2.0, 3.0])
    torch.testing.assert_close(weights(weighting, [0.5, 3.0]), torch.tensor([2 / 3, 4 / 3]))


def test_geometric_mean_is_that_of_its_gradient() -> None:
    """In direction that of (L_1 L_2 L_3)^(1/3); TorchJD's scalarizer has the same."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    losses = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(build("weighting", {"name": "geometric_mean"})(losses).sum(), losses)
    for mean in (losses.prod() ** (1 / 3), scalarization.GeometricMean()(losses)):
        (expected,) = torch.autograd.grad(mean, losses)
        torch.testing.assert_close(ours / ours.norm(), expected / expected.norm())


def test_gradnorm_gradient_is_that_of_its_loss() -> None:
    """The sum of |G_k - mean(G) r_k^alpha| over mean(G), the targets held constant, by autograd."""
    weighting = GradNorm(3, alpha=1.5)
    after(weighting, [2.0, 1.0, 5.0], norm=[1.0, 1.0, 1.0])
    with torch.no_grad():
        weighting.logits.copy_(torch.tensor([0.2, -0.4, 0.1]))
    losses, lengths = torch.tensor([1.0, 0.9, 1.0]), torch.tensor([3.0, 0.2, 1.0])  # of the unweighted gradients
    logits = weighting.logits.detach().clone().requires_grad_()
    norm = 3 * logits.softmax(0) * lengths
    share = losses / torch.tensor([2.0, 1.0, 5.0])
    target = norm.mean().detach() * (share / share.mean()) ** 1.5
    (expected,) = torch.autograd.grad((norm - target).abs().sum() / norm.mean().detach(), logits)
    weighting.after_step(losses, {"task_norm": norm.detach()})
    torch.testing.assert_close(weighting.logits.grad, expected)


def test_gradnorm_evens_out_the_gradients() -> None:
    """With losses that do not change, w_k n_k becomes the same for all: weights 3/2 (1/1, 1/2, ...)."""
    weighting, lengths = GradNorm(2, lr=0.01), torch.tensor([1.0, 3.0])
    for _ in range(400):
        norm = weights(weighting, [1.0, 1.0]) * lengths
        weighting.after_step(torch.ones(2), {"task_norm": norm})
    torch.testing.assert_close(weights(weighting, [1.0, 1.0]), torch.tensor([1.5, 0.5]), rtol=0.05, atol=0.05)


def test_famo_by_hand() -> None:
    """Adam's first step is lr against the sign of z (d - <z, d>) + gamma xi, d the decrease of log losses.

    From (8, 4) to (2, 4): d = (log 4, 0), so that logit 0 falls and logit 1 rises by 0.1; the first call has no d.
    """
    weighting = FAMO(2, lr=0.1, gamma=0.0)
    torch.testing.assert_close(weights(weighting, [8.0, 4.0]), torch.tensor([2 / 3, 4 / 3]))  # z / L, over its mean
    after(weighting, [8.0, 4.0])
    assert not weighting.logits.any()
    after(weighting, [2.0, 4.0])
    expected = torch.tensor([0.5 * (math.log(4) - 0.5 * math.log(4)), 0.5 * (0 - 0.5 * math.log(4))])
    torch.testing.assert_close(weighting.logits.grad, expected)
    assert weighting.logits[0] < 0 < weighting.logits[1]


def test_famo_skips_absent_tasks() -> None:
    weighting = FAMO(2, gamma=0.0)
    after(weighting, [8.0, 4.0], [0.0, 4.0])
    assert not weighting.logits.any()
    after(weighting, [2.0, 4.0])  # the decrease is from the last loss that there was
    assert weighting.logits[0] < 0 < weighting.logits[1]


def test_focal_by_hand() -> None:
    """Success 1/2 and 1/4 with gamma 1: 1/2 log 2 and 3/4 log 4 = 3/2 log 2, over their mean log 2."""
    weighting = Focal(2, silent_tasks=(), gamma=1.0, step_size=1.0)
    assert weights(weighting, [1.0, 1.0]).tolist() == [1, 1]
    weighting.observe({"success_rate": torch.tensor([0.5, 0.25])})
    torch.testing.assert_close(weights(weighting, [1.0, -7.0]), torch.tensor([0.5, 1.5]))
    weighting.observe({"success_rate": torch.tensor([torch.nan, torch.nan])})
    torch.testing.assert_close(weights(weighting, [1.0, -7.0]), torch.tensor([0.5, 1.5]))


def test_success_is_a_moving_average() -> None:
    weighting = Focal(2, silent_tasks=(), step_size=0.5)
    for rate in (1.0, 0.0, 1.0):
        weighting.observe({"success_rate": torch.tensor([rate, torch.nan], dtype=torch.float64)})
    assert weighting.success.tolist() == [0.625, 0]  # 1/2, 1/4, 5/8


def test_implicit_schedule_by_hand() -> None:
    """Success (1, 0, 1/2): mean 1/2, largest 1. 1 -+ min(0.3, 1/2) and 1, whose mean is 1."""
    weighting = ImplicitSchedule(3, silent_tasks=(), gamma=0.3, step_size=1.0)
    weighting.observe({"success_rate": torch.tensor([1.0, 0.0, 0.5])})
    torch.testing.assert_close(weights(weighting, [1.0, 1.0, 1.0]), torch.tensor([0.7, 1.3, 1.0]))
    # Scores half as large, alpha 2, beta 1/2: 1 -+ (1/2)^2 (1/4)^(1/2) = 1 -+ 1/8.
    weighting = ImplicitSchedule(3, silent_tasks=(), alpha=2.0, beta=0.5, gamma=0.3, step_size=1.0)
    weighting.observe({"success_rate": torch.tensor([0.5, 0.0, 0.25])})
    torch.testing.assert_close(weights(weighting, [1.0, 1.0, 1.0]), torch.tensor([0.875, 1.125, 1.0]))


def test_alpha_softmax_reads_the_temperatures() -> None:
    """alpha = (1, 1/3): softmax(-log alpha) = (1/4, 3/4), times 2; and it follows when alpha changes."""
    temperature = Temperature(2, 1.0)
    weighting = AlphaSoftmax(lambda: temperature.log_alpha)
    assert weights(weighting, [1.0, 1.0]).tolist() == [1, 1]
    with torch.no_grad():
        temperature.log_alpha[1] = math.log(1 / 3)
    torch.testing.assert_close(weights(weighting, [-5.0, 1.0]), torch.tensor([0.5, 1.5]))
    assert not weighting.state_dict()
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    weighting(losses).sum().backward()
    assert temperature.log_alpha.grad is None


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="only agent=sac has temperatures"):
        build("weighting", {"name": "alpha_softmax"}, num_tasks=2)
    with pytest.raises(UserError, match="no success is reported by b, c"):
        build("weighting", {"name": "focal"}, num_tasks=3, silent_tasks=("b", "c"))
