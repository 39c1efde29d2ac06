"""BroNet: a wide residual MLP with layer normalisation."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import Init, linear
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "bronet")
class BroNet(Trunk):
    """ReLU(LN(W [features, task])), then `depth` blocks x + LN(W_2 ReLU(LN(W_1 x))).

    Nauman et al., "Bigger, Regularized, Optimistic" (2024); with tasks as in Nauman et al., "Bigger,
    Regularized, Categorical" (2025), whose critic has 2 blocks of 4096 units and whose actor 1 of 256.

    Use it for large critics, with `agent=sac`.

    Args:
        depth: Number of blocks.
    """

    reads_task = False

    def __init__(
        self, features: int, context: int, width: int = 512, depth: int = 2, init: Init = "orthogonal"
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        self.input = linear(features, width, init)
        self.task_input = linear(context, width, init, bias=False)
        self.first = nn.Sequential(nn.LayerNorm(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                linear(width, width, init),
                nn.LayerNorm(width),
                nn.ReLU(),
                linear(width, width, init),
                nn.LayerNorm(width),
            )
            for _ in range(depth)
        )
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = self.first(self.input(features) + self.task_input(context.embedding.to(features.dtype)))
        for block in self.blocks:
            x = x + block(x)
        return x
