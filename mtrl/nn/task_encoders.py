"""Task encoders: task ids to the `TaskContext` that is all that networks see of a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.nn.layers import mark_per_task
from mtrl.registry import register
from mtrl.types import TaskAxes, TaskContext


class TaskEncoder(nn.Module):
    """Base of the task encoders."""

    dim: int
    """E, the size of an embedding."""
    history_size: int = 0
    """Features, the first ones, that this encoder reads in place of the trunk: what came before in the episode."""
    reads_task: bool = True
    """Whether an embedding depends on the task's id."""
    one_hot: bool = False
    """Whether each component of an embedding is a task's own."""

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch F"]) -> TaskContext:
        raise NotImplementedError


@register("task_encoder", "one_hot")
class OneHot(TaskEncoder):
    """The task id as a one-hot vector of size K."""

    one_hot = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.dim = num_tasks

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch 0"]) -> TaskContext:
        return TaskContext(task, functional.one_hot(task, self.dim).float())


@register("task_encoder", "embedding")
class Embedding(TaskEncoder):
    """A learned vector of length 1 for each task (as in BRC and FastTD3).

    Normalised in the forward pass, not by `max_norm`, which changes the weights in place.
    """

    task_axes: ClassVar[TaskAxes] = {"weight": (0,)}

    def __init__(self, num_tasks: int, dim: int = 32) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}.")
        self.dim = dim
        self.weight = nn.Parameter(torch.randn(num_tasks, dim))
        mark_per_task(self.weight)

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch 0"]) -> TaskContext:
        return TaskContext(task, functional.normalize(self.weight, dim=-1)[task])


@register("task_encoder", "language")
class Language(TaskEncoder):
    """Fixed vectors of length 1, made of the tasks' descriptions; they ship with the package for Meta-World's tasks.

    So that tasks with like descriptions are alike from the start, as in CARE (Sodhani et al. 2021). There the vectors
    are RoBERTa's; these are the TF-IDF of words, by `scripts/task_vectors.py`.
    """

    vectors: Tensor
    task_axes: ClassVar[TaskAxes] = {"vectors": (0,)}

    def __init__(self, task_names: tuple[str, ...]) -> None:
        super().__init__()
        known = json.loads(Path(__file__).with_name("task_vectors.json").read_text(encoding="utf-8"))
        missing = [name for name in task_names if name not in known]
        if missing:
            raise ValueError(f"there are vectors of Meta-World's tasks only, and none of {', '.join(missing)}.")
        self.register_buffer("vectors", torch.tensor([known[name] for name in task_names]))
        self.dim = self.vectors.shape[1]

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch 0"]) -> TaskContext:
        return TaskContext(task, self.vectors[task])


@register("task_encoder", "context")
class Context(TaskEncoder):
    """What the last transitions of the episode tell of the task: the mean of their embeddings, at length 1.

    As in PEARL (Rakelly et al. 2019) the order of the transitions does not matter. The task id is not looked at: heads
    and value scalings per task still have it, the trunk does not. Needs `env.history`.

    Differences from the paper:
        1. A vector, not a distribution to sample from.
        2. Of the running episode alone, so that it knows nothing in the first step.
        3. Trained by whatever loss the network has, not by the critic's alone.
    """

    reads_task = False

    def __init__(self, history: tuple[int, int], dim: int = 32, width: int = 128) -> None:
        super().__init__()
        positive(dim=dim, width=width)
        if not history[0]:
            raise ValueError("it needs to see what came before: set env.history, for example to 8.")
        self.dim, self.shape = dim, history
        self.history_size = history[0] * history[1]
        self.embed = nn.Sequential(nn.Linear(history[1], width), nn.ReLU(), nn.Linear(width, dim))

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch F"]) -> TaskContext:
        embedded = self.embed(history.unflatten(-1, self.shape))
        return TaskContext(task, functional.normalize(embedded.mean(-2), dim=-1))
