"""Similarities of tasks by hand, and lookahead affinity against steps that are taken."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtrl.relate.similarity import attribution_similarity, cosine, linear_cka, lookahead_affinity, rsa


def test_cosine() -> None:
    """(3, 4) and (4, 3): 24 / 25; nothing with a zero vector."""
    found = cosine(torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]))
    torch.testing.assert_close(found[:2, :2], torch.tensor([[1, 0.96], [0.96, 1]], dtype=torch.float64))
    assert not found[2].any()


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


def test_lookahead_affinity_is_what_steps_do() -> None:
    """Of a copy that takes the step with an optimiser; the network itself is left as it was."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(2, 6).double()

    def losses(module: nn.Module) -> Tensor:
        return (module(x).T - y).square().mean(1)  # output k is of task k

    shared = list(network[0].parameters())
    before = copy.deepcopy(network.state_dict())
    found = lookahead_affinity(lambda: losses(network), shared, lr=0.1)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    for i in range(2):
        moved = copy.deepcopy(network)
        step = torch.optim.SGD(moved[0].parameters(), lr=0.1)
        losses(moved)[i].backward()
        step.step()
        torch.testing.assert_close(found[i], (1 - losses(moved) / losses(network)).detach())
    assert (found.diagonal() > 0).all()


@pytest.mark.parametrize("similarity", [rsa, linear_cka, attribution_similarity])
def test_the_order_of_tasks_does_not_matter(similarity: object) -> None:
    assert callable(similarity)
    features = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(similarity(features[order]), similarity(features)[order][:, order])
