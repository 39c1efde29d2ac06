"""Every aggregator of TorchJD."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.optim.aggregation.base import JacobianAggregation
from mtrl.registry import construct, missing_extra, register, unknown
from mtrl.types import UserError


@register("aggregation", "torchjd")
class TorchJD(JacobianAggregation):
    """An aggregator of TorchJD (Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024) by its name.

    Its scale is TorchJD's: UPGrad, DualProj, MGDA and CAGrad are on that of a mean; PCGrad, GradVac and Sum are on that
    of a sum. The state of the few that have one is not saved: it begins anew when a run resumes.

    Args:
        aggregator: Name of the class ("UPGrad").
        options: Its arguments; lists become tensors.
    """

    def __init__(self, aggregator: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        try:
            import torchjd.aggregation as library
        except ImportError as error:
            raise missing_extra("aggregation=torchjd", "TorchJD", "aggregators") from error
        bases = (library.Aggregator, library.WeightedAggregator, library.GramianWeightedAggregator)
        known = {
            name: value
            for name, value in vars(library).items()
            if isinstance(value, type) and issubclass(value, library.Aggregator) and value not in bases
        }
        if aggregator not in known:
            raise UserError(unknown("aggregator of TorchJD:", aggregator, sorted(known)))
        tensors = {
            key: torch.tensor(value) if isinstance(value, list) else value for key, value in (options or {}).items()
        }
        try:
            made = construct(f"TorchJD's {aggregator}", known[aggregator], tensors)
        except ImportError as error:
            raise UserError(str(error)) from error
        self._aggregate = [made]  # in a list: no submodule, whose buffers come and go

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        (aggregate,) = self._aggregate
        return aggregate(jacobian)
