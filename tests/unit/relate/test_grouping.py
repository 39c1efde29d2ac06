"""Groups against all partitions there are; planted ones are found, and none are claimed where there are none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mtrl.relate.agreement import agreement
from mtrl.relate.grouping import (
    agglomerative_partition,
    best_partition,
    exact_partition,
    greedy_partition,
    rotated,
    spectral_partition,
    structure_p_value,
    total,
    value,
)
from mtrl.relate.similarity import cosine

SEARCHES = (exact_partition, greedy_partition, agglomerative_partition, spectral_partition)


def all_partitions(tasks: list[int]) -> Iterator[list[list[int]]]:
    if not tasks:
        yield []
        return
    for partition in all_partitions(tasks[1:]):
        yield [[tasks[0]], *partition]
        for i, group in enumerate(partition):
            yield [*partition[:i], [tasks[0], *group], *partition[i + 1 :]]


def vectors(groups: int, size: int, noise: float, seed: int, dim: int = 20) -> np.ndarray:
    """Cosines of tasks in random directions: those of a group differ by noise only."""
    rng = np.random.default_rng(seed)
    directions = np.repeat(rng.normal(size=(groups, dim)), size, 0)
    return cosine(torch.from_numpy(directions + noise * rng.normal(size=directions.shape))).numpy()


def test_value() -> None:
    """Of three tasks: 0 gets (1 + 3) / 2, 1 gets (2 + 5) / 2, 2 gets (4 + 6) / 2."""
    affinity = np.array([[9.0, 2, 4], [1, 9, 6], [3, 5, 9]])
    assert value(affinity, [0, 1, 2]) == 2 + 3.5 + 5
    assert value(affinity, [0, 2]) == 3 + 4
    assert value(affinity, [1]) == 0


@pytest.mark.parametrize("K", [1, 2, 4, 6])
def test_the_exact_partition_is_the_best_of_all(K: int) -> None:
    """52 partitions of five tasks, 203 of six; with affinities of either sign."""
    for seed in range(3):
        affinity = np.random.default_rng(seed).normal(size=(K, K))
        every = [(len(p), total(affinity, p)) for p in all_partitions(list(range(K)))]
        for most in range(1, K + 1):
            best = max(score for count, score in every if count <= most)
            found = exact_partition(affinity, most)
            assert total(affinity, found) == pytest.approx(best)
            assert len(found) <= most
            assert sorted(task for group in found for task in group) == list(range(K))


def test_the_order_of_tasks_does_not_matter() -> None:
    affinity, order = np.random.default_rng(0).normal(size=(7, 7)), [3, 6, 0, 2, 5, 1, 4]
    moved = affinity[np.ix_(order, order)]
    for search in SEARCHES:
        found = search(moved, 3)
        assert sorted(sorted(order[task] for task in group) for group in found) == search(affinity, 3)


@pytest.mark.parametrize("seed", range(10))
def test_planted_groups_are_found(seed: int) -> None:
    """Three groups of three, in any order, by every search; and they are no chance."""
    order = np.random.default_rng(seed).permutation(9)
    planted = sorted(sorted(np.flatnonzero(order // 3 == group).tolist()) for group in range(3))
    similarity = vectors(3, 3, noise=0.5, seed=seed)[np.ix_(order, order)]
    for search in SEARCHES:
        assert search(similarity, 3) == planted
    assert structure_p_value(similarity, 3, draws=19) == 1 / 20


def test_many_tasks() -> None:
    """Beyond what can be compared exhaustively; with at most as many groups as there is a budget for."""
    similarity = vectors(5, 6, noise=0.5, seed=0)
    assert best_partition(similarity, 5) == [list(range(first, first + 6)) for first in range(0, 30, 6)]
    assert len(best_partition(similarity, 3)) == 3


@pytest.mark.parametrize("dim", [2, 200])
def test_no_groups_are_claimed_where_there_are_none(dim: int) -> None:
    """At a level of 1 in 20, of 12 sets of nine random directions at most 3 (p = .002 for a fourth)."""
    p = [structure_p_value(vectors(9, 1, noise=0, seed=seed, dim=dim), 3, draws=19, seed=seed) for seed in range(12)]
    assert sum(value <= 0.05 for value in p) <= 3


def test_affinities_with_a_direction_have_groups_too() -> None:
    rng = np.random.default_rng(0)
    affinity = np.kron(np.eye(3), np.ones((3, 3))) + 0.2 * rng.normal(size=(9, 9))
    assert structure_p_value(affinity, 3, draws=19) == 1 / 20
    assert structure_p_value(rng.normal(size=(9, 9)), 3, draws=19) > 0.05


def test_a_rotation_keeps_the_mean_of_the_points() -> None:
    """Of points on a cone around an axis, cosines with the axis are those of their mean: they stay alike."""
    similarity = 0.9 + 0.1 * vectors(9, 1, noise=0, seed=0)
    drawn = rotated(similarity, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.diagonal(), 1)
    assert not np.allclose(drawn, similarity, atol=0.01)
    assert (drawn - np.eye(9) * 0.1 > 0.7).all()


def test_agreement() -> None:
    """Pairs (1, 2, 3, 4, 5, 6) in one relation and (1, 2, 3, 4, 6, 5) in the other: 1 - 6 * 2 / (6 * 35)."""
    one, other, rows = np.eye(4), np.eye(4), np.triu_indices(4, 1)
    for matrix, numbers in ((one, [1, 2, 3, 4, 5, 6]), (other, [1, 2, 3, 4, 6, 5])):
        matrix[rows] = numbers
        matrix.T[rows] = numbers
    found = agreement(one, other, resamples=200)
    assert found.correlation == pytest.approx(1 - 12 / 210)
    assert found.low <= found.correlation <= found.high
    assert agreement(one, one**3, resamples=50) == pytest.approx((1, 1, 1))
    one[0, 1] = np.nan
    assert agreement(one, one, resamples=50).correlation == pytest.approx(1)
    assert np.isnan(agreement(one, np.ones((4, 4)), resamples=50).correlation)
