"""Piggyback: each task uses the shared weights selected by its binary mask."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, TaskTable, linear, select
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "piggyback")
class Piggyback(Trunk):
    """MLP with weights W * 1[m_task > threshold], straight-through gradients (Mallya et al., "Piggyback", 2018).

    All K masked layers are computed for every sample, and that of its task is selected.

    Use it to learn further tasks with a network that was trained on others.

    Differences from the paper:
        1. The shared weights are trained, too; the paper's are pretrained and fixed. (`init_from_parts=[trunk]` loads
           weights that were trained on other tasks.)
        2. Biases are shared, without masks.

    Args:
        threshold: Half of the initial value of the masks, so that every task starts with all weights.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 3,
        threshold: float = 5e-3,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, threshold=threshold)
        self.num_tasks, self.threshold = num_tasks, threshold
        self.activation = ACTIVATIONS[activation]()
        sizes = list(pairwise([features] + [width] * depth))
        self.layers = nn.ModuleList(linear(inputs, outputs, init) for inputs, outputs in sizes)
        self.task_input = nn.ModuleList(
            TaskTable(num_tasks, outputs, inputs, initial=2 * threshold) for inputs, outputs in sizes
        )
        self.out_features = width

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        x = features
        for layer, masks in zip(self.layers, self.task_input, strict=True):
            real = masks.get_parameter("weight")
            binary = (real > self.threshold).to(real.dtype) + (real - real.detach())
            masked = layer.get_parameter("weight") * binary
            every = functional.linear(x, masked.flatten(0, 1)).unflatten(-1, (self.num_tasks, -1))
            x = self.activation(select(every, context.task) + layer.get_parameter("bias"))
        return x
