"""CAGrad: conflict-averse gradient descent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.optim.aggregation.base import GramianAggregation
from mtrl.optim.aggregation.mgda import min_norm_weights
from mtrl.optim.aggregation.solve import solve_present
from mtrl.registry import register


@register("aggregation", "cagrad")
class CAGrad(GramianAggregation):
    """The direction near the mean gradient that maximises the smallest improvement over all tasks.

    Liu et al., "Conflict-Averse Gradient Descent" (2021): max_d min_i <g_i, d> with |d - g_0| <= c |g_0|, where g_0 is
    the mean of the gradients. c = 0 is `mean`.

    Use it where the task that learns worst matters, and the mean of all should still be what is optimised.

    Differences from the paper and the authors' code:
        1. The dual problem is solved exactly (see `weights_near_mean`).
        2. Tasks without a gradient do not count (no direction improves them).
        3. As in the paper, and unlike the code, not divided by 1 + c^2 or 1 + c.
    """

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        not_negative(c=c)
        self.c = c

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        return solve_present(lambda present: weights_near_mean(present, self.c), gramian)


def weights_near_mean(gramian: np.ndarray, c: float) -> np.ndarray:
    """Weights of d = g_0 + r g_w / |g_w|, r = c |g_0|, with the w that minimises <g_w, g_0> + r |g_w| on the simplex.

    As r |g_w| is the minimum of r (|g_w|^2 / t + t) / 2 over t > 0, attained at t = |g_w|, the problem is convex in
    (w, t). For a given t, w minimises |g_w + (t / r) g_0|: it is the shortest convex combination of the gradients
    shifted by (t / r) g_0. What is left is to find t, where the derivative by t changes its sign.
    """
    uniform = np.full(len(gramian), 1 / len(gramian))
    to_mean = gramian @ uniform  # <g_i, g_0>
    radius = c * np.sqrt(max(uniform @ to_mean, 0.0))
    if radius == 0:
        return uniform

    def solve(t: float) -> np.ndarray:
        shift = t / radius
        shifted = gramian + shift * (to_mean + to_mean[:, None]) + shift**2 * (uniform @ to_mean)
        # A shifted gradient can vanish; its computed norm must not.
        return min_norm_weights(shifted + np.diag(1e-12 * gramian.diagonal()))

    def slope(log_t: float) -> float:
        w = solve(np.exp(log_t))
        return 1 - (w @ gramian @ w) / np.exp(2 * log_t)

    norms = np.sqrt(gramian.diagonal())
    # |g_w| <= max |g_i|. Far below the smallest norm, g_w is zero up to rounding.
    low, high = np.log(1e-4 * norms.min()), np.log(norms.max()) + 1e-3
    log_t = brentq(slope, low, high, xtol=1e-6) if slope(low) < 0 else low
    return uniform + radius / np.exp(log_t) * solve(np.exp(log_t))
