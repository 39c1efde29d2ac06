"""Base classes of the trunks, which return features, and optionally losses and diagnostics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl import per_task
from mtrl.checks import not_negative
from mtrl.nn.precision import MixedPrecision
from mtrl.types import Metrics, TaskContext


class Trunk(MixedPrecision):
    """Base of the trunks.

    Parameters that depend on the number of tasks are in submodules called `task_input`, so that the others can be
    transferred to other tasks (`init_from_parts=[trunk]`). An `nn.Linear` in them reads the task embedding; any other
    module with per-task values declares them (`TaskAxes`).

    Args:
        width: Units of a hidden layer.
        depth: Number of hidden layers, of each network if there are several.
        activation: Of the hidden layers: relu, tanh, ...
        init: Initial weights: orthogonal (gain sqrt(2)) or he_uniform, with biases 0.
        temperature: Of a softmax over modules: below 1, it is closer to a choice.
    """

    out_features: int
    """H, the size of the output."""
    reads_task: bool = True
    """Whether the output depends on the task's id directly, not only through the embedding."""
    reads_embedding: bool = True
    """Whether the output depends on the task's embedding."""

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        raise NotImplementedError

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        """A loss that belongs to no task, and diagnostics, for a batch of at least one axis.

        A diagnostic is a scalar or one value per task, NaN for a task that is not in the batch.
        """
        return features.new_zeros(()), {}


class RoutedTrunk(Trunk):
    """Base of the trunks that mix modules with weights that sum to 1: a subclass implements `routing` and `forward`.

    Logs for each task the usage of each module and the entropy of the weights.

    Args:
        diversity: Coefficient of a loss that rewards mutual information between task and module, H(mean over tasks of
            p_k) - mean over tasks of H(p_k), averaged over layers: all modules are used, but each task prefers a few
            (Chen et al., "Mod-Squad", 2023, with uniform task probabilities).
    """

    def __init__(self, num_tasks: int, diversity: float) -> None:
        super().__init__()
        not_negative(diversity=diversity)
        self.num_tasks, self.diversity = num_tasks, diversity

    def routing(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> list[Float[Tensor, "*batch m n"]]:
        """For each layer, the weights of its n modules in each of m mixtures."""
        raise NotImplementedError

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.diversity > 0):
            layers = self.routing(features, context)
        entropies = torch.stack([entropy(weights).mean(-1) for weights in layers], dim=-1).detach()
        metrics = {"routing_entropy": per_task.mean_rows(entropies, context.task, self.num_tasks).mean(1)}
        information = features.new_zeros(())
        for i, weights in enumerate(layers):
            usage = per_task.mean_rows(weights.mean(-2), context.task, self.num_tasks)
            metrics |= columns(f"routing_{i}", usage.detach())
            present = (~usage[:, 0].isnan()).to(usage.dtype)
            share, usage = present / present.sum(), usage.nan_to_num()
            information = information + entropy(share @ usage) - share @ entropy(usage)
        return -self.diversity * information / len(layers), metrics


def entropy(probabilities: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats, with a finite gradient at probability zero."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(-1)


def columns(name: str, table: Float[Tensor, "K n"]) -> Metrics:
    """One diagnostic per column of a table of tasks."""
    return {f"{name}_{i}": column for i, column in enumerate(table.unbind(1))}
