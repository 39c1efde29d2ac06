"""Areas, forward transfer and Taskonomy's normalisation, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtrl.relate.transfer import ahp_affinities, auc, forward_transfer, transfer_matrix


def test_area() -> None:
    """(100 * 0 + 100 * 0.5 + 200 * 0.9) / 400 = 230 / 400."""
    assert auc([(100, 0.0), (200, 0.5), (400, 0.9)]) == pytest.approx(0.575)
    assert auc([(10, 1.0), (50, 1.0)]) == 1


def test_forward_transfer() -> None:
    """(0.8 - 0.6) / (1 - 0.6) = 0.5; (0.5 - 0.6) / 0.4 = -0.25."""
    assert forward_transfer(0.8, 0.6) == pytest.approx(0.5)
    assert forward_transfer(0.5, 0.6) == pytest.approx(-0.25)
    assert forward_transfer(1.0, 0.6) == 1
    assert math.isnan(forward_transfer(0.9, 1.0))


def test_transfer_matrix() -> None:
    """Seeds are averaged before: (0.75 - 0.5) / 0.5 from a to b; nothing is known from b to a, or of c from scratch."""
    found = transfer_matrix(
        ["a", "b", "c"], {"a": [0.2], "b": [0.4, 0.6]}, {("a", "b"): [0.7, 0.8], ("a", "c"): [0.9], ("b", "b"): [0.5]}
    )
    np.testing.assert_allclose(found, [[np.nan, 0.5, np.nan], [np.nan, 0, np.nan], [np.nan] * 3], atol=1e-12)


def test_ahp_of_two_sources() -> None:
    """The first is ahead in three of four cases: odds 3 to 1, and the eigenvector of [[1, 3], [1/3, 1]] is (3, 1)."""
    np.testing.assert_allclose(ahp_affinities(np.array([[1.0, 2, 3, 0], [0, 1, 2, 1]])), [0.75, 0.25])


def test_ahp_counts_ties_half_and_ignores_scale() -> None:
    scores = np.array([[1.0, 0.2, 0.5], [1.0, 0.1, 0.4], [0.3, 0.1, 0.6]])
    np.testing.assert_allclose(ahp_affinities(scores), ahp_affinities(scores**3))
    np.testing.assert_allclose(ahp_affinities(np.ones((4, 5))), 0.25)
    order = [2, 0, 1]
    np.testing.assert_allclose(ahp_affinities(scores[order]), ahp_affinities(scores)[order])
