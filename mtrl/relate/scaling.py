"""A two-dimensional map of tasks, from affinities between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Map(NamedTuple):
    """Where tasks are in a plane."""

    positions: np.ndarray
    """(K, 2), about their mean; the first axis is the one along which they differ most."""
    share: float
    """What the plane shows of the differences, in [0, 1]: the share of its eigenvalues in the sum of their sizes
    (Mardia, "Some properties of classical multi-dimensional scaling", 1978)."""


def task_map(affinity: np.ndarray) -> Map:
    """Tasks with a high affinity (K, K) are close, by the mean of both directions.

    The square of a distance is twice what an affinity lacks to the highest one. So tasks whose affinity is a cosine are
    as far apart as their unit vectors.
    """
    symmetric = (affinity + affinity.T) / 2
    squares = 2 * (symmetric.max() - symmetric)
    np.fill_diagonal(squares, 0)
    return classical_scaling(np.sqrt(squares))


def classical_scaling(distances: np.ndarray) -> Map:
    """The points in a plane whose scalar products are the closest to those of points with these distances (K, K).

    Torgerson, "Multidimensional scaling: I. Theory and method", 1952. Each axis is turned such that the point that is
    farthest out is on its positive side, so that the order of the points does not matter.
    """
    products = -(distances**2) / 2
    products = products - products.mean(0)
    products = products - products.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(products)  # in ascending order
    positions = vectors[:, :-3:-1] * np.sqrt(values[:-3:-1].clip(0))
    positions *= np.where(np.take_along_axis(positions, np.abs(positions).argmax(0)[None], 0) < 0, -1, 1)
    size = np.abs(values).sum()
    return Map(positions, float(values[:-3:-1].clip(0).sum() / size) if size else 1.0)
