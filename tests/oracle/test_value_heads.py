"""Value heads against hand arithmetic and integrals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from mtrl.nn.value_heads import HLGauss, ScalarValue, TwoHot


def test_scalar_by_hand() -> None:
    """Half of (3 - 1)^2."""
    raw = torch.tensor([[3.0]])
    assert ScalarValue()(raw).tolist() == [3]
    assert ScalarValue().loss(raw, torch.tensor([1.0])).tolist() == [2]


def test_two_hot_by_hand() -> None:
    """Values -1, 0, 1, 2. 0.25 is 3/4 of 0 and 1/4 of 1; values of the support, and what lies outside, are one."""
    head = TwoHot(bins=4, minimum=-1.0, maximum=2.0, symlog=False)
    expected = [[0, 0.75, 0.25, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(head.probabilities(torch.tensor([0.25, -1.0, 2.0])), torch.tensor(expected))
    raw = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    for target, loss in ((0.25, -0.75 * math.log(0.2) - 0.25 * math.log(0.3)), (50.0, -math.log(0.4))):
        assert float(head.loss(raw, torch.tensor(target))) == pytest.approx(loss)
    assert float(head(raw)) == pytest.approx(-0.1 + 0.3 + 0.8)


@pytest.mark.parametrize("target", [-1.0, -0.2, 0.5, 1.9, 2.0])
def test_hl_gauss_is_the_mass_around_each_value(target: float) -> None:
    """Of a Gaussian with standard deviation 0.6 * spacing, cut off half a spacing beyond the ends."""
    head = HLGauss(bins=7, minimum=-1.0, maximum=2.0, symlog=False, sigma=0.6)
    masses = [norm.cdf(-1 + 0.5 * j + 0.25, target, 0.3) - norm.cdf(-1 + 0.5 * j - 0.25, target, 0.3) for j in range(7)]
    expected = torch.tensor(masses) / sum(masses)
    torch.testing.assert_close(
        head.probabilities(torch.tensor(target, dtype=torch.float64)), expected.double(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", [TwoHot, HLGauss])
def test_the_mean_of_what_stands_for_a_target_is_the_target(kind: type[TwoHot] | type[HLGauss]) -> None:
    """Away from the ends: exactly for two-hot, nearly for a Gaussian that is wide enough."""
    head = kind(bins=41, minimum=-10.0, maximum=10.0, symlog=False)
    target = torch.linspace(-7, 7, 50)
    torch.testing.assert_close(head.probabilities(target) @ head.support, target, rtol=0, atol=1e-3)
    torch.testing.assert_close(head.probabilities(target).sum(-1), torch.ones(50))


@pytest.mark.parametrize("kind", [TwoHot, HLGauss])
def test_symlog_by_hand(kind: type[TwoHot] | type[HLGauss]) -> None:
    """Certain of log(1 + v), the value is v, of either sign; a target of v counts as log(1 + |v|) with its sign."""
    plain, symlog = (kind(bins=21, minimum=-5.0, maximum=5.0, symlog=chosen) for chosen in (False, True))
    for position, value in ((12, math.e - 1), (8, 1 - math.e), (10, 0.0)):
        raw = torch.full((21,), -100.0)
        raw[position] = 0
        assert float(symlog(raw)) == pytest.approx(value, abs=1e-6)
    raw = torch.randn(21, generator=torch.Generator().manual_seed(0))
    for value in (40.0, -40.0, 1e12):
        squashed = torch.tensor(math.copysign(math.log1p(abs(value)), value))
        torch.testing.assert_close(symlog.loss(raw, torch.tensor(value)), plain.loss(raw, squashed))


@pytest.mark.parametrize("kind", [TwoHot, HLGauss])
@pytest.mark.parametrize(("bins", "minimum", "maximum"), [(1, -1.0, 1.0), (5, 1.0, 1.0), (5, 2.0, 1.0)])
def test_ranges_that_are_none(kind: type[TwoHot] | type[HLGauss], bins: int, minimum: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="minimum < maximum"):
        kind(bins=bins, minimum=minimum, maximum=maximum)
