"""Diagnostics of a layer's features, by hand."""

from __future__ import annotations

import pytest
import torch

from mtrl.nn.diagnostics import MAX_SAMPLES, dormant_ratio, effective_rank, some


def test_dormant_ratio_by_hand() -> None:
    """Mean magnitudes 4, 2, 0.04, 0 have a mean of 1.51; 2.5% of it is 0.03775: the last unit is dormant."""
    features = torch.tensor([[4.0, -3.0, 0.0, 0.0], [-4.0, 1.0, 0.08, 0.0]])
    assert float(dormant_ratio(features)) == 0.25
    assert float(dormant_ratio(features, tau=0.1)) == 0.5  # 0.151
    assert float(dormant_ratio(torch.zeros(3, 4))) == 1


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ((5.0, 5.0, 5.0), 3),
        ((100.0, 2.0, 0.01), 2),  # 100 / 102.01 is less than .99 of all, 102 / 102.01 more
        ((100.0, 0.5, 0.5), 1),  # 100 / 101 = .9901
        ((0.0, 0.0, 0.0), 1),
    ],
)
def test_effective_rank_by_hand(values: tuple[float, ...], rank: int) -> None:
    """Of rotated diagonal matrices: these are their singular values."""
    g = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(5, 3, generator=g))
    right, _ = torch.linalg.qr(torch.randn(3, 3, generator=g))
    assert float(effective_rank(left @ torch.diag(torch.tensor(values)) @ right)) == rank


def test_some_samples_are_evenly_spread() -> None:
    samples = torch.arange(4000).view(20, 200)
    chosen = some(samples, 0)
    assert len(chosen) == MAX_SAMPLES
    assert (chosen[0], chosen[-1]) == (0, 3999)
    assert set(chosen.diff().tolist()) == {7, 8}
    assert torch.equal(some(samples[..., None], 1), chosen[:, None])
    assert torch.equal(some(torch.arange(6).view(2, 3), 0), torch.arange(6))
