"""MGDA: multiple-gradient descent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.optim.aggregation.solve import norms_and_root, solve_present
from mtrl.registry import register


@register("aggregation", "mgda")
class MGDA(GramianAggregation):
    """The shortest convex combination of the gradients, which decreases all losses or is zero.

    Désidéri (2012); Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization" (2018), equation 3.

    Use it where no task may become worse. Tasks with short gradients dominate, so they should have losses of one scale.

    Differences from the papers:
        1. Solved exactly, not by Frank-Wolfe.
        2. Tasks without a gradient do not count (with them the shortest combination would be zero).
    """

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        return solve_present(min_norm_weights, gramian)


def min_norm_weights(gramian: np.ndarray) -> np.ndarray:
    """Convex weights w that minimise |sum_i w_i g_i|.

    For v = s w with w on the simplex, |sum_i v_i g_i|^2 + (sum_i v_i - 1)^2 has the minimum q / (1 + q) over s, where
    q = |sum_i w_i g_i|^2. So its minimum over v >= 0, a problem of non-negative least squares, has the direction of the
    w that minimises q. The unknowns are v_i |g_i|.
    """
    norms, root = norms_and_root(gramian)
    inverse = norms.min() / norms
    matrix = np.vstack([root, inverse])
    solution, _ = nnls(matrix, np.append(np.zeros(len(norms)), 1.0), maxiter=100 * len(norms))
    weights = solution * inverse
    return weights / weights.sum()
