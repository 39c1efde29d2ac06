"""Groups of tasks with a trunk for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.nn.layers import select
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import build, register, unknown
from mtrl.types import Metrics, TaskContext


@register("trunk", "grouped")
class Grouped(Trunk):
    """One trunk for each group of tasks: what a network for each group shares (Standley et al. 2020).

    All trunks run on every sample, and that of its task's group is selected. The trunk of a group numbers the group's
    tasks from 0, and sees the same embedding. What belongs to single tasks in it can be loaded into the same groups
    only. With a `stem`, lower layers are shared by all tasks and branch into the groups' (Vandenhende et al.,
    "Branched Multi-Task Networks", 2020).

    Use it when you know which tasks help one another (docs/relations.md).

    Args:
        groups: Names of the tasks of each group; every task is in one.
        each: The trunk of each group: a registered name with its options.
        stem: The trunk of all tasks, whose output is the input of the others.

    Raises:
        ValueError: A name is not a task, or a task is in no group or in several.
    """

    group: Tensor
    number: Tensor

    def __init__(
        self,
        features: int,
        context: int,
        task_names: Sequence[str],
        groups: Sequence[Sequence[str]],
        each: dict[str, Any],
        stem: dict[str, Any],
    ) -> None:
        super().__init__()
        check_groups(groups, task_names)
        of_all = {"context": context, "task_names": tuple(task_names), "num_tasks": len(task_names)}
        self.stem = build("trunk", stem, features=features, **of_all)
        sizes = {"features": self.stem.out_features, "context": context}
        trunks = [build("trunk", each, **sizes, task_names=tuple(names), num_tasks=len(names)) for names in groups]
        for part in (part for trunk in trunks for part in trunk.modules() if hasattr(part, "task_axes")):
            part.task_axes = {}  # these axes count the tasks of a group, not those of the network
        self.trunks = nn.ModuleList(trunks)
        self.sizes = [len(group) for group in groups]
        places = {name: (i, j) for i, members in enumerate(groups) for j, name in enumerate(members)}
        group, number = torch.tensor([places[name] for name in task_names]).unbind(1)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("number", number, persistent=False)
        self.reads_embedding = any(trunk.reads_embedding for trunk in (self.stem, *trunks))
        self.out_features: int = trunks[0].out_features

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        features, number = self.stem(features, context), self.number[context.task]
        # Samples of other groups pass as the last task of a smaller one.
        of_group = [TaskContext(number.clamp(max=size - 1), context.embedding) for size in self.sizes]
        every = [trunk(features, within) for trunk, within in zip(self.trunks, of_group, strict=True)]
        return select(torch.stack(every, -2), self.group[context.task])

    def aux(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> tuple[Float[Tensor, ""], Metrics]:
        """Sum of the losses of the stem and of the groups' trunks, each for the samples of its tasks, and diagnostics.

        A diagnostic of tasks has a value for each task whose trunk reports it; others are added up. Those of the stem
        have "stem_" before their names.
        """
        loss, of_stem = self.stem.aux(features, context)
        diagnostics: Metrics = {f"stem_{name}": value for name, value in of_stem.items()}
        features = self.stem(features, context)
        for i, trunk in enumerate(self.trunks):
            mine = self.group[context.task] == i
            if not mine.any():
                continue
            within = TaskContext(self.number[context.task[mine]], context.embedding[mine])
            loss_of_group, metrics = trunk.aux(features[mine], within)  # type: ignore[operator]
            loss = loss + loss_of_group
            for name, value in metrics.items():
                if value.ndim:
                    every = diagnostics.get(name, value.new_full(self.group.shape, torch.nan))
                    tasks = (self.group == i).nonzero().squeeze(1)
                    diagnostics[name] = every.index_copy(0, tasks, value[self.number[tasks]])
                else:
                    diagnostics[name] = diagnostics.get(name, 0) + value
        return loss, diagnostics


def check_groups(groups: Sequence[Sequence[str]], task_names: Sequence[str]) -> None:
    """Raises `ValueError` unless every task is in one group."""
    counts = Counter(name for group in groups for name in group)
    for name in counts:
        if name not in task_names:
            raise ValueError(unknown("task in groups:", name, task_names))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"groups: every task is in one group, but {', '.join(twice)} is in several.")
    if missing := [name for name in task_names if name not in counts]:
        raise ValueError(f"groups: every task is in one group, but {', '.join(missing)} is in none.")
    if not all(groups):
        raise ValueError("groups: a group has no tasks.")
