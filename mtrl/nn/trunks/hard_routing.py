"""Hard routing: each module gets its input from one module of the previous layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mtrl.nn.trunks.soft_modules import SoftModules
from mtrl.registry import register


@register("trunk", "hard_routing")
class HardRouting(SoftModules):
    """Soft modularization whose weights are 1 for the likeliest module and 0 for the others.

    The backward pass uses the softmax (straight-through, Bengio et al., 2013).

    Use it to see which task needs which module, with a choice instead of a mixture.

    Differences from routing networks (Rosenbaum et al., 2018):
        1. Straight-through gradients instead of a router trained by reinforcement learning.
        2. The likeliest module is chosen, not a sample: the acting and the learning policy must be the same.
    """

    def _choose(self, logits: Float[Tensor, "*batch mn"]) -> Float[Tensor, "*batch m n"]:
        soft = super()._choose(logits)
        hard = functional.one_hot(soft.argmax(-1), self.modules_per_layer).to(soft.dtype)
        return hard + (soft - soft.detach())
