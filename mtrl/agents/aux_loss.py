"""Auxiliary losses of the policy: per-sample terms that a learner adds to its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl import per_task
from mtrl.nn.distributions import Distribution
from mtrl.nn.networks import PolicyNetwork
from mtrl.types import Metrics, State


@runtime_checkable
class AuxLoss(Protocol):
    """A loss in addition to the learner's, for example the distance to a teacher.

    Subclasses inherit the attributes that have a value and the methods that have a body.
    """

    target_size: int = 0
    """D, the size of a sample's targets."""

    def check(self, policy: PolicyNetwork) -> None:
        """Raises `UserError` if it cannot be a loss of this policy. Called once, when the learner has been built."""
        return

    def coefficient(self, progress: float) -> float | Tensor:
        """Weight of the loss, a number or one per task (K,); `progress` in [0, 1] is the fraction of training done."""
        ...

    def rl_coefficient(self, progress: float) -> float | Tensor:
        """Factor of the learner's policy loss, a number or one per task (K,). Factors of several losses multiply."""
        return 1.0

    def targets(
        self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*samples"], progress: float
    ) -> Float[Tensor, "*samples D"]:
        """Targets of the loss for raw observations (*samples, *obs).

        Called once per update, without gradient and outside of compiled functions. It may therefore run any code, and
        its cost does not depend on how often a sample is learned from.
        """
        return torch.zeros(*task.shape, 0, device=task.device)

    def __call__(
        self, minibatch: Any, output: Distribution, targets: Float[Tensor, "*samples D"]
    ) -> Float[Tensor, "*samples"]:
        """Loss of each sample.

        Args:
            minibatch: The learner's minibatch, which has at least `obs`, `action` and `task`, (*samples, ...).
            output: Output of the policy for the minibatch, with gradients.
            targets: Output of `targets` for these samples.
        """
        ...

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return


def coefficients(
    losses: Mapping[str, AuxLoss], progress: float, num_tasks: int, like: Tensor
) -> Float[Tensor, "{len(losses)+1} K"]:
    """Coefficients per task: of the learner's policy loss in the first row, of the auxiliary losses in the others.

    Returned as a tensor, because a compiled function is recompiled when a number changes.
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
    """Concatenates the targets of all losses along the last axis."""
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
    """Adds the auxiliary losses to a learner's loss of each sample, weighted by the coefficients of the sample's task.

    Returns:
        The weighted sum of each sample; and metrics per task: each auxiliary loss by name (mean over its samples), and
        the coefficients.
    """
    task, num_tasks = minibatch.task, coefficients.shape[1]
    total = coefficients[0][task] * loss
    metrics = {"aux/rl_coefficient": coefficients[0]} if losses else {}
    targets_by_loss = targets.split([aux.target_size for aux in losses.values()], -1)
    for i, ((name, aux), target) in enumerate(zip(losses.items(), targets_by_loss, strict=True), start=1):
        value = aux(minibatch, output, target)
        total = total + coefficients[i][task] * value
        metrics[f"aux/{name}_loss"] = per_task.mean(value.detach(), task, num_tasks)
        metrics[f"aux/{name}_coefficient"] = coefficients[i]
    return total, metrics
