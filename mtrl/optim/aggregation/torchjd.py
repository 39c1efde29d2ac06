"""Every aggregator of TorchJD."""

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

    Its scale is TorchJD's: UPGrad, DualProj, MGDA and CAGrad are on that of a mean; PCGrad, GradVac and Sum are on that
    of a sum. The state of the few that have one is not saved: it begins anew when a run resumes.

    Tasks without a gradient are left out, so that a mean is one over the tasks that are there. Aggregators that take
    only as many gradients as they were made for (with a number for each task, with a state, `Krum`) see zeros instead.

    Args:
        aggregator: Name of the class ("UPGrad").
        options: Its arguments; lists become tensors, and `n_tasks` is known.
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
        self._aggregate = [made]  # in a list: no submodule, whose buffers come and go
        self._leaves_out = not hasattr(made, "reset") and takes_one_row(made)

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        (aggregate,) = self._aggregate
        rows = jacobian[jacobian.any(1)] if self._leaves_out else jacobian
        return aggregate(rows) if len(rows) else jacobian.sum(0)

    def _load_from_state_dict(self, *others: Any) -> None:
        super()._load_from_state_dict(*others)
        (aggregate,) = self._aggregate
        if hasattr(aggregate, "reset"):  # TorchJD's name for what begins the state anew
            aggregate.reset()


def takes_one_row(aggregate: Callable[[Tensor], Tensor]) -> bool:
    """Whether an aggregator takes any number of gradients. TorchJD does not say, but for its errors."""
    try:
        with torch.random.fork_rng(devices=[]):  # some draw
            aggregate(torch.ones(1, 1))
    except ValueError:
        return False
    return True
