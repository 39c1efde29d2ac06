"""MOORE: experts whose outputs are orthogonalised for every sample, and mixed with weights of the task."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mtrl import per_task
from mtrl.checks import positive
from mtrl.nn.layers import Activation, Init, StackedMLP, linear
from mtrl.nn.trunks.base import Trunk, columns
from mtrl.registry import register
from mtrl.types import Metrics, TaskContext


@register("trunk", "moore")
class Moore(Trunk):
    """Mixture of k orthogonal experts (Hendawy et al., "Multi-Task RL with Mixture of Orthogonal Experts", 2024).

    Experts only get the observation: U = [h_1(s) ... h_k(s)], V = Gram-Schmidt(U), output tanh(V w) with the task's
    weights w. Each expert has `depth` hidden layers and a linear one of `width` outputs. The tanh is that of the
    authors' code for Meta-World.

    Use it where tasks need different features, and experts would otherwise become alike.

    Differences from the paper:
        1. An expert in the span of the previous ones gets a vector of length 0 to 1; the paper would divide by 0.
        2. Initial weights are those of `init`. The authors' code has xavier_uniform with the gain of the next
           activation: the same as he_uniform between layers of equal width, and smaller in an expert's first and last
           layer and in w.

    Args:
        experts: k; published 4 for MT10, 6 for MT50.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        num_tasks: int,
        width: int = 400,
        depth: int = 3,
        experts: int = 4,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, experts=experts)
        if experts > width:
            raise ValueError(f"{experts} experts cannot be orthogonal in {width} dimensions (width).")
        self.num_tasks = num_tasks
        self.experts = StackedMLP(experts, [features] + [width] * (depth + 1), activation, init)
        self.task_input = linear(context, experts, init, bias=False)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        basis = gram_schmidt(self.experts(features))
        weights = self.task_input(context.embedding.to(features.dtype))
        return torch.einsum("...k,...kh->...h", weights, basis).tanh()

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        weights = self.task_input(context.embedding.to(features.dtype)).detach()
        return features.new_zeros(()), columns(
            "expert_weight", per_task.mean_rows(weights, context.task, self.num_tasks)
        )


def gram_schmidt(vectors: Float[Tensor, "*batch k H"]) -> Float[Tensor, "*batch k H"]:
    """Orthonormal vectors by Gram-Schmidt: the i-th is in the span of the first i inputs."""
    basis = functional.normalize(vectors[..., :1, :], dim=-1)
    for i in range(1, vectors.shape[-2]):
        vector = vectors[..., i : i + 1, :]
        rest = vector - vector @ basis.mT @ basis
        basis = torch.cat([basis, functional.normalize(rest, dim=-1)], dim=-2)
    return basis
