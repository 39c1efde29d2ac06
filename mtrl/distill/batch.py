"""What a student learns from."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl.distill.losses import Kind


@dataclass(frozen=True)
class Labelled:
    """Observations with what a teacher says to them, stratified: n samples for each of the K tasks."""

    obs: Shaped[Tensor, "K n *obs"]
    label: Float[Tensor, "K n L"]
    task: Int[Tensor, "K n"]
    kind: Kind
    """What the labels mean."""
