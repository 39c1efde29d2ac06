"""Auxiliary losses of the policy: what a learner adds to its own loss, of each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl import per_task
from mtrl.nn.distributions import Distribution
from mtrl.types import Metrics, State


@runtime_checkable
class AuxLoss(Protocol):
    """A loss besides the learner's own, for example the distance to a teacher.

    A class that derives from it gets all that has a value or a body here.
    """

    target_size: int = 0
    """D, the numbers that `targets` gives for a sample."""

    def coefficient(self, progress: float) -> float | Tensor:
        """Its weight, a number or one for each task (K,); `progress` in [0, 1] is the share of training done."""
        ...

    def rl_coefficient(self, progress: float) -> float | Tensor:
        """What the learner's own loss of the policy is multiplied by, likewise. Those of several are multiplied."""
        return 1.0

    def targets(
        self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*samples"], progress: float
    ) -> Float[Tensor, "*samples D"]:
        """What it compares with, for raw observations (*samples, *obs).

        Asked for once in an update, without gradient and outside of what is compiled: however often a sample is then
        learned from, and whatever finds the answer.
        """
        return torch.zeros(*task.shape, 0, device=task.device)

    def __call__(
        self, minibatch: Any, output: Distribution, targets: Float[Tensor, "*samples D"]
    ) -> Float[Tensor, "*samples"]:
        """Of each sample.

        Args:
            minibatch: What the learner takes a step on: has at least `obs`, `action` and `task`, (*samples, ...).
            output: What the policy gives there, with gradients.
            targets: What `targets` gave for these samples.
        """
        ...

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return


def coefficients(
    losses: Mapping[str, AuxLoss], progress: float, num_tasks: int, like: Tensor
) -> Float[Tensor, "{len(losses)+1} K"]:
    """For each task, that of the learner's own loss in the first row, then those of the auxiliary ones.

    A tensor, because a compiled function would be compiled again for another number.
    """
    rows = like.new_ones(len(losses) + 1, num_tasks)

    def on_device(value: float | Tensor) -> float | Tensor:
        return value.to(rows) if isinstance(value, Tensor) else value

    for i, loss in enumerate(losses.values(), start=1):
        rows[0] *= on_device(loss.rl_coefficient(progress))
        rows[i] = on_device(loss.coefficient(progress))
    return rows


@torch.no_grad()
def targets(
    losses: Mapping[str, AuxLoss], obs: Shaped[Tensor, "..."], task: Int[Tensor, "*samples"], progress: float
) -> Float[Tensor, "*samples D"]:
    """Of all losses, side by side."""
    none = torch.zeros(*task.shape, 0, device=task.device)
    return torch.cat([none, *(loss.targets(obs, task, progress) for loss in losses.values())], -1)


def added(
    loss: Float[Tensor, "*samples"],
    losses: Mapping[str, AuxLoss],
    coefficients: Float[Tensor, "N K"],
    targets: Float[Tensor, "*samples D"],
    minibatch: Any,
    output: Distribution,
) -> tuple[Float[Tensor, "*samples"], Metrics]:
    """A learner's own loss of each sample and the auxiliary ones, each times its coefficient for the sample's task.

    Returns:
        The sum; and what to log of each task: every auxiliary loss by its name (mean over the samples), and the
        coefficients.
    """
    task, num_tasks = minibatch.task, coefficients.shape[1]
    total = coefficients[0][task] * loss
    metrics = {"aux/rl_coefficient": coefficients[0]} if losses else {}
    own_targets = targets.split([aux.target_size for aux in losses.values()], -1)
    for i, ((name, aux), target) in enumerate(zip(losses.items(), own_targets, strict=True), start=1):
        value = aux(minibatch, output, target)
        total = total + coefficients[i][task] * value
        metrics[f"aux/{name}_loss"] = per_task.mean(value.detach(), task, num_tasks)
        metrics[f"aux/{name}_coefficient"] = coefficients[i]
    return total, metrics
