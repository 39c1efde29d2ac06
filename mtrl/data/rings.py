"""A ring of samples for each task, in preallocated tensors on the learner's device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mtrl.checks import positive
from mtrl.types import State


class TaskRings:
    """The newest `capacity` samples of each of K tasks.

    Args:
        columns: Shape and dtype of each tensor of a sample.
        capacity: Samples per task.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        columns: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        device: torch.device | str,
    ) -> None:
        positive(capacity=capacity)
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, torch.device(device)
        self._rings = {
            name: torch.zeros(num_tasks, capacity, *shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in columns.items()
        }
        self.added = torch.zeros(num_tasks, dtype=torch.int64, device=self.device)
        """Samples of each task so far, with those that have been overwritten."""

    @property
    def size(self) -> Int[Tensor, " K"]:
        """Samples held for each task."""
        return self.added.clamp(max=self.capacity)

    def add(self, task: Int[Tensor, " B"], samples: Mapping[str, Shaped[Tensor, "B ..."]]) -> None:
        """Stores samples of some tasks, each over its task's oldest. Those of one task keep their order.

        Raises:
            ValueError: One task has more of them than its ring has room for.
        """
        task = task.to(self.device)
        member = torch.nn.functional.one_hot(task, self.num_tasks)
        if len(task) > self.capacity and member.sum(0).max() > self.capacity:
            raise ValueError(f"More samples of one task than its capacity of {self.capacity}.")
        rank = (member.cumsum(0) - member).gather(1, task[:, None]).squeeze(1)
        position = (self.added[task] + rank) % self.capacity
        for name, ring in self._rings.items():
            ring[task, position] = samples[name].to(self.device)
        self.added += member.sum(0)

    def sample(self, n: int) -> dict[str, Shaped[Tensor, "K n ..."]]:
        """Draws n samples of every task, uniformly with replacement, and their `task` (K, n).

        Raises:
            ValueError: A task has none.
        """
        if not self.added.all():
            raise ValueError(f"No samples yet for tasks {(self.added == 0).nonzero().flatten().tolist()}.")
        uniform = torch.rand(self.num_tasks, n, dtype=torch.float64, device=self.device)
        index = (uniform * self.size[:, None]).long()
        task = torch.arange(self.num_tasks, device=self.device)[:, None].expand(-1, n)
        return {name: ring[task, index] for name, ring in self._rings.items()} | {"task": task}

    def state_dict(self) -> State:
        filled = int(self.size.max())
        rings = {name: ring[:, :filled] for name, ring in self._rings.items()}
        return {"capacity": self.capacity, "added": self.added, "rings": rings}

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if the state is that of rings of another capacity, or of none."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"The saved samples have a capacity of {state['capacity']}, this run {self.capacity}.")
        filled = int(state["added"].clamp(max=self.capacity).max())
        if int(state["added"].min()) < 0 or any(ring.shape[1] != filled for ring in state["rings"].values()):
            raise ValueError(f"rings: expected {filled} samples of each task, as `added` says")
        self.added.copy_(state["added"])
        for name, saved in state["rings"].items():
            self._rings[name][:, : saved.shape[1]] = saved.to(self.device)
