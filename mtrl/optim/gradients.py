"""Each task's gradient of the shared parameters: from one backward pass where the network allows it, else from K.

The loss of a sample belongs to one task. Where samples meet parameters in a product Y = X M (a linear layer: X and Y
have a row for each sample), task k's gradient of M is therefore the sum of x_n^T g_n over the samples n of task k, with
g_n their rows of the gradient of the *sum* of the losses. So one backward pass yields the g of all tasks, and the
products of all tasks together cost the FLOPs of the ordinary gradient of M (as for the per-sample gradients of
Goodfellow, "Efficient per-example gradient computations", 2015).

The products are found in autograd's graph of the losses. So networks need not know of it, a layer may be used any
number of times, and M may be any function of parameters. Where a shared parameter reaches the losses in a way that is
not known, all gradients come from K backward passes, in one batched call.

A network must keep its samples in their order and apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node


@torch.no_grad()
def per_task_gradients(
    losses: Float[Tensor, " K"],
    shared: Sequence[nn.Parameter],
    own: Sequence[nn.Parameter],
    task: Int[Tensor, "*samples"],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the losses of K tasks.

    Args:
        losses: Loss k depends on samples of task k only.
        shared: Parameters that tasks share.
        own: Parameters whose rows belong to one task each.
        task: Task of each sample, in the order in which networks hold their samples.

    Returns:
        For each shared parameter the K gradients (K, *shape); for each own one the gradient of the sum (*shape).
    """
    uses = _find_uses(losses, shared, task.numel())
    if uses:
        return _from_one_backward(losses, shared, own, uses, _Groups(task.flatten(), len(losses)))
    return _from_many_backwards(losses, shared, own)


def _from_many_backwards(
    losses: Float[Tensor, " K"], shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter]
) -> tuple[list[Tensor], list[Tensor]]:
    basis = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    parameters = [*shared, *own]
    rows = torch.autograd.grad(losses, parameters, basis, is_grads_batched=True, allow_unused=True)
    filled = _fill_in(rows, [p.new_zeros(()).expand(len(losses), *p.shape) for p in parameters])
    return filled[: len(shared)], [row.sum(0) for row in filled[len(shared) :]]


def _from_one_backward(
    losses: Float[Tensor, " K"],
    shared: Sequence[nn.Parameter],
    own: Sequence[nn.Parameter],
    uses: Sequence[_Use],
    groups: _Groups,
) -> tuple[list[Tensor], list[Tensor]]:
    wanted: list[Any] = [*(use.output for use in uses), *own]
    found = torch.autograd.grad(losses, wanted, torch.ones_like(losses), allow_unused=True)  # of the sum
    operands = [use.gradients(g, groups) for use, g in zip(uses, found, strict=False)]
    # From M to the parameters that it is made of: mostly a transposition.
    rows = torch.autograd.grad(
        [use.operand for use in uses], shared, operands, is_grads_batched=True, allow_unused=True
    )
    return (
        _fill_in(rows, [p.new_zeros(()).expand(len(losses), *p.shape) for p in shared]),
        _fill_in(found[len(uses) :], [torch.zeros_like(p) for p in own]),
    )


def _fill_in(gradients: Sequence[Tensor | None], zeros: Sequence[Tensor]) -> list[Tensor]:
    return [zero if gradient is None else gradient for gradient, zero in zip(gradients, zeros, strict=True)]


class _Groups:
    """Gathers the rows of N samples by task: (..., N, F) to (..., K, n, F), n of the task that has most."""

    def __init__(self, task: Int[Tensor, " N"], num_tasks: int) -> None:
        counts = task.bincount(minlength=num_tasks)
        nth = torch.arange(int(counts.max()), device=task.device)
        begin = counts.cumsum(0) - counts
        self.index = task.argsort(stable=True)[(begin[:, None] + nth).clamp(max=len(task) - 1)]
        self.present = (nth < counts[:, None])[..., None]

    def __call__(self, rows: Float[Tensor, "*others N F"]) -> Float[Tensor, "*others K n F"]:
        """The rows of each task; what a task with fewer than n has after its own is arbitrary."""
        return rows[..., self.index, :]


PerTask = Callable[[Tensor, _Groups], Tensor]
"""From the gradient of an operation's output to the K gradients (K, *shape) of one of its operands."""


class _Use(NamedTuple):
    """An operand made of parameters, in an operation in which samples meet it."""

    output: GradientEdge
    operand: GradientEdge
    gradients: PerTask


def _matrix(x: Float[Tensor, "*others N I"]) -> PerTask:
    """Of M in Y = X M."""

    def gradients(g: Float[Tensor, "*others N O"], groups: _Groups) -> Float[Tensor, "K *others I O"]:
        # Computed as (O, I), which is how a linear layer holds it.
        return ((groups(g) * groups.present).mT @ groups(x)).movedim(-3, 0).mT

    return gradients


def _vector(factor: Float[Tensor, "*samples F"] | float = 1.0) -> PerTask:
    """Of b in Y = factor * b + ..., the same b for every sample."""

    def gradients(g: Float[Tensor, "*samples F"], groups: _Groups) -> Float[Tensor, "K F"]:
        return (groups((g * factor).flatten(0, -2)) * groups.present).sum(-2)

    return gradients


def _product(node: Any, place: int, num_samples: int) -> PerTask | None:
    """The gradients of operand `place`, if the operation is known and its rows are the samples."""
    operand, number = node.next_functions[place]
    is_vector = len(operand._input_metadata[number].shape) == 1
    shape = node._input_metadata[0].shape  # of the output
    has_samples = math.prod(shape[:-1]) == num_samples
    match node.name(), place:
        case "AddmmBackward0", 0 if has_samples and is_vector and node._saved_beta == 1:
            return _vector()
        case "AddmmBackward0", 2 if has_samples and node._saved_alpha == 1:  # torch.nn.functional.linear
            return _matrix(node._saved_mat1)
        case "MmBackward0", 1 if has_samples:  # the same without bias
            return _matrix(node._saved_self)
        case "BmmBackward0", 1 if shape[1] == num_samples and (shape[0] == 1 or shape[0] < num_samples):
            return _matrix(node._saved_self)  # stacked layers, torch.einsum; more of them may be the samples themselves
        case "NativeLayerNormBackward0", 1 if has_samples and is_vector:
            return _vector((node._saved_input - node._saved_result1) * node._saved_result2)
        case "NativeLayerNormBackward0", 2 if has_samples and is_vector:
            return _vector()
    return None


def _find_uses(losses: Float[Tensor, " K"], shared: Sequence[nn.Parameter], num_samples: int) -> list[_Use]:
    """Every way in which shared parameters reach the losses; empty if one of them is not known."""
    wanted = {id(parameter) for parameter in shared}
    uses: list[_Use] = []

    def others(node: Node) -> Iterator[Node | None]:
        """Where parameters may still come from, beside the uses."""
        for place, (operand, number) in enumerate(node.next_functions):
            gradients = None if operand is None else _product(node, place, num_samples)
            if operand and gradients and any(_leaf(below) in wanted for below in _nodes(operand, _operands)):
                uses.append(_Use(GradientEdge(node, 0), GradientEdge(operand, number), gradients))
            else:
                yield operand

    if any(_leaf(node) in wanted for node in _nodes(losses.grad_fn, others)):
        return []
    return uses


def _nodes(root: Node | None, operands: Callable[[Node], Iterable[Node | None]]) -> Iterator[Node]:
    """The nodes of a graph, each once."""
    seen: set[Node] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(operands(node))


def _operands(node: Node) -> Iterator[Node | None]:
    return (operand for operand, _ in node.next_functions)


def _leaf(node: Node) -> int:
    """The id of the parameter that the node of a leaf stands for."""
    return id(getattr(node, "variable", None))
