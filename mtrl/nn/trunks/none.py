"""No trunk: heads work on the features of the torso or core, as in the published networks for Atari."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskContext


@register("trunk", "none")
class NoTrunk(Trunk):
    """Identity. Only heads depend on the task, and those of the policy only with `head: per_task`.

    Use it for games, where the torso does the work: `network=linear`.
    """

    reads_task = False
    reads_embedding = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = features

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        return features
