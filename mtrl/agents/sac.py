"""Soft Actor-Critic for many tasks.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), with one temperature per task as in MT-SAC
(Yu et al., "Meta-World", 2019).

Differences from the papers:
    1. Temperatures are learned through log(alpha) (as in the authors' code).
    2. Truncated episodes bootstrap; targets are not clipped.
    3. With a value scaling, the policy's loss is divided by the task's scale. (No published SAC has one.)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mtrl.agents.losses import per_task_mean, require_finite, td_target
from mtrl.checks import not_negative, positive
from mtrl.nn.networks import Ensemble, PolicyNetwork
from mtrl.nn.scaling import ValueNorm
from mtrl.optim.step import TaskStep
from mtrl.types import Batch, Metrics, State, TaskAxes


class Temperature(nn.Module):
    """Entropy temperature alpha of each task."""

    task_axes: ClassVar[TaskAxes] = {"log_alpha": (0,)}

    def __init__(self, num_tasks: int, initial: float) -> None:
        super().__init__()
        positive(initial_alpha=initial)
        self.log_alpha = nn.Parameter(torch.full((num_tasks,), initial).log())

    def forward(self, task: Tensor) -> Tensor:
        return self.log_alpha.exp()[task]


class Sac:
    """SAC with twin critics for K tasks and continuous actions.

    Args:
        critics: Q-functions; the smallest target counts.
        target_critics: Copies of them.
        target_entropy: (K,), in nats; the published -(number of action components).
        tau: Share of the critics mixed into their targets at each update.
    """

    def __init__(
        self,
        policy: PolicyNetwork,
        critics: Ensemble,
        target_critics: Ensemble,
        temperature: Temperature,
        value_norm: ValueNorm,
        policy_step: TaskStep,
        critic_step: TaskStep,
        temperature_step: TaskStep,
        target_entropy: Tensor,
        gamma: float = 0.99,
        tau: float = 0.005,
    ) -> None:
        not_negative(gamma=gamma)
        positive(tau=tau)
        self.policy, self.temperature, self.value_norm = policy, temperature, value_norm
        self.critics, self.target_critics = critics, target_critics.requires_grad_(False)
        self.policy_step, self.critic_step, self.temperature_step = policy_step, critic_step, temperature_step
        self.target_entropy, self.gamma, self.tau = target_entropy, gamma, tau
        self.networks = nn.ModuleDict(
            {
                "policy": policy,
                "critics": self.critics,
                "target_critics": self.target_critics,
                "temperature": temperature,
                "value_norm": value_norm,
            }
        )
        self.num_tasks = len(target_entropy)
        self.act, self.initial_state = policy.act, policy.initial_state

    def update(self, batch: Batch, progress: float) -> Metrics:
        """One gradient step of critics, policy and temperatures on a stratified batch."""
        task = batch.task
        obs, next_obs = self.policy.obs_norm(batch.obs, task), self.policy.obs_norm(batch.next_obs, task)

        target = self._target(batch, next_obs)
        require_finite(target, task)  # before it can reach a statistic
        heads = [critic.head for critic in (*self.critics, *self.target_critics)]
        self.value_norm.update(target, batch.reward, task, heads)
        normalised = self.value_norm.normalise(target, task)
        features = torch.cat([obs, batch.action], -1)
        critic_loss = self._critic_loss(features, task, normalised)
        critic_aux, critic_diagnostics = self.critics.aux(features, task)
        critic_metrics = self.critic_step(task, positive=critic_loss, aux=critic_aux)

        self.critics.requires_grad_(False)  # the policy's gradient passes through them, and need not reach them
        policy_loss, log_prob, q_policy = self._policy_loss(batch, obs)
        policy_aux, policy_diagnostics = self.policy.aux(obs, task)
        policy_metrics = self.policy_step(task, signed=policy_loss, aux=policy_aux)
        self.critics.requires_grad_(True)

        surplus = -log_prob - self.target_entropy[task]
        temperature_loss = per_task_mean(self.temperature.log_alpha[task] * surplus, task, self.num_tasks)
        self.temperature_step(task, signed=temperature_loss)
        self.policy.obs_norm.update(batch.obs, task)

        with torch.no_grad():
            for target_critic, critic in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
                target_critic.lerp_(critic, self.tau)
            return {
                "critic_loss": critic_loss.detach(),
                "policy_loss": policy_loss.detach(),
                "q": per_task_mean(q_policy, task, self.num_tasks),
                "entropy": per_task_mean(-log_prob, task, self.num_tasks),
                "alpha": self.temperature.log_alpha.exp(),
                "value_scale": self.value_norm.sigma.float(),
                **{f"critic_{key}": value for key, value in critic_diagnostics.items()},
                **{f"policy_{key}": value for key, value in policy_diagnostics.items()},
                **{f"grad/critic_{key}": value for key, value in critic_metrics.items()},
                **{f"grad/policy_{key}": value for key, value in policy_metrics.items()},
            }

    def diagnostics(self, batch: Batch) -> Metrics:
        """How much of the policy and of the first critic is in use."""
        task = batch.task
        obs = self.policy.obs_norm(batch.obs, task)
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
        return td_target(batch.reward, batch.terminated.float(), next_value, self.gamma)

    def _critic_loss(self, features: Tensor, task: Tensor, target: Tensor) -> Tensor:
        """Of each task (K,), for targets in the units of the critics' output."""
        return per_task_mean(self.critics.loss(features, task, target), task, self.num_tasks)

    def _policy_loss(self, batch: Batch, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each task (K,); and the log-probabilities and values of the actions that it is about."""
        task = batch.task
        action, log_prob = self.policy(batch.obs, task).sample()
        alpha = self.temperature(task).detach()
        q = self._min_q(self.critics, obs, action, task)
        # In units of each task's values, so that no task dominates the shared policy by the scale of its reward.
        sigma = self.value_norm.sigma[task].to(q.dtype)
        loss = per_task_mean((alpha * log_prob - q) / sigma, task, self.num_tasks)
        return loss, log_prob.detach(), q.detach()

    def _min_q(self, critics: Ensemble, obs: Tensor, action: Tensor, task: Tensor) -> Tensor:
        smallest = critics(torch.cat([obs, action], -1), task).amin(0)
        return self.value_norm.denormalise(smallest, task)

    def state_dict(self) -> State:
        return {key: getattr(self, key).state_dict() for key in self._SAVED}

    def load_state_dict(self, state: State) -> None:
        for key in self._SAVED:
            getattr(self, key).load_state_dict(state[key])

    _SAVED = ("networks", "policy_step", "critic_step", "temperature_step")
    COMPILABLE = ("_target", "_critic_loss", "_policy_loss")
