"""Groups of tasks to train together, from affinities between tasks.

An affinity (K, K) says in row i and column j what task i is worth for task j. The *value* of a group is what its tasks
get from one another: the sum over its tasks of the mean affinity of the others to it, as in Fifty et al. (2021). A task
on its own gets 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import qr
from scipy.spatial.distance import squareform

MOST_EXACT = 12
"""Tasks up to which all partitions are compared."""

Partition = list[list[int]]
"""Each task in one group. Tasks of a group, and groups by their first task, are in ascending order."""


def value(affinity: np.ndarray, group: Sequence[int]) -> float:
    """What the tasks of a group get from one another."""
    if len(group) < 2:
        return 0.0
    inside = affinity[np.ix_(group, group)]
    return float((inside.sum() - inside.trace()) / (len(group) - 1))


def total(affinity: np.ndarray, partition: Partition) -> float:
    """The sum of the groups' values."""
    return sum(value(affinity, group) for group in partition)


def best_partition(affinity: np.ndarray, most: int) -> Partition:
    """The best partition into at most `most` groups: the exact one of few tasks, else that of a greedy search."""
    return exact_partition(affinity, most) if len(affinity) <= MOST_EXACT else greedy_partition(affinity, most)


def exact_partition(affinity: np.ndarray, most: int) -> Partition:
    """The partition of the highest total among all with at most `most` groups.

    As Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?" (2020), within a budget of
    `most` networks; here no task is in two. Dynamic programming over subsets, in O(3^K most).
    """
    K = len(affinity)

    def members(subset: int) -> list[int]:
        return [task for task in range(K) if subset >> task & 1]

    values = [value(affinity, members(subset)) for subset in range(1 << K)]

    @cache
    def best(subset: int, groups: int) -> tuple[float, tuple[int, ...]]:
        """The highest total of a subset in at most some groups, and these, as bits."""
        if not subset:
            return 0.0, ()
        if groups == 1:
            return values[subset], (subset,)
        first = subset & -subset  # its group is chosen here, so that no partition comes up twice
        without_first = rest = subset ^ first
        best_split: tuple[float, tuple[int, ...]] = (-np.inf, ())
        while True:
            score, further = best(without_first ^ rest, groups - 1)
            score += values[first | rest]
            if score > best_split[0]:
                best_split = score, (first | rest, *further)
            if not rest:
                return best_split
            rest = (rest - 1) & without_first

    return [members(group) for group in best((1 << K) - 1, most)[1]]


def greedy_partition(affinity: np.ndarray, most: int) -> Partition:
    """A good partition into at most `most` groups, for many tasks.

    Merges the pair of groups that gains most until there are few enough, then moves single tasks while that gains.
    """
    pair = affinity + affinity.T
    groups = [[task] for task in range(len(pair))]
    between, inside, size = pair.copy(), np.zeros(len(pair)), np.ones(len(pair))
    while len(groups) > 1:
        merged = (inside[:, None] + inside + between) / (size[:, None] + size - 1)
        mean_inside = inside / np.maximum(size - 1, 1)
        gain = merged - mean_inside[:, None] - mean_inside
        np.fill_diagonal(gain, -np.inf)
        i, j = sorted(np.unravel_index(gain.argmax(), gain.shape))
        if len(groups) <= most and gain[i, j] <= 0:
            break
        inside[i] += inside[j] + between[i, j]
        size[i] += size[j]
        between[i] += between[j]
        between[:, i] = between[i]
        groups[i] += groups.pop(j)
        inside, size = np.delete(inside, j), np.delete(size, j)
        between = np.delete(np.delete(between, j, 0), j, 1)
    return _ordered(_refined(pair, groups, most))


def _refined(pair: np.ndarray, groups: Partition, most: int) -> Partition:
    """Moves single tasks to other groups, or into a new one, while the total rises."""
    tasks, places = np.arange(len(pair)), np.zeros(len(pair), dtype=int)
    for place, group in enumerate(groups):
        places[group] = place
    pair = pair * (1 - np.eye(len(pair)))
    while True:
        member = np.eye(most)[places]
        size, to = member.sum(0), pair @ member  # of a task to a group
        inside = (to * member).sum(0) / 2
        values = inside / np.maximum(size - 1, 1)
        left = (inside[places] - to[tasks, places]) / np.maximum(size[places] - 2, 1)
        gain = (inside + to) / np.maximum(size, 1) - values + (left - values[places])[:, None]
        gain[tasks, places] = 0
        task, place = np.unravel_index(gain.argmax(), gain.shape)
        if gain[task, place] < 1e-9:
            return [np.flatnonzero(places == place).tolist() for place in np.unique(places)]
        places[task] = place


def dendrogram(affinity: np.ndarray) -> np.ndarray:
    """Average-linkage tree of the tasks, as scipy's linkage (K - 1, 4), by the mean of both directions."""
    symmetric = (affinity + affinity.T) / 2
    distance = symmetric.max() - symmetric
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance, checks=False), "average")


def agglomerative_partition(affinity: np.ndarray, groups: int) -> Partition:
    """At most `groups` groups, cut from the `dendrogram`."""
    labels = fcluster(dendrogram(affinity), groups, "maxclust")
    return _ordered([np.flatnonzero(labels == label).tolist() for label in np.unique(labels)])


def spectral_partition(affinity: np.ndarray, groups: int) -> Partition:
    """At most `groups` groups, from the first eigenvectors of the normalised affinities.

    Affinities count by the mean of both directions, and from the lowest of a pair upwards. Tasks are assigned without
    random numbers, by a rotation of the eigenvectors (Damle et al., "Simple, direct and efficient multi-way spectral
    clustering", 2019), as with `assign_labels="cluster_qr"` in scikit-learn.
    """
    weights = (affinity + affinity.T) / 2
    weights = weights - weights[~np.eye(len(weights), dtype=bool)].min(initial=np.inf)
    np.fill_diagonal(weights, 0)
    scale = 1 / np.sqrt(weights.sum(1).clip(1e-12))
    vectors = np.linalg.eigh(scale[:, None] * weights * scale)[1][:, -groups:] * scale[:, None]
    typical = qr(vectors.T, pivoting=True, mode="r")[1][:groups]  # a task of each group
    left, _, right = np.linalg.svd(vectors[typical].T)
    labels = np.abs(vectors @ left @ right).argmax(1)
    return _ordered([np.flatnonzero(labels == label).tolist() for label in np.unique(labels)])


GROUPINGS: dict[str, Callable[[np.ndarray, int], Partition]] = {
    "best": best_partition,
    "agglomerative": agglomerative_partition,
    "spectral": spectral_partition,
}
"""What makes at most so many groups of affinities, by name."""


def structure_p_value(affinity: np.ndarray, groups: int, draws: int = 199, seed: int = 0) -> float:
    """How likely groups as good as these are if there are none: the larger p-value of two permutation tests.

    Each is the share of draws whose `agglomerative_partition` is at least as good as that of the affinities, themselves
    included. The first rearranges the affinities of pairs: without groups, every arrangement of the same numbers is as
    likely. Points in few dimensions are not arranged like that even if there are no groups. So similarities (symmetric,
    with 1 on the diagonal) are also compared with those of points that are rotated at random about their mean:
    without groups, the points come from one Gaussian of any shape (Langsrud, "Rotation tests", 2005).
    """

    def score_of(values: np.ndarray) -> float:
        return total(values, agglomerative_partition(values, groups))

    rng, observed = np.random.default_rng(seed), score_of(affinity)
    is_similarity = np.allclose(affinity, affinity.T) and np.allclose(affinity.diagonal(), 1)
    p_values = []
    for draw in (rearranged, rotated) if is_similarity else (rearranged,):
        as_good = sum(score_of(draw(affinity, rng)) >= observed - 1e-9 for _ in range(draws))
        p_values.append((1 + as_good) / (1 + draws))
    return max(p_values)


def rearranged(affinity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The affinities of pairs in another order, both directions of a pair together."""
    one, other = np.triu_indices(len(affinity), 1)
    drawn, order = affinity.copy(), rng.permutation(len(one))
    drawn[one, other], drawn[other, one] = affinity[one, other][order], affinity[other, one][order]
    return drawn


def rotated(similarity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The similarities of points with those cosines, mixed by a random rotation that keeps their mean and spread."""
    K = len(similarity)
    eigenvalues, eigenvectors = np.linalg.eigh(similarity)
    points = eigenvectors * np.sqrt(eigenvalues.clip(0))
    mean = points.mean(0)
    ones_first = np.linalg.qr(np.concatenate([np.ones((K, 1)), np.eye(K)[:, 1:]], 1))[0]
    without_mean = ones_first[:, 1:]
    rotation, upper = np.linalg.qr(rng.normal(size=(K - 1, K - 1)))
    rotation = rotation * np.sign(upper.diagonal())  # uniform over all rotations
    points = mean + without_mean @ rotation @ without_mean.T @ (points - mean)
    points = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    return points @ points.T


def _ordered(partition: Partition) -> Partition:
    return sorted(sorted(group) for group in partition)
