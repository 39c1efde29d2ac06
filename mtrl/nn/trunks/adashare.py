"""AdaShare: each task chooses which residual blocks it passes through."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import not_negative, positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskTable, linear
from mtrl.nn.trunks.base import RoutedTrunk
from mtrl.registry import register
from mtrl.types import Metrics, TaskContext


@register("trunk", "adashare")
class AdaShare(RoutedTrunk):
    """x <- x + u_l block_l(x), with u_l in {0, 1} chosen by the task (Sun et al., "AdaShare", 2020).

    The two scores of a task for a block, select and skip, become probabilities by a softmax with `temperature`. The
    forward pass uses the likelier choice, the backward pass the probability (straight-through). Tasks start with all
    blocks.

    Use it where tasks need networks of different depth.

    Differences from the paper:
        1. No Gumbel noise: the acting and the learning policy must be the same for correct importance weights.
        2. One stage with a constant temperature; no growing set of blocks, no retraining of the result.

    Args:
        depth: Number of blocks, each of two layers.
        sparsity: Coefficient of the mean log-probability of selecting a block.
        sharing: Coefficient of the mean absolute difference of these probabilities between two tasks, with weights
            falling from 1 for the first block.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 3,
        temperature: float = 1.0,
        sparsity: float = 0.0,
        sharing: float = 0.0,
        diversity: float = 0.0,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__(num_tasks, diversity)
        positive(width=width, depth=depth, temperature=temperature)
        not_negative(sparsity=sparsity, sharing=sharing)
        self.temperature, self.sparsity, self.sharing = temperature, sparsity, sharing
        self.activation = ACTIVATIONS[activation]()
        self.input = linear(features, width, init)
        self.blocks = nn.ModuleList(
            nn.Sequential(self.activation, linear(width, width, init), self.activation, linear(width, width, init))
            for _ in range(depth)
        )
        self.task_input = TaskTable(num_tasks, depth, 2)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = self.input(features)
        select = self._select()[context.task].to(features.dtype)
        chosen = (select >= 0.5).to(select.dtype) + (select - select.detach())
        for block, weight in zip(self.blocks, chosen.unbind(-1), strict=True):
            x = x + weight[..., None] * block(x)
        return self.activation(x)

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        select = self._select()[context.task].to(features.dtype)
        return list(torch.stack([select, 1 - select], dim=-1)[..., None, :].unbind(-3))

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        loss, metrics = super().aux(features, context)
        select = self._select()
        depth = select.shape[1]
        lower_first = 1 - torch.arange(depth, device=select.device) / depth
        unlike = (select[:, None] - select[None]).abs().mean((0, 1))
        regularisers = self.sparsity * select.log().mean() + self.sharing * (lower_first * unlike).mean()
        return loss + regularisers, metrics

    def _select(self) -> Float[Tensor, "K depth"]:
        """Each task's probability of passing through each block."""
        return (self.task_input.weight / self.temperature).softmax(-1)[..., 0]
