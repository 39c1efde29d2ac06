"""Task encoders: task ids to the `TaskContext`, which is all that networks know about a task."""

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
    """Number of features, the first ones, that this encoder reads instead of the trunk: the history of the episode."""
    reads_task: bool = True
    """Whether an embedding depends on the task's id."""
    one_hot: bool = False
    """Whether each component of an embedding belongs to one task."""

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch F"]) -> TaskContext:
        raise NotImplementedError


@register("task_encoder", "one_hot")
class OneHot(TaskEncoder):
    """The task id as a one-hot vector of size K.

    Use it first. Its size grows with K.
    """

    one_hot = True

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.dim = num_tasks

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch 0"]) -> TaskContext:
        return TaskContext(task, functional.one_hot(task, self.dim).float())


@register("task_encoder", "embedding")
class Embedding(TaskEncoder):
    """A learned vector of length 1 for each task (as in BRC and FastTD3).

    Normalised in the forward pass rather than by `max_norm`, which changes the weights in place.

    Use it for many tasks: its size does not grow with their number.

    Args:
        dim: Size of the vector.
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
    """Fixed vectors of length 1, computed from the tasks' descriptions. The package has those of Meta-World's tasks.

    Tasks with similar descriptions are similar from the start, as in CARE (Sodhani et al. 2021). There the vectors come
    from RoBERTa; these are TF-IDF vectors of words, made by `scripts/task_vectors.py`.

    Use it with Meta-World, where related tasks should be alike before anything is learned.
    """

    vectors: Tensor
    task_axes: ClassVar[TaskAxes] = {"vectors": (0,)}

    def __init__(self, task_names: tuple[str, ...]) -> None:
        super().__init__()
        known = json.loads(Path(__file__).with_name("task_vectors.json").read_text(encoding="utf-8"))
        missing = [name for name in task_names if name not in known]
        if missing:
            raise ValueError(f"there are vectors for Meta-World's tasks only, not for {', '.join(missing)}.")
        self.register_buffer("vectors", torch.tensor([known[name] for name in task_names]))
        self.dim = self.vectors.shape[1]

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch 0"]) -> TaskContext:
        return TaskContext(task, self.vectors[task])


@register("task_encoder", "context")
class Context(TaskEncoder):
    """Infers the task from the last transitions of the episode: the mean of their embeddings, normalised to length 1.

    As in PEARL (Rakelly et al. 2019) the order of the transitions does not matter. The task id is ignored: per-task
    heads and value scalings still use it, the trunk does not. Needs `env.history`.

    Use it for hidden goals (`env=ml1` ...) and for tasks that were not trained in.

    Differences from the paper:
        1. A vector, not a distribution to sample from.
        2. Only transitions of the running episode are used, so that there is no information in its first step.
        3. Trained by all losses of the network, not only by the critic's.

    Args:
        dim: Size of the vector.
        width: Units of the network that embeds a transition.
    """

    reads_task = False

    def __init__(self, history: tuple[int, int], dim: int = 32, width: int = 128) -> None:
        super().__init__()
        positive(dim=dim, width=width)
        if not history[0]:
            raise ValueError("it needs past transitions: set env.history, for example to 8.")
        self.dim, self.shape = dim, history
        self.history_size = history[0] * history[1]
        self.embed = nn.Sequential(nn.Linear(history[1], width), nn.ReLU(), nn.Linear(width, dim))

    def forward(self, task: Int[Tensor, "*batch"], history: Float[Tensor, "*batch F"]) -> TaskContext:
        embedded = self.embed(history.unflatten(-1, self.shape))
        return TaskContext(task, functional.normalize(embedded.mean(-2), dim=-1))
