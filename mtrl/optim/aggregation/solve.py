"""What the methods with an optimisation problem of their own share: small problems, solved on the host by scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def solve_present(solve: Callable[[np.ndarray], np.ndarray], gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Weights from `solve`, which sees the Gramian of the tasks that have a gradient; the others get zero.

    They are multiplied by the share of those tasks, so that weights of 1 / (number of those tasks) become `mean`'s.
    """
    weights = torch.zeros_like(gramian[0])
    present = gramian.diagonal() > 0
    if present.any():
        solution = solve(gramian[present][:, present].cpu().numpy())
        weights[present] = torch.from_numpy(solution).to(weights) * present.double().mean()
    return weights


def norms_and_root(gramian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms (K,) of the gradients, and a (K, K) matrix whose columns have the inner products of the unit gradients.

    Apart, because the norms may differ by many orders of magnitude.
    """
    norms = np.sqrt(gramian.diagonal())
    eigenvalues, vectors = np.linalg.eigh(gramian / norms / norms[:, None])
    return norms, np.sqrt(eigenvalues.clip(min=0))[:, None] * vectors.T
