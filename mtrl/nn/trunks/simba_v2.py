"""SimbaV2: a wide residual network whose weights and features have length 1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.nn.layers import linear
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "simba_v2")
class SimbaV2(Trunk):
    """Hyperspherical residual network (Lee et al., "Hyperspherical Normalization for Scalable Deep RL", 2025).

    With |x| = x / ||x||: h = |s * W |[features, task, shift]||, then `depth` blocks
    h <- |(1 - alpha) h + alpha |W_2 ReLU(s * W_1 h)||, every row of a W having length 1; s and alpha are learned.

    Use it for large networks that should keep learning for long, with `agent=sac`.

    Differences from the paper:
        1. Weights are normalised in the forward pass, not after each optimiser step. (The function is the same, but
           relative step sizes shrink as the stored weights grow.)
        2. Only the trunk is SimbaV2's; heads, rewards and the observation normaliser are those of this suite.

    Args:
        depth: Number of blocks.
        shift: Appended to the input, so that its length is preserved.
        expansion: Size of W_1's output in units of `width`.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        width: int = 512,
        depth: int = 2,
        expansion: int = 4,
        shift: float = 3.0,
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, expansion=expansion, shift=shift)
        self.shift = shift
        self.input = linear(features + 1, width, "orthogonal", bias=False)
        self.task_input = linear(context, width, "orthogonal", bias=False)
        self.scale = nn.Parameter(torch.full((width,), (2 / width) ** 0.5))
        self.blocks = nn.ModuleList(Block(width, expansion, 1 / (depth + 1)) for _ in range(depth))
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        shift = torch.full_like(features[..., :1], self.shift)
        x = torch.cat([features, shift, context.embedding.to(features.dtype)], dim=-1)
        weight = torch.cat([self.input.weight, self.task_input.weight], dim=1)
        h = unit(self.scale * functional.linear(unit(x), unit(weight)))
        for block in self.blocks:
            h = block(h)
        return h


class Block(nn.Module):
    """|(1 - alpha) h + alpha |W_2 ReLU(s * W_1 h)||, with alpha initialised to `initial_alpha`."""

    def __init__(self, width: int, expansion: int, initial_alpha: float) -> None:
        super().__init__()
        hidden = expansion * width
        self.up = linear(width, hidden, "orthogonal", bias=False)
        self.down = linear(hidden, width, "orthogonal", bias=False)
        self.scale = nn.Parameter(torch.full((hidden,), (2 / hidden) ** 0.5))
        # Stored in units in which a step changes it as much as a feature.
        self.alpha = nn.Parameter(torch.full((width,), width**-0.5))
        self.alpha_unit = initial_alpha * width**0.5

    def forward(self, h: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch H"]:
        inner = functional.relu(self.scale * functional.linear(h, unit(self.up.weight)))
        change = unit(functional.linear(inner, unit(self.down.weight)))
        alpha = self.alpha_unit * self.alpha
        return unit((1 - alpha) * h + alpha * change)


def unit(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Vectors of length 1 in the same directions."""
    return functional.normalize(x, dim=-1)
