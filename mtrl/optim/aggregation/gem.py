"""GEM's projection of the mean gradient."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.optim.aggregation.solve import norms_and_root, solve_present
from mtrl.registry import register


@register("aggregation", "gem")
class GEM(GramianAggregation):
    """The vector nearest to the mean gradient that conflicts with no task's gradient.

    Lopez-Paz & Ranzato, "Gradient Episodic Memory" (2017), equations 8 to 11. There the current task's gradient is
    projected, and the constraints come from memories of past tasks; here all tasks are learned at once.

    Use it where no task may become worse, and the step should otherwise be that of the mean.
    """

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        return solve_present(project_mean, gramian)


def project_mean(gramian: np.ndarray) -> np.ndarray:
    """Weights of the shortest g_0 + sum_i v_i g_i with v >= 0: the dual of the projection (equation 11)."""
    norms, root = norms_and_root(gramian)
    uniform = np.full(len(norms), 1 / len(norms))
    scale = norms.max()
    solution, _ = nnls(root, -root @ (uniform * norms / scale), maxiter=100 * len(norms))
    return uniform + solution * scale / norms
