"""Gradient aggregation: fills `.grad` of the parameters from the losses of K tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl.optim.gradients import per_task_gradients
from mtrl.registry import register
from mtrl.types import ONE_PROCESS, Metrics, Ranks


class Aggregation(nn.Module):
    """Base of all aggregations."""

    ranks: Ranks = ONE_PROCESS
    """Whose gradients are added up before tasks are combined."""

    def backward(
        self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter], task: Int[Tensor, "*samples"]
    ) -> Metrics:
        """Fills `.grad` with the gradient of the joint batch and returns diagnostics.

        Args:
            losses: Loss k depends on samples of task k only. See `Ranks.joint`.
            task: Task of each sample, in the order in which networks hold their samples.
        """
        raise NotImplementedError


@register("aggregation", "sum")
class Sum(Aggregation):
    """Gradient of the sum of the losses: one ordinary backward pass.

    Use it to repeat work that adds losses up. The gradient grows with K, and so does the effect of
    `agent.max_grad_norm`.
    """

    def backward(
        self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter], task: Int[Tensor, "*samples"]
    ) -> Metrics:
        """Fills `.grad`; there are no diagnostics."""
        losses.sum().backward()
        self.ranks.sum_gradients(parameters)
        return {}


@register("aggregation", "mean")
class Mean(Aggregation):
    """Gradient of the mean of the losses, so that clipping and Adam's epsilon have the same meaning for any K.

    Use it first: it costs nothing, and the others are compared with it.
    """

    def backward(
        self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter], task: Int[Tensor, "*samples"]
    ) -> Metrics:
        """Fills `.grad`; there are no diagnostics."""
        losses.mean().backward()
        self.ranks.sum_gradients(parameters)
        return {}


class JacobianAggregation(Aggregation):
    """Base of the methods that combine per-task gradients: a subclass implements only `combine`.

    `combine` gets the gradients of the parameters that tasks share. Parameters whose rows belong to one task each
    (`is_per_task`, such as those of per-task heads) get the gradient of the mean of the losses. So a method with the
    scale of a mean equals `mean` in every parameter while it has nothing to change.
    """

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        """The common direction of K gradients."""
        raise NotImplementedError

    def backward(
        self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter], task: Int[Tensor, "*samples"]
    ) -> Metrics:
        """Fills `.grad` and returns the diagnostics of the shared parameters."""
        shared, per_task = shared_and_per_task(parameters)
        gradients, gradients_of_sum = per_task_gradients(losses, shared, per_task, task)
        joint = self.ranks.sum_all([*gradients, *gradients_of_sum])
        blocks, gradients_of_sum = [gradient.flatten(1) for gradient in joint[: len(shared)]], joint[len(shared) :]
        gramian = gramian_of(blocks, losses)
        combined = self.ranks.same(self._combine_blocks(blocks, gramian))  # some draw random numbers
        for parameter, gradient in zip(shared, combined, strict=True):
            parameter.grad = gradient.view_as(parameter)
        for parameter, gradient in zip(per_task, gradients_of_sum, strict=True):
            parameter.grad = (gradient / len(losses)).contiguous()  # as torch expects where it accumulates
        return diagnostics(gramian)

    def _combine_blocks(self, blocks: Sequence[Tensor], gramian: Float[Tensor, "K K"]) -> Sequence[Tensor]:
        """`combine` for separate parameters: (K, P_i) to (P_i,)."""
        if not blocks:
            return ()
        combined = self.combine(torch.cat(tuple(blocks), dim=1))
        return combined.split([block.shape[1] for block in blocks])


class GramianAggregation(JacobianAggregation):
    """Base of the methods whose direction is a weighted sum of the gradients: a subclass implements only `weights`."""

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        """Weight of each gradient, from their inner products (float64)."""
        raise NotImplementedError

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        """The weighted sum."""
        (combined,) = self._combine_blocks([jacobian], (jacobian @ jacobian.T).double())
        return combined

    def _combine_blocks(self, blocks: Sequence[Tensor], gramian: Float[Tensor, "K K"]) -> Sequence[Tensor]:
        weights = self.weights(gramian)
        return [weights.to(block.dtype) @ block for block in blocks]


@register("aggregation", "measured_mean")
class MeasuredMean(GramianAggregation):
    """`mean` computed from per-task gradients: the same direction, with their diagnostics.

    Use it to see how much the tasks conflict before you choose a method against it.
    """

    def weights(self, gramian: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
        return torch.full_like(gramian[0], 1 / len(gramian))


def task_norm(
    losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter], task: Int[Tensor, "*samples"], ranks: Ranks
) -> Float[Tensor, " K"]:
    """Norm of the gradient of each loss in the parameters that tasks share; NaN where there is none. Keeps the graph.

    For the arguments see `Aggregation.backward`.
    """
    gradients, _ = per_task_gradients(losses, shared_and_per_task(parameters)[0], [], task)
    gradients = ranks.sum_all(gradients)
    return diagnostics(gramian_of([gradient.flatten(1) for gradient in gradients], losses))["task_norm"]


def shared_and_per_task(parameters: Sequence[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that tasks share, and those whose rows belong to one task each."""
    shared, per_task = ([p for p in parameters if getattr(p, "is_per_task", False) is flag] for flag in (False, True))
    return shared, per_task


def gramian_of(blocks: Sequence[Tensor], losses: Float[Tensor, " K"]) -> Float[Tensor, "K K"]:
    """Inner products (float64) of the K gradients of the losses, which are given as a (K, P_i) block per parameter."""
    gramian = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=losses.device)
    for block in blocks:  # there are none if networks share nothing
        gramian += block @ block.T
    return gramian


def diagnostics(gramian: Float[Tensor, "K K"]) -> Metrics:
    """Norms and cosines of K gradients; NaN for tasks without a gradient.

    `conflict_rate` is the share of pairs with a negative cosine (Yu et al. 2020, definition 1).
    """
    norm = gramian.diagonal().sqrt()
    norm = torch.where(norm > 0, norm, torch.nan)
    cosine = gramian / norm / norm[:, None]
    pairs = ~torch.eye(len(norm), dtype=torch.bool, device=norm.device) & ~cosine.isnan()
    count = pairs.sum().clamp(min=1)
    return {
        "task_norm": norm,
        "cosine": cosine,
        "cosine_mean": cosine.where(pairs, 0).sum() / count,
        "conflict_rate": (pairs & (cosine < 0)).sum() / count,
    }
