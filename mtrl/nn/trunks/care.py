"""CARE: the task's context attends over a mixture of encoders, and is concatenated with their output."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedMLP, linear, mlp
from mtrl.nn.trunks.base import RoutedTrunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "care")
class CARE(RoutedTrunk):
    """Contextual attention over encoders (Sodhani et al., "Multi-Task RL with Context-based Representations", 2021).

    z_context = MLP(task embedding), encoders z_i = f_i(s), weights softmax(MLP(z_context) / temperature), and an MLP of
    `depth` layers on [sum_i weight_i z_i, z_context].

    Use it with an embedding that says how tasks are related: `task_encoder=language`.

    Differences from the paper:
        1. The task embedding is that of `task_encoder`; in the paper a sentence encoder embeds a description of the
           task. (There, CARE's advantage over a plain mixture comes from the descriptions.)
        2. The attention does not backpropagate into z_context (detached), as in the authors' code.

    Args:
        experts: k, number of encoders; published 6 for MT10, 10 for MT50.
        embedding: Size of z_context, of z_i and of the hidden layers before them.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        num_tasks: int,
        width: int = 400,
        depth: int = 3,
        experts: int = 6,
        embedding: int = 50,
        temperature: float = 1.0,
        diversity: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__(num_tasks, diversity)
        positive(width=width, depth=depth, experts=experts, embedding=embedding, temperature=temperature)
        self.temperature, self.activation = temperature, ACTIVATIONS[activation]()
        self.experts = StackedMLP(experts, [features, embedding, embedding, embedding], activation, init)
        self.task_input = linear(context, embedding, init, bias=False)
        self.context_encoder = mlp([embedding, embedding, embedding], activation, init)
        self.attention = mlp([embedding, embedding, experts], activation, init)
        self.hidden = nn.Sequential(mlp([2 * embedding] + [width] * depth, activation, init), self.activation)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        z_context = self._context(context, features.dtype)
        encoded = self._attend(z_context) @ self.experts(features)
        return self.hidden(torch.cat([encoded.squeeze(-2), z_context], dim=-1))

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        return [self._attend(self._context(context, features.dtype))]

    def _context(self, context: TaskContext, dtype: torch.dtype) -> Float[Tensor, "*batch C"]:
        return self.context_encoder(self.activation(self.task_input(context.embedding.to(dtype))))

    def _attend(self, z_context: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch 1 n"]:
        return (self.attention(z_context.detach()) / self.temperature).softmax(-1)[..., None, :]
