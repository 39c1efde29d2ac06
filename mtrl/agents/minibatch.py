"""What the V-trace actor-critic takes a gradient step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mtrl.nn.cores import Core


@dataclass(frozen=True)
class Minibatch:
    """N sequences of L steps, or of L = 1 where the policy has no memory."""

    obs: Shaped[Tensor, "L N *obs"]
    action: Shaped[Tensor, "L N *action"]
    task: Int[Tensor, "L N"]
    log_prob: Float[Tensor, "L N"]
    """Log-probability of the action under the policy at the beginning of the update."""
    target: Float[Tensor, "L N"]
    """Target of the value network, in the units of its output."""
    advantage: Float[Tensor, "L N"]
    chosen: Bool[Tensor, "L N"]
    """Whether a policy chose the action."""
    is_first: Bool[Tensor, "L N"]
    """Whether an episode begins here."""
    core_state: Float[Tensor, "L N S"]
    """Recurrent state; the first row is the state at the beginning of each sequence."""
    aux_targets: Float[Tensor, "L N D"]
    """Targets of the auxiliary losses."""

    def select(self, sequences: Int[Tensor, " n"]) -> Minibatch:
        """Selects some of the sequences."""
        return Minibatch(**{name: tensor[:, sequences] for name, tensor in vars(self).items()})

    def shuffled(self, num: int) -> Iterator[Minibatch]:
        """Yields `num` parts of equal size, in random order. Sequences that are left over are in none."""
        total = self.task.shape[1]
        size = total // num
        order = torch.randperm(total, device=self.task.device)
        for sequences in order[: num * size].view(num, size):
            yield self.select(sequences)


def check_num_minibatches(num: int, core: Core, batch_shape: tuple[int, ...] | None) -> None:
    """Raises `ValueError` if rollouts of this shape (T, B), if it is known, are too small for so many minibatches."""
    if batch_shape is None:
        return
    _, sequences = core.sequences(torch.empty(batch_shape)).shape
    if num > sequences:
        kind = "sequences (one per slot)" if core.state_size else "samples (rollout_length times slots)"
        raise ValueError(f"{num} minibatches cannot be made of {sequences} {kind}.")
