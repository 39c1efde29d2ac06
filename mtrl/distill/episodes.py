"""Which episodes a student learns from: all of them, or the successful ones."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mtrl.data.experience import Samples
from mtrl.data.replay import Columns
from mtrl.types import State, Step


class AllEpisodes:
    """Every sample is passed on at once."""

    def pass_on(self, task: Int[Tensor, " B"], columns: dict[str, Shaped[Tensor, "B ..."]], step: Step) -> Samples:
        """The samples to learn from from now on.

        Args:
            task: Task of each slot.
            columns: The samples of the step, one of each slot.
            step: What followed them.
        """
        return [(task, columns)]

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return


class SuccessfulEpisodes(AllEpisodes):
    """Holds the samples of running episodes back. When one ends, they are passed on if it succeeded at any step.

    Asks in each step whether an episode has ended, and so waits for an accelerator.

    Args:
        longest: Steps of the longest episode: so many samples of each slot have memory from the beginning.
    """

    def __init__(self, num_envs: int, longest: int, columns: Columns, device: torch.device | str) -> None:
        self._held = {
            name: torch.zeros(num_envs, longest, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in columns.items()
        }
        self._slots = torch.arange(num_envs, device=device)
        self._length = torch.zeros_like(self._slots)
        self._succeeded = torch.zeros_like(self._slots, dtype=torch.bool)

    def pass_on(self, task: Int[Tensor, " B"], columns: dict[str, Shaped[Tensor, "B ..."]], step: Step) -> Samples:
        for name, held in self._held.items():
            held[self._slots, self._length] = columns[name].to(held)
        done = step.done.to(task.device)
        self._length = self._length + 1
        self._succeeded = self._succeeded | step.success.to(task.device)
        passed: Samples = []
        for slot in (done & self._succeeded).nonzero().flatten().tolist():
            n = int(self._length[slot])
            passed.append((task[slot].expand(n), {name: held[slot, :n] for name, held in self._held.items()}))
        self._length = self._length.masked_fill(done, 0)
        self._succeeded = self._succeeded & ~done
        return passed

    def state_dict(self) -> State:
        longest = int(self._length.max())
        held = {name: column[:, :longest] for name, column in self._held.items()}
        return {"running": {"held": held, "length": self._length, "succeeded": self._succeeded}}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if there are not as many samples as steps."""
        held, length = state["running"]["held"], state["running"]["length"]
        longest = int(length.max())
        if int(length.min()) < 0 or any(column.shape[1] != longest for column in held.values()):
            raise ValueError(f"running: expected {longest} samples of each slot, as `length` says")
        for name, column in held.items():
            self._held[name][:, :longest] = column.to(self._held[name])
        self._length = length.to(self._slots)
        self._succeeded = state["running"]["succeeded"].to(self._slots.device)
