"""Cores: what a network remembers of an episode, between its torso and its trunks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.registry import register


class Core(nn.Module):
    """Base of the cores. The state of an episode that begins is zero."""

    out_features: int
    """H, the size of an output."""
    state_size: int
    """S."""

    def forward(
        self, features: Float[Tensor, "L N F"], is_first: Bool[Tensor, "L N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "L N H"], Float[Tensor, "L N S"]]:
        """Outputs for N sequences of L steps, and the state after each step.

        Args:
            is_first: Steps with which an episode begins: the state before them counts as zero.
            state: Before the first step.
        """
        raise NotImplementedError

    def sequences(self, values: Shaped[Tensor, "T B *rest"]) -> Shaped[Tensor, "L N *rest"]:
        """Of a rollout, what has to be learned from together, in columns."""
        raise NotImplementedError


@register("core", "none")
class NoCore(Core):
    """Remembers nothing: S is 0, and every step is a sequence of its own."""

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
    """A layer of LSTM units; the state is the output beside the cell, S = 2 * width.

    Unrolled from the state that the actor had when the rollout began (Espeholt et al. 2018, section 3), which the
    policy of then computed.

    Differences from the paper:
        1. The features only: the last reward and action are not among the inputs.
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
