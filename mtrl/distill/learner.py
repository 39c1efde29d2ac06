"""Policy distillation: a student learns to act like a teacher.

Rusu et al., "Policy Distillation" (2016); Parisotto et al., "Actor-Mimic" (2016); Ross et al., "A Reduction of
Imitation Learning and Structured Prediction to No-Regret Online Learning" (DAgger, 2011). They differ in the
source of the observations, which is up to the data source, and in the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl import per_task
from mtrl.agents.components import Components
from mtrl.checks import not_negative
from mtrl.distill.batch import Labelled
from mtrl.distill.features import feature_regression
from mtrl.distill.losses import DistillLoss
from mtrl.registry import build, register
from mtrl.types import Learner, Metrics, UserError


@register("agent", "distill")
class Distill(Learner):
    """A student policy for K tasks.

    Use it where there is something to learn from: scripted policies, a specialist for each task, or a larger policy.

    Args:
        c: Builds the network and its optimiser.
        optimizer: Name and options of the optimiser.
        loss: Name and options of a `distill_loss`: the distance from student to teacher.
        end_factor: Factor of the learning rate at the end of training; it changes linearly from 1.
        max_grad_norm: Global norm to which gradients are clipped.
        obs_norm: Registered name of the observation normalisation, with statistics of the samples learned from.
        initial_std: Initial standard deviation of a Gaussian policy; losses between actions do not change it.
        feature_coef: Coefficient of the feature regression (`FeatureRegression`), .01 in Actor-Mimic; 0: there is none.

    Raises:
        UserError: The loss cannot compare the teacher's labels with the student, the teacher has no features that
            `feature_coef` could be for, or the student has memory.
    """

    learns_from = Labelled
    compilable = ("_loss",)
    policy_loss = ("_features", "_loss")

    def __init__(
        self,
        c: Components,
        optimizer: dict[str, Any],
        loss: dict[str, Any],
        end_factor: float = 0.0,
        max_grad_norm: float = 1.0,
        obs_norm: str = "running",
        initial_std: float = 1.0,
        feature_coef: float = 0.0,
    ) -> None:
        not_negative(end_factor=end_factor)
        self.loss: DistillLoss = build("distill_loss", loss)
        gaussian = {"name": "gaussian", "initial_std": initial_std}
        self.policy = c.policy(obs_norm, gaussian if c.spec.action_kind == "continuous" else None)
        if c.teacher is not None:
            self.loss.check(c.teacher.kind, self.policy.distribution_class)
        if self.policy.core.state_size:
            raise UserError("agent=distill learns from single steps, so that its policy has no memory: use core=none.")
        hidden, num_tasks = self.policy.trunk.out_features, c.spec.num_tasks
        self.regression = feature_regression(feature_coef, c.teacher, hidden, num_tasks)
        self.networks = nn.ModuleDict({"policy": self.policy, **self.regression.networks}).to(c.device)
        step = c.optimizer(self.networks, optimizer, max_grad_norm, has_positive=self.loss.is_positive)
        self.optimizers, self._losses = {"policy": step}, "positive" if self.loss.is_positive else "signed"
        self.num_tasks, self.end_factor = num_tasks, end_factor
        self._mask = torch.tensor(c.spec.action_mask, device=c.device)

    def update(self, batch: Labelled, progress: float) -> Metrics:
        """One gradient step. Raises `NonFiniteLossError`."""
        task, step = batch.task, self.optimizers["policy"]
        step.set_lr_factor(1 + (self.end_factor - 1) * progress)
        self.policy.obs_norm.update(batch.obs, task)
        features = self._features(batch)
        loss, metrics = self._loss(features, batch, self.regression.targets(batch))
        aux, diagnostics = self.policy.aux(features.detach(), task)
        grad_metrics = step(task, aux=aux, **{self._losses: loss})
        return {
            **metrics,
            **{f"policy_{key}": value for key, value in diagnostics.items()},
            **{f"grad/policy_{key}": value for key, value in grad_metrics.items()},
        }

    def diagnostics(self, batch: Labelled) -> Metrics:
        """How much of its width the network uses."""
        usage = self.policy.usage(self._features(batch).detach(), batch.task)
        return {f"policy_{key}": value for key, value in usage.items()}

    def _features(self, batch: Labelled) -> Float[Tensor, "K n F"]:
        state = self.policy.initial_state(batch.task.shape[1])
        features, _ = self.policy.unroll(batch.obs, batch.task, torch.ones_like(batch.task, dtype=torch.bool), state)
        return features

    def _loss(
        self, features: Float[Tensor, "K n F"], batch: Labelled, targets: Float[Tensor, "K n G"]
    ) -> tuple[Float[Tensor, " K"], Metrics]:
        student, hidden = self.policy.distribution_and_hidden(features, batch.task)
        distance = self.loss(student, batch.kind, batch.label, self._mask[batch.task])
        loss = per_task.mean_or_zero(distance, batch.task, self.num_tasks)
        added, metrics = self.regression.loss(hidden, targets)
        return loss + added, {"distill_loss": loss.detach(), **metrics}
