"""Per-task gradients of the shared parameters, from two backward passes if the network allows it, else from K.

The loss of a sample belongs to one task. Where samples meet parameters in a product Y = X M (a linear layer: X and Y
have a row for each sample), task k's gradient of M is therefore the sum of x_n^T g_n over the samples n of task k, with
g_n their rows of the gradient of the *sum* of the losses. So one backward pass to the Y yields the g of all tasks, and
the products of all tasks together cost the FLOPs of the ordinary gradient of M (as for the per-sample gradients of
Goodfellow, "Efficient per-example gradient computations", 2015).

The products are found in autograd's graph of the losses. So networks need no support for this, a layer may be used any
number of times, and M may be any function of parameters. The result is correct if

    1. every path from the losses to a shared parameter passes through the M of exactly one product, and
    2. row n of every Y only affects the loss of sample n's task.

The graph shows the first. It does not show the second: a product may have as many rows as there are samples by chance.
So a second backward pass tests it, in which the loss of each task is multiplied by a different power of two: each g_n
must be multiplied by that of its task, to the last bit, since powers of two do not change rounding.

If either does not hold, the gradients come from K backward passes, in one batched call.
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
    per_task: Sequence[nn.Parameter],
    task: Int[Tensor, "*samples"],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the losses of K tasks.

    Args:
        losses: Loss k depends on samples of task k only.
        shared: Parameters that tasks share.
        per_task: Parameters whose rows belong to one task each.
        task: Task of each sample, in the order in which networks hold their samples.

    Returns:
        For each shared parameter the K gradients (K, *shape); for each per-task one the gradient of the sum (*shape).
    """
    uses = _find_uses(losses, shared, task.numel())
    of_sum = _backward(losses, [*(use.output for use in uses), *per_task], torch.ones_like(losses))
    of_uses, of_per_task = of_sum[: len(uses)], of_sum[len(uses) :]
    if uses and _are_rows_of_samples(uses, of_uses, losses, task.flatten()):
        rows = _from_products(uses, of_uses, shared, _Groups(task.flatten(), len(losses)))
    else:
        rows = _from_many_backwards(losses, shared)
    return (
        _fill_in(rows, [p.new_zeros(()).expand(len(losses), *p.shape) for p in shared]),
        _fill_in(of_per_task, [torch.zeros_like(p) for p in per_task]),
    )


def _from_many_backwards(losses: Float[Tensor, " K"], shared: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    basis = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    return _backward(losses, shared, basis, is_grads_batched=True)


def _from_products(
    uses: Sequence[_Use], of_sum: Sequence[Tensor], shared: Sequence[nn.Parameter], groups: _Groups
) -> Sequence[Tensor | None]:
    operands = [use.operand for use in uses]
    gradients = [use.gradients(g.reshape(use.rows), groups) for use, g in zip(uses, of_sum, strict=True)]
    # From M to the parameters that it is computed from: usually a transposition.
    return torch.autograd.grad(operands, shared, gradients, is_grads_batched=True, allow_unused=True)


def _backward(losses: Float[Tensor, " K"], wanted: Sequence[Any], weights: Tensor, **options: Any) -> Sequence[Any]:
    if not wanted:
        return ()
    return torch.autograd.grad(losses, wanted, weights, retain_graph=True, allow_unused=True, **options)


def _are_rows_of_samples(
    uses: Sequence[_Use], of_sum: Sequence[Tensor], losses: Float[Tensor, " K"], task: Int[Tensor, " N"]
) -> bool:
    """Whether row n of every use only affects the loss of sample n's task.

    Also false for more than 250 tasks, for which the powers of two exceed the range of a float32.
    """
    half = len(losses) // 2
    weights = losses.new_tensor([2.0 ** (k - half) for k in range(len(losses))])
    of_each = weights[task][:, None]
    weighted = _backward(losses, [use.output for use in uses], weights)
    differences = [
        (w.reshape(use.rows) - g.reshape(use.rows) * of_each).abs().amax()
        for use, w, g in zip(uses, weighted, of_sum, strict=True)
    ]
    return bool(torch.stack(differences).amax() < 1e-30)  # subnormal numbers do lose digits


def _fill_in(gradients: Sequence[Tensor | None], zeros: Sequence[Tensor]) -> list[Tensor]:
    return [zero if gradient is None else gradient for gradient, zero in zip(gradients, zeros, strict=True)]


class _Groups:
    """Gathers the rows of N samples by task: (..., N, F) to (..., K, n, F), n the largest number per task."""

    def __init__(self, task: Int[Tensor, " N"], num_tasks: int) -> None:
        counts = task.bincount(minlength=num_tasks)
        nth = torch.arange(int(counts.max()), device=task.device)
        begin = counts.cumsum(0) - counts
        self.index = task.argsort(stable=True)[(begin[:, None] + nth).clamp(max=len(task) - 1)]
        self.present = (nth < counts[:, None])[..., None]

    def __call__(self, rows: Float[Tensor, "*lead N F"]) -> Float[Tensor, "*lead K n F"]:
        """The rows of each task; those of tasks with fewer than n samples are followed by arbitrary ones."""
        return rows[..., self.index, :]


PerTask = Callable[[Tensor, _Groups], Tensor]
"""From the rows of the gradient of a product to the K gradients (K, *shape) of one of its operands."""


class _Use(NamedTuple):
    """A product of samples with an operand that is computed from parameters."""

    output: GradientEdge
    operand: GradientEdge
    rows: tuple[int, ...]
    """Shape (*lead, N, F) of the output, with the samples as rows."""
    gradients: PerTask


def _matrix(x: Float[Tensor, "*lead N I"]) -> PerTask:
    """Gradients of M in Y = X M."""

    def gradients(g: Float[Tensor, "*lead N O"], groups: _Groups) -> Float[Tensor, "K *lead I O"]:
        # Computed as (O, I), the layout of a linear layer's weight.
        return ((groups(g) * groups.present).mT @ groups(x)).movedim(-3, 0).mT

    return gradients


def _elements(shape: Sequence[int]) -> PerTask:
    """Gradients of b in Y = b + ..., element by element, where b has this shape for every sample."""

    def gradients(g: Float[Tensor, "N F"], groups: _Groups) -> Float[Tensor, "K *shape"]:
        return (groups(g) * groups.present).sum(-2).reshape(-1, *shape)

    return gradients


def _scales(node: Any, shape: Sequence[int]) -> PerTask:
    """Gradients of the weight of a LayerNorm."""
    of_product = _elements(shape)

    def gradients(g: Float[Tensor, "N F"], groups: _Groups) -> Float[Tensor, "K *shape"]:
        normalised = (node._saved_input - node._saved_result1) * node._saved_result2
        return of_product(g * normalised.reshape(g.shape), groups)

    return gradients


def _use(node: Any, place: int, num_samples: int) -> _Use | None:
    """Operand `place` of an operation, if the operation is supported and has one row per sample."""
    operand, number = node.next_functions[place]
    if operand is None:
        return None
    shape, operand_shape = node._input_metadata[0].shape, operand._input_metadata[number].shape
    lead = shape[: len(shape) - len(operand_shape)]
    is_same_for_all = math.prod(lead) == num_samples and shape[len(lead) :] == operand_shape
    rows: tuple[int, ...] = (num_samples, -1)
    match node.name(), place:
        case "AddBackward0", _ if is_same_for_all and (place == 0 or node._saved_alpha == 1):
            gradients = _elements(operand_shape)  # the bias of stacked layers
        case "AddmmBackward0", 0 if is_same_for_all and node._saved_beta == 1:
            gradients = _elements(operand_shape)
        case "AddmmBackward0", 2 if shape[0] == num_samples and node._saved_alpha == 1:  # torch.nn.functional.linear
            gradients = _matrix(node._saved_mat1)
        case "MmBackward0", 1 if shape[0] == num_samples:  # linear without bias
            gradients = _matrix(node._saved_self)
        case "BmmBackward0", 1 if shape[1] == num_samples:  # stacked layers, torch.einsum
            rows, gradients = (shape[0], num_samples, -1), _matrix(node._saved_self)
        case "NativeLayerNormBackward0", 1 if is_same_for_all:
            gradients = _scales(node, operand_shape)
        case "NativeLayerNormBackward0", 2 if is_same_for_all:
            gradients = _elements(operand_shape)
        case _:
            return None
    return _Use(GradientEdge(node, 0), GradientEdge(operand, number), rows, gradients)


def _find_uses(losses: Float[Tensor, " K"], shared: Sequence[nn.Parameter], num_samples: int) -> list[_Use]:
    """Every product through which shared parameters affect the losses; empty if one is not supported."""
    wanted = {id(parameter) for parameter in shared}
    uses: list[_Use] = []

    def is_made_of_parameters(operand: Node) -> bool:
        """Also false if it contains another use, whose parameters would count twice."""
        nodes = list(_nodes(operand, _operands))
        return any(_leaf(node) in wanted for node in nodes) and not any(
            _use(node, place, num_samples) for node in nodes for place in range(len(node.next_functions))
        )

    def not_used(node: Node) -> Iterator[Node | None]:
        """Operands that are not uses; collects the uses."""
        for place, (operand, _) in enumerate(node.next_functions):
            use = _use(node, place, num_samples)
            if use and operand and is_made_of_parameters(operand):
                uses.append(use)
            else:
                yield operand

    if any(_leaf(node) in wanted for node in _nodes(losses.grad_fn, not_used)):
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
    """The id of the parameter of a leaf node."""
    return id(getattr(node, "variable", None))
