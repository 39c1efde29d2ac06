"""How alike tasks are, as matrices (K, K) with 1 on the diagonal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional


def cosine(vectors: Float[Tensor, "K P"]) -> Float[Tensor, "K K"]:
    """Cosines between the vectors of K tasks; 0 with a vector that is zero."""
    unit = functional.normalize(vectors.double(), dim=-1)
    return unit @ unit.T


def low_rank(vectors: Float[Tensor, "K P"], share: float = 0.9) -> Float[Tensor, "K R"]:
    """Where the vectors of K tasks are in the R directions in which they differ most, from their mean.

    R is the smallest number of directions with this share of their variance. That the predictors of related tasks
    differ in few directions is the assumption of Ando and Zhang, "A Framework for Learning Predictive Structures from
    Multiple Tasks and Unlabeled Data" (2005); that they form clusters, of Jacob et al., "Clustered Multi-Task
    Learning" (2008).
    """
    centred = vectors.double() - vectors.double().mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = sizes.square().cumsum(0)
    rank = int((variance < share * variance[-1]).sum()) + 1
    return (left * sizes)[:, :rank]


def rsa(features: Float[Tensor, "K N H"]) -> Float[Tensor, "K K"]:
    """Representation similarity analysis of the features in which K tasks see the same N observations.

    For each task, the N (N - 1) / 2 dissimilarities of observations, 1 - Pearson's correlation of their features; then
    Spearman's correlation of these between tasks (Dwivedi and Roig, "Representation Similarity Analysis for Efficient
    Task Taxonomy & Transfer Learning", 2019). The correlation with constant features counts as 0.
    """
    N = features.shape[1]
    of_units = features.double() - features.double().mean(-1, keepdim=True)
    unit = functional.normalize(of_units, dim=-1)
    one, other = torch.triu_indices(N, N, offset=1)
    dissimilarity = 1 - (unit @ unit.mT)[:, one, other]
    # Rounding would make differences of what is equal, and ranks would magnify them.
    ranks = torch.from_numpy(rankdata(dissimilarity.cpu().numpy().round(9), axis=1))
    return cosine(ranks - ranks.mean(1, keepdim=True))


def linear_cka(features: Float[Tensor, "K N H"]) -> Float[Tensor, "K K"]:
    """Linear centred kernel alignment of the features in which K tasks see the same N observations.

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), section 3. It does not change if
    features are rotated or scaled. With few observations for the number of features it is biased towards 1.
    """
    centred = features.double() - features.double().mean(1, keepdim=True)
    return cosine((centred @ centred.mT).flatten(1)).cpu()


def attribution_similarity(gradients: Float[Tensor, "K N P"]) -> Float[Tensor, "K K"]:
    """Mean over observations of the cosine between the input gradients of two tasks.

    Song et al., "Deep Model Transferability from Attribution Maps" (2019), with saliency as the attribution. An
    observation without a gradient in one of the tasks does not count; NaN if there are no others.
    """
    unit = functional.normalize(gradients.double(), dim=-1)
    there = (gradients != 0).any(-1).double()
    return (torch.einsum("inp,jnp->ij", unit, unit) / (there @ there.T)).cpu()
