"""Building blocks of trunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl.types import TaskAxes

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}
Activation = Literal["relu", "tanh", "elu", "silu"]
Init = Literal["orthogonal", "he_uniform"]
"""Initial weights: orthogonal with gain sqrt(2), or those of the published MT-SAC. Biases are zero."""


def initialise(weight: Float[Tensor, "O I"], init: Init) -> None:
    """Initialises the weight of one linear layer."""
    if init == "orthogonal":
        nn.init.orthogonal_(weight, 2**0.5)
    else:
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")


def linear(inputs: int, outputs: int, init: Init, bias: bool = True) -> nn.Linear:
    """A linear layer."""
    layer = nn.Linear(inputs, outputs, bias)
    initialise(layer.weight, init)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes: Sequence[int], activation: Activation, init: Init) -> nn.Sequential:
    """Linear layers from each size to the next, with activations between them but none after the last."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [linear(inputs, outputs, init), ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


class StackedLinear(nn.Module):
    """n parallel linear layers with separate inputs: weight (n, O, I), bias (n, O)."""

    def __init__(self, count: int, inputs: int, outputs: int, init: Init) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(count, outputs))
        for weight in self.weight:
            initialise(weight, init)

    def forward(self, x: Float[Tensor, "*batch n I"]) -> Float[Tensor, "*batch n O"]:
        return torch.einsum("...ni,noi->...no", x, self.weight) + self.bias


class TaskLinear(StackedLinear):
    """One linear layer for each task."""

    task_axes: ClassVar[TaskAxes] = {"weight": (0,), "bias": (0,)}


class StackedMLP(nn.Module):
    """n parallel MLPs on the same input, with activations between their layers but none after the last."""

    def __init__(self, count: int, sizes: Sequence[int], activation: Activation, init: Init) -> None:
        super().__init__()
        self.count = count
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            modules += [StackedLinear(count, inputs, outputs, init), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch n O"]:
        return self.layers(spread(x, self.count))


def spread(x: Float[Tensor, "*batch I"], count: int) -> Float[Tensor, "*batch n I"]:
    """The same features for each of `count` modules."""
    return x[..., None, :].expand(*x.shape[:-1], count, x.shape[-1])


def select(every: Float[Tensor, "*batch n H"], index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch H"]:
    """Selects, for each sample, one of n results (for example that of its task)."""
    expanded = index[..., None, None].expand(*index.shape, 1, every.shape[-1])
    return every.gather(-2, expanded).squeeze(-2)


def mark_per_task(*parameters: nn.Parameter) -> None:
    """Marks parameters whose rows belong to one task each; gradient surgery skips them."""
    for parameter in parameters:
        parameter.is_per_task = True  # type: ignore[attr-defined]


class TaskTable(nn.Module):
    """Parameters of each task: weight (K, *shape), initialised to `initial`."""

    task_axes: ClassVar[TaskAxes] = {"weight": (0,)}

    def __init__(self, num_tasks: int, *shape: int, initial: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_tasks, *shape), initial))
        mark_per_task(self.weight)

    def forward(self, task: Int[Tensor, "*batch"]) -> Float[Tensor, "..."]:
        return self.weight[task]
