"""How much of its width a network uses, measured on the features of its last hidden layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mtrl.types import Metrics

MAX_SAMPLES = 512
"""Samples used; the cost of singular values grows with the square of their number."""


def some(samples: Shaped[Tensor, "*batch"], feature_axes: int) -> Shaped[Tensor, "..."]:
    """At most `MAX_SAMPLES` evenly spaced samples, on one axis."""
    flat = samples.flatten(0, -1 - feature_axes)
    index = torch.linspace(0, len(flat) - 1, min(len(flat), MAX_SAMPLES), device=flat.device, dtype=torch.float64)
    return flat[index.long()]


def usage(features: Float[Tensor, "N H"]) -> Metrics:
    """The diagnostics of a layer's features."""
    return {"dormant_ratio": dormant_ratio(features), "effective_rank": effective_rank(features)}


def dormant_ratio(features: Float[Tensor, "N H"], tau: float = 0.025) -> Float[Tensor, ""]:
    """Fraction of the units whose mean magnitude is at most tau times the mean over all units of the layer.

    Sokar et al., "The Dormant Neuron Phenomenon in Deep RL" (2023), definition 1.
    """
    score = features.abs().mean(0)
    return (score <= tau * score.mean()).float().mean()


def effective_rank(features: Float[Tensor, "N H"], delta: float = 0.01) -> Float[Tensor, ""]:
    """Number of the largest singular values that make up 1 - delta of the sum of all; at most min(N, H).

    Kumar et al., "Implicit Under-Parameterization Inhibits Data-Efficient Deep RL" (2021), srank in section 3.
    """
    sums = torch.linalg.svdvals(features).cumsum(0)
    return ((sums < (1 - delta) * sums[-1]).sum() + 1).float()
