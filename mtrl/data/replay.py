"""A ring buffer of samples for each task, in preallocated tensors on the learner's device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mtrl import per_task
from mtrl.checks import positive
from mtrl.types import EnvSpec, State

Columns = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor of a sample."""


def transition_columns(spec: EnvSpec) -> Columns:
    """The columns for the tensors of a `Batch`.

    Truncation is not stored, because a truncated transition bootstraps from its true last observation.
    """
    continuous = spec.action_kind == "continuous"
    return {
        "obs": (spec.obs_shape, spec.obs_dtype),
        "action": ((spec.action_dim,), torch.float32) if continuous else ((), torch.int64),
        "reward": ((), torch.float32),
        "continuation": ((), torch.float32),
        "next_obs": (spec.obs_shape, spec.obs_dtype),
    }


class Replay:
    """Holds the newest `capacity` samples of each of K tasks, and samples batches stratified by task.

    Args:
        capacity: Samples per task.
    """

    def __init__(self, num_tasks: int, capacity: int, columns: Columns, device: torch.device | str) -> None:
        positive(capacity=capacity)
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, torch.device(device)
        self._rings = {
            name: torch.zeros(num_tasks, capacity, *shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in columns.items()
        }
        self.added = torch.zeros(num_tasks, dtype=torch.int64, device=self.device)
        """Number of samples of each task so far, including overwritten ones."""
        self._least = 0  # of `added`, when it was last read
        self._since = 0  # samples added since then, of all tasks

    def has(self, n: int) -> bool:
        """Whether n samples of every task have been added. Waits for the device only if the answer may have changed."""
        if self._least < n <= self._least + self._since:
            self._least, self._since = int(self.added.min()), 0
        return self._least >= n

    @property
    def size(self) -> Int[Tensor, " K"]:
        """Number of stored samples of each task."""
        return self.added.clamp(max=self.capacity)

    def add(self, task: Int[Tensor, " B"], samples: Mapping[str, Shaped[Tensor, "B ..."]]) -> None:
        """Stores B samples, overwriting the oldest of their tasks. Samples of the same task keep their order.

        Raises:
            ValueError: There are more than `capacity` samples of one task.
        """
        task = task.to(self.device)
        number = per_task.count(task, self.num_tasks)
        if len(task) > self.capacity and number.max() > self.capacity:
            raise ValueError(f"More samples of one task than its capacity of {self.capacity}.")
        position = (self.added[task] + per_task.rank(task, self.num_tasks)) % self.capacity
        for name, ring in self._rings.items():
            ring[task, position] = samples[name].to(self.device)
        self.added += number
        self._since += len(task)

    def sample(self, n: int) -> dict[str, Shaped[Tensor, "K n ..."]]:
        """Draws n samples of every task, uniformly with replacement; "task" is added to the columns.

        Raises:
            ValueError: A task has no samples.
        """
        if not self.has(1):
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
        """Raises `ValueError` if the state is invalid, or is that of a replay of another capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"The saved replay has a capacity of {state['capacity']}, this one {self.capacity}.")
        filled = int(state["added"].clamp(max=self.capacity).max())
        if int(state["added"].min()) < 0 or any(ring.shape[1] != filled for ring in state["rings"].values()):
            raise ValueError(f"rings: expected {filled} samples of each task, as `added` says")
        self.added.copy_(state["added"])
        self._least, self._since = int(self.added.min()), 0
        for name, saved in state["rings"].items():
            self._rings[name][:, : saved.shape[1]] = saved.to(self.device)
