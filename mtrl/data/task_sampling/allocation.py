"""From the share of each task to the task of each slot."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtrl import per_task


def allocate(probabilities: Float[Tensor, " K"], task: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Next task of each of B slots: on average B p_k slots for task k, with as few changes of task as possible.

    The numbers of slots are drawn by systematic sampling, so that each differs from B p_k by less than 1, and shares
    that are whole numbers of slots are met exactly. A slot keeps its task until the number of its task is used up.
    """
    num_slots = len(task)
    edges = (probabilities.double().cumsum(0) * num_slots).cpu()
    edges[-1] = num_slots
    # The tolerance keeps whole numbers of slots exact despite rounding in the cumulative sum.
    steps = torch.floor(edges + torch.rand((), dtype=torch.float64) + 1e-9).clamp(max=num_slots)
    steps[-1] = num_slots
    quota = torch.diff(steps, prepend=torch.zeros(1, dtype=torch.float64)).long()
    current = task.cpu()
    keep = per_task.rank(current, len(quota)) < quota[current]
    free = quota - per_task.count(current[keep], len(quota))
    following = current.clone()
    following[~keep] = torch.repeat_interleave(torch.arange(len(quota)), free)
    return following.to(task.device)
