"""Base classes of the samplers: scores of episodes, and the mean of a task's recent scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl.types import Metrics


class TaskSampler(nn.Module):
    """Base of the samplers: probabilities from the results of finished episodes."""

    def probabilities(self) -> Float[Tensor, " K"]:
        """Share of the slots that each task should get; sums to 1."""
        raise NotImplementedError

    def update(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        """Receives E episodes that ended in the same step (`EpisodeStatistics.episode_listeners`)."""


class ScoreSampler(TaskSampler):
    """Base of the samplers that compare each task with a target.

    The score of an episode is its success (0 or 1). Given targets, it is (return - baseline) / (target - baseline), 0
    at the task's baseline and 1 at its target: with the returns of a random and of a human player it is the
    human-normalised score. A subclass implements `add`, which is called once for each episode.

    Args:
        silent_tasks: Names of the tasks that report no success.
        targets: One return per task; null: success.
        baselines: One return per task; null: 0.

    Raises:
        ValueError: A list has another length, a target is not above its baseline, or there are no targets and a task
            reports no success.
    """

    def __init__(
        self, num_tasks: int, silent_tasks: Sequence[str], targets: list[float] | None, baselines: list[float] | None
    ) -> None:
        super().__init__()
        if targets is None and silent_tasks:
            names = ", ".join(silent_tasks)
            raise ValueError(f"no success is reported by {names}, so that targets (a return per task) are needed.")
        if targets is None and baselines is not None:
            raise ValueError("baselines go with targets, which are not given.")
        self.num_tasks, self.by_success = num_tasks, targets is None
        self.baseline = torch.tensor(per_task("baselines", baselines, num_tasks, 0.0), dtype=torch.float64)
        self.span = torch.tensor(per_task("targets", targets, num_tasks, 1.0), dtype=torch.float64) - self.baseline
        if not (self.span > 0).all():
            raise ValueError(f"each target must lie above its baseline, not {targets} and {baselines}.")

    def update(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        score = results["success" if self.by_success else "return"].double()
        score = (score - self.baseline[task]) / self.span[task]
        for k, value in zip(task.tolist(), score.tolist(), strict=True):
            self.add(k, value)

    def add(self, task: int, score: float) -> None:
        """Receives the score of one episode."""
        raise NotImplementedError


def per_task(name: str, values: Sequence[float] | None, num_tasks: int, default: float) -> list[float]:
    """One number per task. Raises `ValueError` for another length."""
    if values is None:
        return [default] * num_tasks
    if len(values) != num_tasks:
        raise ValueError(f"{name} must be a number for each of the {num_tasks} tasks, not {len(values)} numbers.")
    return list(values)


class RecentScores(nn.Module):
    """The last `window` scores of each task."""

    scores: Tensor
    count: Tensor

    def __init__(self, num_tasks: int, window: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(num_tasks, window, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_tasks, dtype=torch.int64))

    def add(self, task: int, score: float) -> None:
        """Replaces the oldest score of a task."""
        self.scores[task, self.count[task] % self.scores.shape[1]] = score
        self.count[task] += 1

    def mean(self) -> Float[Tensor, " K"]:
        """Mean of the scores so far; 0 for a task without any."""
        return self.scores.sum(1) / self.count.clamp(1, self.scores.shape[1])

    def full(self) -> bool:
        """Whether every task has at least `window` scores."""
        return bool((self.count >= self.scores.shape[1]).all())
