"""Per-task replay in preallocated tensors on the learner's device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mtrl import per_task
from mtrl.checks import positive
from mtrl.types import Batch, EnvSpec, State


class Replay:
    """A ring of `capacity` transitions for each of the K tasks; samples are stratified by task.

    Whether an episode was truncated is not stored: a cut episode bootstraps from its true last observation.

    Args:
        capacity: Transitions per task.
    """

    def __init__(self, spec: EnvSpec, capacity: int, device: torch.device | str) -> None:
        positive(capacity=capacity)
        self.capacity, self.num_tasks, self.device = capacity, spec.num_tasks, torch.device(device)
        continuous = spec.action_kind == "continuous"

        def ring(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros(self.num_tasks, capacity, *shape, dtype=dtype, device=self.device)

        self._rings = {
            "obs": ring(spec.obs_shape, spec.obs_dtype),
            "action": ring((spec.action_dim,), torch.float32) if continuous else ring((), torch.int64),
            "reward": ring((), torch.float32),
            "continuation": ring((), torch.float32),
            "next_obs": ring(spec.obs_shape, spec.obs_dtype),
        }
        self.added = torch.zeros(self.num_tasks, dtype=torch.int64, device=self.device)
        self._least = 0  # of `added`, when it was looked at
        self._since = 0  # transitions of all tasks since then

    def has(self, n: int) -> bool:
        """Whether n transitions of every task have been added. Waits for the device only where that may be new."""
        if self._least < n <= self._least + self._since:
            self._least, self._since = int(self.added.min()), 0
        return self._least >= n

    @property
    def size(self) -> Int[Tensor, " K"]:
        """Transitions held for each task."""
        return self.added.clamp(max=self.capacity)

    def add(
        self,
        obs: Shaped[Tensor, "B *obs"],
        action: Shaped[Tensor, "B *action"],
        reward: Float[Tensor, " B"],
        continuation: Float[Tensor, " B"],
        next_obs: Shaped[Tensor, "B *obs"],
        task: Int[Tensor, " B"],
    ) -> None:
        """Stores one transition of each slot, overwriting its task's oldest. Slots of one task keep their order.

        Raises:
            ValueError: More slots run one task than its ring has room for.
        """
        task = task.to(self.device)
        number = per_task.count(task, self.num_tasks)
        if len(task) > self.capacity and number.max() > self.capacity:
            raise ValueError(f"More slots of one task than its capacity of {self.capacity} transitions.")
        position = (self.added[task] + per_task.rank(task, self.num_tasks)) % self.capacity
        new = {"obs": obs, "action": action, "reward": reward, "continuation": continuation, "next_obs": next_obs}
        for key, tensor in new.items():
            self._rings[key][task, position] = tensor.to(self.device)
        self.added += number
        self._since += len(task)

    def sample(self, n: int) -> Batch:
        """Draws n transitions of every task, uniformly with replacement. Raises `ValueError` if a task has none."""
        if not self.has(1):
            raise ValueError(f"No transitions yet for tasks {(self.added == 0).nonzero().flatten().tolist()}.")
        uniform = torch.rand(self.num_tasks, n, dtype=torch.float64, device=self.device)
        index = (uniform * self.size[:, None]).long()
        task = torch.arange(self.num_tasks, device=self.device)[:, None].expand(-1, n)
        return Batch(**{key: ring[task, index] for key, ring in self._rings.items()}, task=task)

    def state_dict(self) -> State:
        filled = int(self.size.max())
        return {
            "capacity": self.capacity,
            "added": self.added,
            "rings": {key: ring[:, :filled] for key, ring in self._rings.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if the state is that of a replay of another capacity, or of no replay."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"The saved replay has a capacity of {state['capacity']}, this one {self.capacity}.")
        filled = int(state["added"].clamp(max=self.capacity).max())
        if int(state["added"].min()) < 0 or any(ring.shape[1] != filled for ring in state["rings"].values()):
            raise ValueError(f"rings: expected {filled} transitions of each task, as `added` says")
        self.added.copy_(state["added"])
        self._least, self._since = int(self.added.min()), 0
        for key, saved in state["rings"].items():
            self._rings[key][:, : saved.shape[1]] = saved.to(self.device)
