"""A custom data source: recorded transitions, learned from without acting."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import load_file

from mtrl.registry import register
from mtrl.types import Batch, DataSource, EnvSpec, UserError


@register("data", "transitions")
class Transitions(DataSource):
    """Batches of `batch_size` transitions of each of the K tasks, drawn from a file.

    Args:
        spec: Of the environment in which the policy will be evaluated.
        device: Of the learner.
        path: safetensors file with obs (K, N, ...), action (K, N, A), reward, continuation (both (K, N)) and next_obs.
    """

    yields = Batch
    makes_steps = False  # so training ends by total_updates

    def __init__(self, spec: EnvSpec, device: str, path: str, batch_size: int = 32) -> None:
        try:
            tensors = load_file(path, device=device)
        except (OSError, ValueError) as error:
            raise UserError(f"data.path={path} cannot be read: {error}") from error
        if len(tensors["obs"]) != spec.num_tasks:
            raise UserError(f"data.path={path} has {len(tensors['obs'])} tasks, the environment {spec.num_tasks}.")
        self.tensors, self.batch_size = tensors, batch_size

    def batches(self) -> Iterator[Batch]:
        num_tasks, size = self.tensors["reward"].shape
        index = torch.randint(size, (num_tasks, self.batch_size), device=self.tensors["reward"].device)
        task = torch.arange(num_tasks, device=index.device)[:, None].expand_as(index)
        yield Batch(**{name: tensor[task, index] for name, tensor in self.tensors.items()}, task=task)
