"""Soft Actor-Critic for many tasks.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), with one temperature per task as in MT-SAC
(Yu et al., "Meta-World", 2019).

Differences from the papers:
    1. Temperatures are learned through log(alpha) (as in the authors' code).
    2. Truncated episodes bootstrap; targets are not clipped.
    3. With a value scaling, the policy's loss is divided by the task's scale. (No published SAC has one.)
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl import per_task
from mtrl.agents import aux_loss
from mtrl.agents.components import Components
from mtrl.agents.losses import require_finite, td_target
from mtrl.checks import not_negative, positive
from mtrl.nn.networks import Ensemble
from mtrl.optim.multi_task import checked_once
from mtrl.registry import register
from mtrl.types import Batch, Learner, Metrics, TaskAxes, UserError


class Temperature(nn.Module):
    """Entropy temperature alpha of each task."""

    task_axes: ClassVar[TaskAxes] = {"log_alpha": (0,)}

    def __init__(self, num_tasks: int, initial: float) -> None:
        super().__init__()
        positive(initial_alpha=initial)
        self.log_alpha = nn.Parameter(torch.full((num_tasks,), initial).log())

    def forward(self, task: Tensor) -> Tensor:
        return self.log_alpha.exp()[task]


@register("agent", "sac")
class Sac(Learner):
    """SAC with twin critics for K tasks and continuous actions. Values are the minimum over the critics.

    Use it where steps of the environment are expensive and actions continuous: it learns from a sample many times, so
    that it needs fewer steps than `ppo` and more time for each.

    Args:
        c: Builds the networks and their optimisers.
        optimizer: Name and options of the optimisers.
        gamma: Discount.
        tau: Fraction of the critics mixed into the target critics at each update.
        initial_alpha: Initial temperature of each task.
        target_entropy: Target entropy in nats per component of the action; published: -1.
        max_grad_norm: Global norm to which gradients are clipped.
        obs_norm: Registered name of the observation normalisation.
    """

    learns_from = Batch
    joins_ranks = True
    compilable = ("_target", "_critic_loss", "_policy_loss")
    policy_loss = ("_policy_loss",)

    def __init__(
        self,
        c: Components,
        optimizer: dict[str, Any],
        gamma: float = 0.99,
        tau: float = 0.005,
        initial_alpha: float = 1.0,
        target_entropy: float = -1.0,
        max_grad_norm: float = 1.0,
        obs_norm: str = "none",
    ) -> None:
        not_negative(gamma=gamma)
        positive(tau=tau)
        if c.spec.action_kind != "continuous":
            raise UserError(
                "agent=sac needs continuous actions, but this environment's are discrete: use agent=impala or ppo."
            )
        head = c.network["head"]
        self.policy = c.policy(obs_norm, {"name": "tanh_gaussian"})
        if c.core["name"] != "none" or list(self.policy.torso.parameters()):
            raise UserError(
                "agent=sac learns without memory, and from flat observations: use core=none, and torso=none or another "
                "without weights."
            )
        self.critics = Ensemble(c.value(self.policy, head, action=True) for _ in range(2))
        self.temperature = Temperature(c.spec.num_tasks, initial_alpha).to(c.device)
        self.target_entropy = target_entropy * torch.tensor(c.spec.action_mask, device=c.device).float().sum(1)
        self.value_norm = c.value_scaling(head, gamma=gamma, entropy=self._entropy_reward)
        runtime = {"log_alpha": lambda: self.temperature.log_alpha}
        # Each temperature belongs to a single task, so there is nothing to weigh or aggregate.
        alone = replace(c, weighting={"name": "uniform"}, aggregation={"name": "sum"})
        self.optimizers = {
            "policy": c.optimizer(self.policy, optimizer, max_grad_norm, has_positive=False, **runtime),
            "critics": c.optimizer(self.critics, optimizer, max_grad_norm, has_positive=True, **runtime),
            "temperature": alone.optimizer(self.temperature, optimizer, float("inf"), has_positive=False),
        }
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.networks = nn.ModuleDict(
            {
                "policy": self.policy,
                "critics": self.critics,
                "target_critics": self.target_critics,
                "temperature": self.temperature,
                "value_norm": self.value_norm,
            }
        )
        self.gamma, self.tau, self.num_tasks = gamma, tau, c.spec.num_tasks
        self.aux_losses, self.ranks = c.aux_losses, c.ranks

    def _entropy_reward(self) -> Float[Tensor, " K"]:
        """Approximate contribution of the entropy to the reward of a step."""
        return self.temperature.log_alpha.detach().exp() * self.target_entropy.abs()

    def update(self, batch: Batch, progress: float) -> Metrics:
        """One gradient step of critics, policy and temperatures on a stratified batch."""
        task = batch.task
        obs, next_obs = (self.policy.torso_features(raw, task) for raw in (batch.obs, batch.next_obs))

        target = self._target(batch, next_obs)
        require_finite(target, task, self.ranks)  # before it reaches the statistics
        heads = [critic.head for critic in (*self.critics, *self.target_critics)]
        self.value_norm.update(target, batch.reward, task, heads)
        normalised = self.value_norm.normalise(target, task)
        features = torch.cat([obs, batch.action], -1)
        critic_loss = self._critic_loss(features, task, normalised)
        critic_aux, critic_diagnostics = self.critics.aux(features, task)
        with checked_once(self.optimizers.values()):
            critic_metrics = self.optimizers["critics"](task, positive=critic_loss, aux=critic_aux)

            self.critics.requires_grad_(False)  # the policy's gradient passes through them; they need none
            aux_coefs = aux_loss.coefficients(self.aux_losses, progress, self.num_tasks, like=target)
            aux_targets = aux_loss.targets(self.aux_losses, batch.obs, task, progress)
            policy_loss, log_prob, q_policy, aux_metrics = self._policy_loss(batch, obs, aux_coefs, aux_targets)
            policy_aux, policy_diagnostics = self.policy.aux(obs, task)
            policy_metrics = self.optimizers["policy"](task, signed=policy_loss, aux=policy_aux)
            self.critics.requires_grad_(True)

            surplus = -log_prob - self.target_entropy[task]
            temperature_loss = per_task.mean_or_zero(self.temperature.log_alpha[task] * surplus, task, self.num_tasks)
            self.optimizers["temperature"](task, signed=temperature_loss)
        self.policy.obs_norm.update(batch.obs, task)

        with torch.no_grad():
            for target_critic, critic in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
                target_critic.lerp_(critic, self.tau)
            return {
                "critic_loss": critic_loss.detach(),
                "policy_loss": policy_loss.detach(),
                "q": per_task.mean(q_policy, task, self.num_tasks),
                "entropy": per_task.mean(-log_prob, task, self.num_tasks),
                "alpha": self.temperature.log_alpha.exp(),
                "value_scale": self.value_norm.sigma.float(),
                **aux_metrics,
                **{f"critic_{key}": value for key, value in critic_diagnostics.items()},
                **{f"policy_{key}": value for key, value in policy_diagnostics.items()},
                **{f"grad/critic_{key}": value for key, value in critic_metrics.items()},
                **{f"grad/policy_{key}": value for key, value in policy_metrics.items()},
            }

    def diagnostics(self, batch: Batch) -> Metrics:
        """How much of their width the policy and the first critic use."""
        task = batch.task
        obs = self.policy.torso_features(batch.obs, task)
        policy, critic = self.policy.usage(obs, task), self.critics.usage(torch.cat([obs, batch.action], -1), task)
        return {
            **{f"policy_{key}": value for key, value in policy.items()},
            **{f"critic_{key}": value for key, value in critic.items()},
        }

    @torch.no_grad()
    def _target(self, batch: Batch, next_obs: Tensor) -> Tensor:
        """Soft Bellman target in the units of the reward, (K, n)."""
        next_action, next_log_prob = self.policy(batch.next_obs, batch.task).sample()
        next_q = self._min_q(self.target_critics, next_obs, next_action, batch.task)
        next_value = next_q - self.temperature(batch.task) * next_log_prob
        return td_target(batch.reward, batch.continuation, next_value, self.gamma)

    def _critic_loss(self, features: Tensor, task: Tensor, target: Tensor) -> Tensor:
        """Loss of each task (K,), for targets in the units of the critics' output."""
        return per_task.mean_or_zero(self.critics.loss(features, task, target), task, self.num_tasks)

    def _policy_loss(
        self, batch: Batch, obs: Tensor, aux_coefs: Float[Tensor, "M K"], aux_targets: Float[Tensor, "K n D"]
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """Loss of each task (K,); log-probabilities and values of the sampled actions; metrics."""
        task = batch.task
        distribution = self.policy(batch.obs, task)
        action, log_prob = distribution.sample()
        alpha = self.temperature(task).detach()
        q = self._min_q(self.critics, obs, action, task)
        # In units of each task's values, so that no task dominates the shared policy by the scale of its reward.
        sigma = self.value_norm.sigma[task].to(q.dtype)
        sac_loss = (alpha * log_prob - q) / sigma
        loss, metrics = aux_loss.added(sac_loss, self.aux_losses, aux_coefs, aux_targets, batch, distribution)
        return per_task.mean_or_zero(loss, task, self.num_tasks), log_prob.detach(), q.detach(), metrics

    def _min_q(self, critics: Ensemble, obs: Tensor, action: Tensor, task: Tensor) -> Tensor:
        smallest = critics(torch.cat([obs, action], -1), task).amin(0)
        return self.value_norm.denormalise(smallest, task)
