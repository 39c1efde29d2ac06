"""Maps of tasks: distances that are known are the ones drawn."""

from __future__ import annotations

import numpy as np
import pytest

from mtrl.relate.scaling import classical_scaling, task_map


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("K", [2, 3, 10])
def test_points_in_a_plane_are_found(K: int) -> None:
    given = distances(np.random.default_rng(K).normal(size=(K, 2)))
    found = classical_scaling(given)
    assert found.positions.shape == (K, 2)
    np.testing.assert_allclose(distances(found.positions), given, atol=1e-7)
    np.testing.assert_allclose(found.positions.mean(0), 0, atol=1e-9)
    assert found.share == pytest.approx(1)


def test_what_a_plane_cannot_show() -> None:
    """Four tasks that are equally far apart are the corners of a tetrahedron, with three equal eigenvalues."""
    assert classical_scaling(1 - np.eye(4)).share == pytest.approx(2 / 3)
    assert classical_scaling(np.zeros((3, 3))).share == 1  # there are no differences


def test_cosines_are_of_unit_vectors() -> None:
    """60 degrees are a distance of 1, 120 degrees one of sqrt(3)."""
    found = task_map(np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]]))
    expected = np.array([[0, 1, 3**0.5], [1, 0, 1], [3**0.5, 1, 0]])
    np.testing.assert_allclose(distances(found.positions), expected, atol=1e-7)


def test_both_directions_count() -> None:
    """Of affinities .2 and .6 the mean, .4, lacks .6 to the highest, 1: a squared distance of 1.2."""
    affinity = np.array([[1, 0.2, 1.0], [0.6, 1, 0.4], [1.0, 0.4, 1]])
    expected = np.sqrt([[0, 1.2, 0], [1.2, 0, 1.2], [0, 1.2, 0]])
    np.testing.assert_allclose(distances(task_map(affinity).positions), expected, atol=1e-7)


def test_the_order_of_tasks_does_not_matter() -> None:
    """Not even to the side on which a task is, as of affinities whose best map is unique."""
    rng = np.random.default_rng(0)
    affinity, order = rng.normal(size=(7, 7)), rng.permutation(7)
    one, other = task_map(affinity), task_map(affinity[np.ix_(order, order)])
    np.testing.assert_allclose(other.positions, one.positions[order], atol=1e-9)
    assert other.share == pytest.approx(one.share)
