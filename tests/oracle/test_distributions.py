"""Distributions over actions against torch.distributions, scipy and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from mtrl.nn.distributions import Categorical, Gaussian, TanhGaussian

SHAPE = (4, 3, 2)


def parameters(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(SHAPE, generator=g, dtype=dtype)
    return mean, 0.5 * torch.randn(SHAPE, generator=g, dtype=dtype), torch.ones(SHAPE, dtype=torch.bool)


def one(mean: float, std: float, kind: type = TanhGaussian) -> Gaussian | TanhGaussian:
    """A distribution over one component."""
    row = torch.tensor([mean], dtype=torch.float64)
    return kind(row, torch.tensor([std], dtype=torch.float64).log(), torch.tensor([True]))


def test_gaussian_against_torch_and_scipy() -> None:
    mean, log_std, mask = parameters()
    ours, theirs = Gaussian(mean, log_std, mask), torch.distributions.Normal(mean, log_std.exp())
    action = mean + torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    scipy_log_prob = scipy.stats.norm.logpdf(action.numpy(), mean.numpy(), log_std.exp().numpy()).sum(-1)
    np.testing.assert_allclose(ours.log_prob(action).numpy(), scipy_log_prob, rtol=1e-12)


def test_the_bonus_widens_no_gaussian_beyond_the_actions() -> None:
    """Standard deviations .5 and 2: the entropy of .5 and 1, and a gradient for the first only."""
    log_std = torch.tensor([0.5, 2.0], dtype=torch.float64).log().requires_grad_()
    bonus = Gaussian(torch.zeros(2), log_std, torch.ones(2, dtype=torch.bool)).entropy_bonus()
    assert float(bonus.detach()) == pytest.approx(math.log(2 * math.pi * math.e) + math.log(0.5))
    (gradient,) = torch.autograd.grad(bonus, log_std)
    assert gradient.tolist() == [1, 0]


def test_tanh_gaussian_against_torch() -> None:
    mean, log_std, mask = parameters()
    base = torch.distributions.Normal(mean, log_std.exp())
    theirs = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform())
    action = (mean + log_std.exp() * torch.randn(SHAPE, dtype=torch.float64)).tanh().clamp(-0.999, 0.999)
    ours = TanhGaussian(mean, log_std, mask)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.8, 0.3), (-0.5, 1.0)])
def test_tanh_gaussian_density_integrates_to_one(mean: float, std: float) -> None:
    distribution = one(mean, std)

    def density(a: float) -> float:
        return float(distribution.log_prob(torch.tensor([a], dtype=torch.float64)).exp())

    total, _ = scipy.integrate.quad(density, -1, 1, points=[0.9, -0.9, math.tanh(mean)], epsabs=1e-7)
    assert total == pytest.approx(1, abs=1e-4)
    # The probability of an interval is that of its preimage.
    share, _ = scipy.integrate.quad(density, -0.2, 0.6, epsabs=1e-9)
    normal = scipy.stats.norm(mean, std)
    assert share == pytest.approx(normal.cdf(math.atanh(0.6)) - normal.cdf(math.atanh(-0.2)), abs=1e-7)


@pytest.mark.parametrize("kind", [Gaussian, TanhGaussian])
def test_samples_follow_the_distribution(kind: type) -> None:
    torch.manual_seed(0)
    n, mean, std = 4000, 0.4, 0.7
    column = torch.full((n, 1), mean, dtype=torch.float64)
    action, log_prob = kind(column, torch.full_like(column, std).log(), torch.ones(n, 1, dtype=torch.bool)).sample()
    unsquashed = action.atanh() if kind is TanhGaussian else action
    assert scipy.stats.kstest(unsquashed[:, 0].numpy(), scipy.stats.norm(mean, std).cdf).pvalue > 0.01
    torch.testing.assert_close(log_prob[:50], torch.stack([one(mean, std, kind).log_prob(a) for a in action[:50]]))


def test_tanh_gaussian_entropy_estimate_is_unbiased() -> None:
    torch.manual_seed(0)
    n, mean, std = 20_000, 0.3, 0.6
    column = torch.full((n, 1), mean, dtype=torch.float64)
    entropy = TanhGaussian(column, torch.full_like(column, std).log(), torch.ones(n, 1, dtype=torch.bool)).entropy()
    # H(tanh u) = H(u) + E log(1 - tanh(u)^2)
    normal = scipy.stats.norm(mean, std)
    slope, _ = scipy.integrate.quad(lambda u: normal.pdf(u) * np.log1p(-(np.tanh(u) ** 2)), -6, 6)
    expected = 0.5 + 0.5 * math.log(2 * math.pi) + math.log(std) + slope
    assert float(entropy.mean()) == pytest.approx(expected, abs=4 * float(entropy.std()) / math.sqrt(n))


def test_categorical_against_torch() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (
        Categorical(logits, torch.ones(5, 4, dtype=torch.bool)),
        torch.distributions.Categorical(logits=logits),
    )
    action = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_categorical_samples_follow_the_probabilities() -> None:
    torch.manual_seed(0)
    n = 5000
    mask = torch.tensor([True, False, True, True])
    logits = torch.tensor([0.5, 3.0, -1.0, 1.0])
    action, log_prob = Categorical(logits.expand(n, 4), mask.expand(n, 4)).sample()
    counts = torch.bincount(action, minlength=4)
    assert counts[1] == 0  # the most likely one, but masked
    probs = logits[mask].softmax(0).double()
    assert scipy.stats.chisquare(counts[mask].numpy(), (n * probs / probs.sum()).numpy()).pvalue > 0.01
    torch.testing.assert_close(log_prob, logits[mask].log_softmax(0)[torch.tensor([0, -1, 1, 2])[action]])


def test_a_masked_categorical_is_one_over_the_rest() -> None:
    logits = torch.tensor([[0.5, 3.0, -1.0, 1.0]], requires_grad=True)
    masked = Categorical(logits, torch.tensor([[True, False, True, True]]))
    smaller = Categorical(logits[:, [0, 2, 3]], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(masked.entropy(), smaller.entropy())
    torch.testing.assert_close(masked.log_prob(torch.tensor([3])), smaller.log_prob(torch.tensor([2])))
    assert int(masked.mode()) == 3
    (gradient,) = torch.autograd.grad(masked.entropy().sum() + masked.log_prob(torch.tensor([3])).sum(), logits)
    assert gradient[0, 1] == 0
    assert (gradient[0, [0, 2, 3]] != 0).all()


@pytest.mark.parametrize("kind", [Gaussian, TanhGaussian])
@pytest.mark.parametrize("junk", [0.0, 5.0, -1e6])
def test_a_masked_component_counts_for_nothing(kind: type, junk: float) -> None:
    """Whatever the network says of it, as if it were not there; and no gradient reaches it."""
    mean = torch.tensor([[0.3, junk]], requires_grad=True)
    log_std = torch.tensor([[-0.5, 2.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    masked = kind(mean, log_std, mask)
    alone = kind(mean[:, :1], log_std[:, :1], mask[:, :1])
    torch.manual_seed(0)
    action, log_prob = masked.sample()
    assert action[0, 1] == 0
    assert masked.mode()[0, 1] == 0
    torch.testing.assert_close(masked.mode()[:, 0], alone.mode()[:, 0])
    torch.testing.assert_close(log_prob, alone.log_prob(action[:, :1]))
    torch.testing.assert_close(masked.log_prob(action), alone.log_prob(action[:, :1]))
    torch.manual_seed(1)
    entropy = masked.entropy()
    assert torch.isfinite(entropy)
    total = log_prob.sum() + masked.log_prob(action.detach()).sum() + entropy.sum()
    for gradient in torch.autograd.grad(total, [mean, log_std]):
        assert torch.isfinite(gradient).all()
        assert gradient[0, 1] == 0
        assert gradient[0, 0] != 0


@pytest.mark.parametrize("mean", [-1e4, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("log_std", [-20.0, -5.0, 2.0])
def test_tanh_gaussian_extremes_are_finite(mean: float, log_std: float) -> None:
    means = torch.full((64, 1), mean, requires_grad=True)
    log_stds = torch.full((64, 1), log_std, requires_grad=True)
    distribution = TanhGaussian(means, log_stds, torch.ones(64, 1, dtype=torch.bool))
    torch.manual_seed(0)
    action, log_prob = distribution.sample()
    assert (action.abs() <= 1).all()
    assert torch.isfinite(log_prob).all()
    for gradient in torch.autograd.grad(log_prob.sum() + action.sum(), [means, log_stds]):
        assert torch.isfinite(gradient).all()
    assert torch.isfinite(distribution.log_prob(torch.tensor([[-1.0], [1.0]]).repeat(32, 1))).all()


def test_tanh_gaussian_log_prob_agrees_with_its_samples_in_float32() -> None:
    torch.manual_seed(0)
    mean, log_std, mask = parameters(torch.float32)
    distribution = TanhGaussian(mean, log_std - 1, mask)
    action, log_prob = distribution.sample()
    torch.testing.assert_close(distribution.log_prob(action), log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logit", [-1e8, 1e8])
def test_categorical_extremes_are_finite(logit: float) -> None:
    logits = torch.tensor([[logit, 0.0, 1e3]], requires_grad=True)
    distribution = Categorical(logits, torch.tensor([[True, True, False]]))
    action, log_prob = distribution.sample()
    assert int(action) == (0 if logit > 0 else 1)
    assert torch.isfinite(log_prob)
    (gradient,) = torch.autograd.grad(distribution.entropy().sum() + log_prob.sum(), logits)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [Gaussian, TanhGaussian])
def test_samples_are_reparametrised(kind: type) -> None:
    """The gradient of E[f(a)] through the sample is that of the same noise moved along with the parameters."""
    mean, log_std, mask = parameters()
    mean.requires_grad_()
    log_std.requires_grad_()
    torch.manual_seed(3)
    action, _ = kind(mean, log_std, mask).sample()
    gradients = torch.autograd.grad(action.sum(), [mean, log_std])
    torch.manual_seed(3)
    noise = torch.randn(SHAPE, dtype=torch.float64)
    # d(mean + std noise) = 1 and std noise; tanh multiplies by 1 - a^2
    slope = 1 - action.detach().square() if kind is TanhGaussian else torch.ones(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(gradients[0], slope)
    torch.testing.assert_close(gradients[1], slope * log_std.detach().exp() * noise)


def test_the_gaussian_mode_is_an_action() -> None:
    mean = torch.tensor([[-3.0, 0.5, 2.0]])
    assert Gaussian(mean, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)).mode().tolist() == [[-1, 0.5, 1]]


@pytest.mark.parametrize("kind", [Gaussian, TanhGaussian])
def test_divergence_of_gaussians_against_torch(kind: type) -> None:
    """Masked components count for nothing; tanh changes nothing, which an integral over the actions shows."""
    (mean, log_std, mask), (other_mean, other_log_std) = parameters(), [t.flip(0) for t in parameters()[:2]]
    mask = mask.clone()
    mask[0, :, 1] = False
    p, q = kind(mean, log_std, mask), kind(other_mean, other_log_std, mask)
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(other_mean, other_log_std.exp()))
    torch.testing.assert_close(p.kl_divergence(q), (each * mask).sum(-1))
    assert (p.kl_divergence(p) == 0).all()
    p, q = one(0.3, 0.5, kind), one(-0.2, 0.8, kind)

    def integrand(a: float) -> float:
        action = torch.tensor([a], dtype=torch.float64)
        return float(p.log_prob(action).exp() * (p.log_prob(action) - q.log_prob(action)))

    end = 1.0 if kind is TanhGaussian else 6.0
    total, _ = scipy.integrate.quad(integrand, -end, end, points=[-0.9, 0.3, 0.9], epsabs=1e-8)
    assert p.kl_divergence(q).item() == pytest.approx(total, abs=1e-5)


def test_divergence_of_categoricals_against_torch() -> None:
    g = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    mask = torch.tensor([True, True, False, True, True]).expand(3, 5)
    p, q = Categorical(logits, mask), Categorical(other, mask)
    kept = mask[0]
    theirs = [torch.distributions.Categorical(logits=x[:, kept]) for x in (logits, other)]
    torch.testing.assert_close(p.kl_divergence(q), torch.distributions.kl_divergence(*theirs))
    assert (p.kl_divergence(p) == 0).all()
