"""The aggregators of TorchJD."""

from __future__ import annotations

from collections.abc import Callable
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

    The scale is TorchJD's: that of a mean for UPGrad, DualProj, MGDA and CAGrad, and that of a sum for PCGrad, GradVac
    and Sum. The state of stateful aggregators is not saved and is reset when a run resumes.

    Tasks without a gradient are left out, so that a mean is taken over the other tasks. Aggregators with a fixed number
    of gradients (because of per-task arguments, a state, or `Krum`) get zeros for them instead.

    Use it for methods that are not in this list, such as `UPGrad`, `IMTLG` and `AlignedMTL`.

    Args:
        aggregator: Name of the class ("UPGrad").
        options: Arguments of the class; lists become tensors, and `n_tasks` is filled in.
    """

    def __init__(self, num_tasks: int, aggregator: str, options: dict[str, Any] | None = None) -> None:
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
            made = construct(f"TorchJD's {aggregator}", known[aggregator], tensors, n_tasks=num_tasks)
        except ImportError as error:
            raise UserError(str(error)) from error
        self._aggregate = [made]  # in a list, so that it is no submodule: its buffers come and go
        self._leaves_out = not hasattr(made, "reset") and takes_one_row(made)

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        (aggregate,) = self._aggregate
        rows = jacobian[jacobian.any(1)] if self._leaves_out else jacobian
        return aggregate(rows) if len(rows) else jacobian.sum(0)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        (aggregate,) = self._aggregate
        if hasattr(aggregate, "reset"):  # it has a state
            aggregate.reset()


def takes_one_row(aggregate: Callable[[Tensor], Tensor]) -> bool:
    """Whether an aggregator accepts any number of gradients, which only its errors tell."""
    try:
        with torch.random.fork_rng(devices=[]):  # some aggregators draw random numbers
            aggregate(torch.ones(1, 1))
    except ValueError:
        return False
    return True
