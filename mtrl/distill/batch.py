"""Batches for a student."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl.distill.losses import Kind


@dataclass(frozen=True)
class Labelled:
    """Observations labelled by a teacher, stratified: n samples for each of the K tasks."""

    obs: Shaped[Tensor, "K n *obs"]
    label: Float[Tensor, "K n L"]
    task: Int[Tensor, "K n"]
    kind: Kind
    """Meaning of the labels."""
