"""Similarities of tasks by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtrl.relate.similarity import attribution_similarity, cosine, linear_cka, low_rank, rsa


def test_cosine() -> None:
    """(3, 4) and (4, 3): 24 / 25; nothing with a zero vector."""
    found = cosine(torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[:2, :2], torch.tensor([[1, 0.96], [0.96, 1]], dtype=torch.float64))
    assert not found[2].any()


def test_low_rank() -> None:
    """(2, .1), (2, -.1), (0, .1), (0, -.1) are (1, 0) plus (+-1, +-.1): the first direction has 1 / 1.01 of it all."""
    vectors = torch.tensor([[2, 0.1], [2, -0.1], [0, 0.1], [0, -0.1]])
    torch.testing.assert_close(low_rank(vectors).abs(), torch.ones(4, 1).double())
    torch.testing.assert_close(cosine(low_rank(vectors))[0], torch.tensor([1.0, 1, -1, -1]).double())
    assert low_rank(vectors, share=0.999).shape == (4, 2)


def test_rsa() -> None:
    """Three observations of three features, in a second task with the first two swapped.

    Correlations in the first task: of (1, 2, 3) with (1, 3, 2) 1/2, with (3, 2, 1) -1, of the last two -1/2. So
    dissimilarities are 1/2, 2 and 3/2, with ranks 1, 3, 2. In the second task they are 1/2, 3/2 and 2, with ranks
    1, 2, 3. Spearman's correlation is 1 - 6 (0 + 1 + 1) / (3 * 8) = 1/2.
    """
    first = torch.tensor([[1.0, 2, 3], [1, 3, 2], [3, 2, 1]])
    found = rsa(torch.stack([first, first[[1, 0, 2]], 5 * first - 2]))
    assert found[0, 1] == pytest.approx(0.5)
    assert found[0, 2] == pytest.approx(1)  # scale and offset do not matter


def test_linear_cka() -> None:
    """One feature each, x = (-1, 0, 1) and y = (1, -2, 1): (x.y)^2 / (|x|^2 |y|^2) = 0; with (0, 0, 3) it is 9/12.

    Centred, (0, 0, 3) is z = (-1, -1, 2): x.z = 3, |x|^2 = 2, |z|^2 = 6.
    """
    x, y, z = torch.tensor([-1.0, 0, 1]), torch.tensor([1.0, -2, 1]), torch.tensor([0.0, 0, 3])
    found = linear_cka(torch.stack([x, y, z])[..., None])
    assert found[0, 1] == pytest.approx(0, abs=1e-12)
    assert found[0, 2] == pytest.approx(0.75)


def test_linear_cka_does_not_see_rotations_but_sees_stretching() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(20, 5, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0]
    stretched = features * torch.tensor([10.0, 1, 1, 1, 1])
    found = linear_cka(torch.stack([features, 3 * features @ rotation + 1, stretched]))
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] < 0.9


def test_attribution_similarity() -> None:
    """Gradients (1, 0) and (0, 2) at one observation, (1, 1) and (2, 2) at the other: (0 + 1) / 2.

    A third task has a gradient at the first only, (1, 0): cosines 1 and 0 there, and nothing else counts.
    """
    gradients = torch.tensor([[[1.0, 0], [1, 1]], [[0, 2], [2, 2]], [[1, 0], [0, 0]]])
    found = attribution_similarity(gradients)
    np.testing.assert_allclose(found, [[1, 0.5, 1], [0.5, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("similarity", [rsa, linear_cka, attribution_similarity])
def test_the_order_of_tasks_does_not_matter(similarity: object) -> None:
    assert callable(similarity)
    features = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(similarity(features[order]), similarity(features)[order][:, order])
