"""For the methods that solve an optimisation problem: small problems, solved on the host with scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def solve_present(solve: Callable[[np.ndarray], np.ndarray], gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Weights from `solve`, called with the Gramian of the tasks that have a gradient; other tasks get zero.

    The weights are multiplied by the fraction of tasks with a gradient, so that uniform weights become those of `mean`.
    """
    weights = torch.zeros_like(gramian[0])
    present = gramian.diagonal() > 0
    if present.any():
        solution = solve(gramian[present][:, present].cpu().numpy())
        weights[present] = torch.from_numpy(solution).to(weights) * present.double().mean()
    return weights


def norms_and_root(gramian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms (K,) of the gradients, and a (K, K) matrix whose columns have the inner products of the unit gradients.

    They are separate because the norms may differ by many orders of magnitude.
    """
    norms = np.sqrt(gramian.diagonal())
    eigenvalues, vectors = np.linalg.eigh(gramian / norms / norms[:, None])
    return norms, np.sqrt(eigenvalues.clip(min=0))[:, None] * vectors.T
