"""Cores: the memory of a network, between its torso and its trunks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.registry import register


class Core(nn.Module):
    """Base of the cores. The state at the beginning of an episode is zero."""

    out_features: int
    """H, the size of an output."""
    state_size: int
    """S."""

    def forward(
        self, features: Float[Tensor, "L N F"], is_first: Bool[Tensor, "L N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "L N H"], Float[Tensor, "L N S"]]:
        """Outputs for N sequences of L steps, and the state after each step.

        Args:
            is_first: First steps of episodes: the state before them is replaced by zero.
            state: State before the first step.
        """
        raise NotImplementedError

    def sequences(self, values: Shaped[Tensor, "T B *rest"]) -> Shaped[Tensor, "L N *rest"]:
        """Rearranges a rollout into the sequences that have to be learned from as a whole, as columns."""
        raise NotImplementedError


@register("core", "none")
class NoCore(Core):
    """No memory: S is 0, and every step is a sequence of length 1.

    Use it where an observation says all, or contains its history (stacked frames, `env.history`).
    """

    state_size = 0

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = features

    def forward(
        self, features: Float[Tensor, "L N F"], is_first: Bool[Tensor, "L N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "L N H"], Float[Tensor, "L N S"]]:
        return features, state.expand(len(features), *state.shape)

    def sequences(self, values: Shaped[Tensor, "T B *rest"]) -> Shaped[Tensor, "L N *rest"]:
        return values.flatten(0, 1)[None]


@register("core", "lstm")
class LSTM(Core):
    """A layer of LSTM units. The state is the concatenation of output and cell, S = 2 * width.

    Unrolled from the actor's state at the beginning of the rollout (Espeholt et al. 2018, section 3), which was
    computed by the policy of that time.

    Use it where the past matters and observations do not contain it. `agent=sac` and `distill` have no memory.

    Differences from the paper:
        1. The input is only the features, without the last reward and action.

    Args:
        width: Number of units.
    """

    def __init__(self, features: int, width: int = 256) -> None:
        super().__init__()
        positive(width=width)
        self.cell = nn.LSTMCell(features, width)
        self.out_features, self.state_size = width, 2 * width

    def forward(
        self, features: Float[Tensor, "L N F"], is_first: Bool[Tensor, "L N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "L N H"], Float[Tensor, "L N S"]]:
        states = []
        for x, begins in zip(features, is_first, strict=True):
            hidden, cell = state.masked_fill(begins[:, None], 0).chunk(2, dim=1)
            state = torch.cat(self.cell(x, (hidden, cell)), dim=1)
            states.append(state)
        after = torch.stack(states)
        return after[..., : self.out_features], after

    def sequences(self, values: Shaped[Tensor, "T B *rest"]) -> Shaped[Tensor, "L N *rest"]:
        return values
