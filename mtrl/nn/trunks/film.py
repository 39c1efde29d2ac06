"""FiLM: the task scales and shifts the features of each layer."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, linear
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "film")
class FiLM(Trunk):
    """MLP whose layers are modulated: activation(gamma * (W x + b) + beta), gamma = 1 + A z, beta = B z.

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (2018), with gamma around 1
    and the modulation before the activation.

    Use it where the task should act on every layer and cost few parameters.

    Differences from the paper:
        1. The generator is linear in the task embedding z (enough for a one-hot task), and the modulated features are
           not normalised.
    """

    reads_task = False

    def __init__(
        self,
        features: int,
        context: int,
        width: int = 256,
        depth: int = 3,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth)
        self.activation = ACTIVATIONS[activation]()
        self.layers = nn.ModuleList(linear(*sizes, init) for sizes in pairwise([features] + [width] * depth))
        self.task_input = nn.Linear(context, depth * 2 * width, bias=False)
        nn.init.normal_(self.task_input.weight, std=0.1)
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        modulation = self.task_input(context.embedding.to(features.dtype))
        modulation = modulation.unflatten(-1, (len(self.layers), 2, self.out_features))
        x = features
        for layer, gamma_beta in zip(self.layers, modulation.unbind(-3), strict=True):
            gamma, beta = gamma_beta.unbind(-2)
            x = self.activation((1 + gamma) * layer(x) + beta)
        return x
