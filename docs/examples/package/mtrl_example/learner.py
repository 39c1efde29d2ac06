"""A custom learner."""

from __future__ import annotations

from torch import nn

from mtrl import per_task
from mtrl.agents.components import Components
from mtrl.registry import register
from mtrl.types import Batch, Learner, Metrics


@register("agent", "cloning")
class Cloning(Learner):
    """Imitates the actions of its data: the loss is minus their log-probability.

    Args:
        c: Makes networks and optimisation steps, with whatever trunk, aggregation, weighting, ... the user has chosen.
        lr: Learning rate.
    """

    learns_from = Batch

    def __init__(self, c: Components, lr: float = 1e-3) -> None:
        self.policy = c.policy(obs_norm="running")
        self.networks = nn.ModuleDict({"policy": self.policy})
        adam = {"name": "adam", "lr": lr, "eps": 1e-8}
        self.optimizers = {"policy": c.optimizer(self.policy, adam, max_grad_norm=1.0, has_positive=False)}
        self.num_tasks = c.spec.num_tasks

    def update(self, batch: Batch, progress: float) -> Metrics:
        log_prob = self.policy(batch.obs, batch.task).log_prob(batch.action)
        loss = per_task.mean_or_zero(-log_prob, batch.task, self.num_tasks)
        metrics = self.optimizers["policy"](batch.task, signed=loss)
        self.policy.obs_norm.update(batch.obs, batch.task)
        return {"loss": loss.detach(), **{f"grad/{name}": value for name, value in metrics.items()}}
