"""Gradient aggregation: fills `.grad` of the parameters from the losses of K tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.registry import register
from mtrl.types import Metrics


class Aggregation(nn.Module):
    """Base of all aggregations."""

    def backward(self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter]) -> Metrics:
        """Fills `.grad` and returns diagnostics."""
        raise NotImplementedError


@register("aggregation", "sum")
class Sum(Aggregation):
    """Gradient of the sum of the losses: one ordinary backward pass."""

    def backward(self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter]) -> Metrics:
        """Fills `.grad` and returns diagnostics."""
        losses.sum().backward()
        return {}


@register("aggregation", "mean")
class Mean(Aggregation):
    """Gradient of the mean of the losses, so that clipping and Adam's epsilon mean the same for any K."""

    def backward(self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter]) -> Metrics:
        """Fills `.grad` and returns diagnostics."""
        losses.mean().backward()
        return {}


class JacobianAggregation(Aggregation):
    """Base of the methods that combine per-task gradients: a subclass gives `combine` only.

    Parameters marked as one task's own (`is_per_task`, the rows of per-task heads) get the sum of the gradients, which
    for them is each task's own; `combine` sees the parameters that tasks share.
    """

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        """The common direction of K gradients."""
        raise NotImplementedError

    def backward(self, losses: Float[Tensor, " K"], parameters: Sequence[nn.Parameter]) -> Metrics:
        """Fills `.grad` and returns diagnostics."""
        basis = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        rows = torch.autograd.grad(
            losses, parameters, basis, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
        shared = [i for i, p in enumerate(parameters) if not getattr(p, "is_per_task", False)]
        jacobian = torch.cat([rows[i].flatten(1) for i in shared], dim=1)
        combined = self.combine(jacobian).split([parameters[i].numel() for i in shared])
        for parameter, row in zip(parameters, rows, strict=True):
            parameter.grad = row.sum(0)
        for i, gradient in zip(shared, combined, strict=True):
            parameters[i].grad = gradient.view_as(parameters[i]).clone()
        return {}
