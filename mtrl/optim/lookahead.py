"""What a step on the loss of one task does to the losses of the others."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.types import State

MOMENTUM = ("exp_avg", "momentum_buffer")
"""Of torch's optimisers."""


def lookahead(
    losses: Callable[[], Float[Tensor, " K"]], optimizer: torch.optim.Optimizer, shared: Sequence[nn.Parameter]
) -> Float[Tensor, "K K"]:
    """Z[i, j]: by how much the part of a step that is for task i lowers the loss of task j. NaN without a gradient.

    That is a step on the loss of task i alone, with its weight 1 / K in the mean. Each is taken and taken back:
    parameters and the optimiser's state are as before when it returns, and gradients are cleared. It costs K + 1
    evaluations of the losses and K backward passes.

    Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning" (2021), equation 1.

    Differences from the paper:
        1. Losses are not divided by what they were: those of policies can have either sign.
        2. A step is that of the run's optimiser, at its present learning rate and with the second moments that it has,
           instead of one of gradient descent. Momentum, which comes from the steps before, is left out.

    Args:
        losses: Computes the losses of the K tasks, on the same samples and random numbers each time.
        optimizer: Of these and maybe further parameters.
        shared: The parameters that tasks share. The others stay as they are.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept, state = [parameter.detach().clone() for parameter in parameters], optimizer.state
    before = losses()
    gradients = [
        torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) if shared else ()
        for loss in before / len(before)
    ]
    rows = []
    with torch.no_grad():
        for of_task in gradients:
            optimizer.state = _without_momentum(state, shared)
            optimizer.zero_grad(set_to_none=True)
            for parameter, gradient in zip(shared, of_task, strict=True):
                parameter.grad = gradient
            optimizer.step()
            rows.append(before - losses())
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    optimizer.state = state
    optimizer.zero_grad(set_to_none=True)
    there = [any(bool(gradient.any()) for gradient in of_task if gradient is not None) for of_task in gradients]
    present = torch.tensor(there, device=before.device)
    return torch.where(present[:, None] & present, torch.stack(rows), torch.nan).detach()


def _without_momentum(state: Mapping[Tensor, State], parameters: Sequence[nn.Parameter]) -> defaultdict[Tensor, State]:
    """A copy of an optimiser's state for some parameters."""
    copies: defaultdict[Tensor, State] = defaultdict(dict)
    for parameter in parameters:
        for key, value in state.get(parameter, {}).items():
            copies[parameter][key] = torch.zeros_like(value) if key in MOMENTUM else copy.deepcopy(value)
    return copies
