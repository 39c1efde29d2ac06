"""IMPALA-style learner: V-trace actor-critic, optionally with PPO's clipped surrogate, epochs and minibatches.

Espeholt et al., "IMPALA" (2018); Schulman et al., "PPO" (2017); Hessel et al., "Multi-task Deep RL with PopArt" (2018).
`agent=impala` is one epoch without clipping, `agent=ppo` several epochs with it. On-policy, V-trace with lambda is
GAE(lambda), so nothing else differs.

Differences from the papers:
    1. Targets, advantages and importance weights are computed once per update, from the networks at its beginning
       (with one epoch of one minibatch: as in the paper).
    2. Policy and value share the torso and the core, if there are any, and then also one optimiser; the later layers
       are separate. Otherwise they are separate networks with separate optimisers.
    3. Losses are means over the samples of each task instead of sums over a batch: see
       `configs/experiment/atari57_impala.yaml` for the conversion of the paper's settings.
    4. The clipped ratio is relative to the policy at the beginning of the update, not to the behaviour policy; the two
       are the same unless actors lag (decoupled PPO, Hilton et al. 2021).
    5. Values are zero at first, and advantages are divided by at least a tenth of a typical reward (`ValueNorm.floor`).
       PPO divides by their standard deviation, however small; without rewards they are errors of the value network.
    6. The entropy bonus does not widen a Gaussian beyond a standard deviation of 1 (`Gaussian.entropy_bonus`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtrl import per_task
from mtrl.agents import aux_loss
from mtrl.agents.components import Components
from mtrl.agents.losses import clipped_surrogate, per_task_standardise, require_finite, vtrace
from mtrl.agents.minibatch import Minibatch, check_num_minibatches
from mtrl.checks import not_negative, positive
from mtrl.nn.heads import GaussianHead
from mtrl.optim.multi_task import MultiTaskOptimizer, checked_once
from mtrl.registry import register
from mtrl.types import Learner, Metrics, Rollout


@register("agent", "impala")
@register("agent", "ppo")
class VTraceActorCritic(Learner):
    """V-trace actor-critic for K tasks: `agent=impala` and `agent=ppo` are presets of it.

    Use `ppo` first: where steps are cheap it needs the least time. `impala` learns from each rollout once, which suits
    actors whose policy is a few updates old (`actors=4`), and games.

    Args:
        c: Builds the networks and their optimisers.
        optimizer: Name and options of the optimisers.
        gamma: Discount.
        gae_lambda: Decay of the traces: lambda of GAE, and of V-trace.
        clip_rho: Clip of V-trace's importance weights in the targets.
        clip_c: Clip of those in the traces.
        clip_pg_rho: Clip of those of the advantages.
        reward_clip: Rewards are clipped to plus or minus this; infinity for no clipping.
        clip_range: Clip range of the ratio to the policy at the beginning of the update; infinity: no clipping.
        num_epochs: Passes over a rollout in an update.
        num_minibatches: Minibatches per epoch, all of the same size. Samples left over, different ones in each epoch,
            are not used in it.
        target_kl: An update ends after the first minibatch in which the KL divergence from the policy at its beginning
            exceeds this, as estimated by the mean of r - 1 - log r; infinity for no end.
        normalise_advantage: Standardise the advantages of each task over the actions of the rollout that the policy
            chose, dividing by at least a tenth of a typical reward.
        value_coef: Weight of the value loss.
        entropy_coef: Initial weight of the entropy bonus.
        end_factor: Factor of learning rates and entropy bonus at the end of training; it changes linearly.
        max_grad_norm: Global norm to which gradients are clipped.
        obs_norm: Registered name of the observation normalisation.
        initial_std: Initial standard deviation of a Gaussian policy; None: 1, or that of the policy of `init_from`.
    """

    learns_from = Rollout
    joins_ranks = True
    compilable: tuple[str, ...] = ("_features", "_policy_loss", "_value_loss")
    policy_loss = ("_features", "_policy_loss")

    def __init__(
        self,
        c: Components,
        optimizer: dict[str, Any],
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_rho: float = 1.0,
        clip_c: float = 1.0,
        clip_pg_rho: float = 1.0,
        clip_range: float = float("inf"),
        reward_clip: float = float("inf"),
        num_epochs: int = 1,
        num_minibatches: int = 1,
        target_kl: float = math.inf,
        normalise_advantage: bool = False,
        value_coef: float = 1.0,
        entropy_coef: float = 0.01,
        end_factor: float = 1.0,
        max_grad_norm: float = 1.0,
        obs_norm: str = "running",
        initial_std: float | None = None,
    ) -> None:
        positive(num_epochs=num_epochs, num_minibatches=num_minibatches, clip_range=clip_range, clip_rho=clip_rho)
        positive(target_kl=target_kl, clip_c=clip_c, reward_clip=reward_clip, value_coef=value_coef)
        not_negative(entropy_coef=entropy_coef, end_factor=end_factor, gae_lambda=gae_lambda, gamma=gamma)
        gaussian = {"name": "gaussian", "initial_std": 1.0 if initial_std is None else initial_std}
        self.policy = c.policy(obs_norm, gaussian if c.spec.action_kind == "continuous" else None)
        # One value head per task, whatever the policy has: values differ far more between tasks than good actions do.
        # Values are zero at first: before there are rewards, others would be advantages of an arbitrary scale.
        self.value = c.value(self.policy, "per_task", gain=0.0)
        check_num_minibatches(num_minibatches, self.policy.core, c.batch_shape)
        self.steps = c.actor_critic_steps(self.policy, self.value, optimizer, max_grad_norm)
        self.value_norm = c.value_scaling("per_task", gamma=gamma)
        self.networks = nn.ModuleDict({"policy": self.policy, "value": self.value, "value_norm": self.value_norm})
        self.optimizers: dict[str, MultiTaskOptimizer] = self.steps.by_name
        self.num_tasks, self.aux_losses, self.ranks = c.spec.num_tasks, c.aux_losses, c.ranks
        self.gamma, self.gae_lambda, self.reward_clip = gamma, gae_lambda, reward_clip
        self.clip_rho, self.clip_c, self.clip_pg_rho, self.clip_range = clip_rho, clip_c, clip_pg_rho, clip_range
        self.num_epochs, self.num_minibatches, self.target_kl = num_epochs, num_minibatches, target_kl
        self.normalise_advantage = normalise_advantage
        self.value_coef, self.entropy_coef, self.end_factor = value_coef, entropy_coef, end_factor
        self.max_grad_norm, self.initial_std = max_grad_norm, initial_std

    def initialised(self, taken: Mapping[str, Bool[Tensor, "..."]]) -> None:
        """Sets the standard deviation of a policy that was taken from another run, if one is given."""
        if self.initial_std is not None and isinstance(self.policy.head, GaussianHead):
            self.policy.head.set_std(self.initial_std)

    def update(self, rollout: Rollout, progress: float) -> Metrics:
        """Learns from one rollout; `progress` in [0, 1] is the fraction of training done."""
        factor = 1 + (self.end_factor - 1) * progress
        for step in self.optimizers.values():
            step.set_lr_factor(factor)

        rollout = replace(rollout, reward=rollout.reward.clamp(-self.reward_clip, self.reward_clip))
        log_prob, target, advantage, weight = self._targets(rollout)
        task = rollout.task
        require_finite(target + advantage, task, self.ranks)  # before they reach statistics or parameters
        # Actions of the policy, not of exploring starts (`Collector.exploring_start_fraction`), for its statistics.
        chosen = weight > 0
        self.value_norm.update(target, rollout.reward * chosen, task, [self.value.head])
        if self.normalise_advantage:
            advantage = per_task_standardise(advantage, task, chosen, self.value_norm.floor, self.ranks)
        else:
            advantage = advantage / self.value_norm.sigma[task].to(advantage.dtype)
        advantage = weight * advantage

        samples = {
            "obs": rollout.obs,
            "action": rollout.action,
            "task": task,
            "log_prob": log_prob,
            "target": self.value_norm.normalise(target, task),
            "advantage": advantage,
            "chosen": chosen,
            "is_first": rollout.is_first,
            "core_state": rollout.core_state.expand(len(task), *rollout.core_state.shape),
            "aux_targets": aux_loss.targets(self.aux_losses, rollout.obs, task, progress),
        }
        whole = Minibatch(**{name: self.policy.core.sequences(tensor) for name, tensor in samples.items()})
        entropy_coef = torch.full_like(advantage[0, 0], factor * self.entropy_coef)
        aux_coefs = aux_loss.coefficients(self.aux_losses, progress, self.num_tasks, like=advantage)
        steps: list[Metrics] = []
        with checked_once(self.optimizers.values()):
            epochs = (whole.shuffled(self.num_minibatches) for _ in range(self.num_epochs))
            for batch in chain.from_iterable(epochs):
                steps.append(self._step(batch, entropy_coef, aux_coefs))
                if self.target_kl < math.inf:
                    kl = self.ranks.sum(steps[-1]["approximate_kl"]) / self.ranks.size
                    if kl > self.target_kl:
                        break
        # Last, so that the policy learned with the normalisation with which it acted.
        self.policy.obs_norm.update(rollout.obs, task)

        metrics = {key: _mean([step[key] for step in steps]) for key in steps[0]}
        metrics["value_scale"] = self.value_norm.sigma.float()
        return metrics

    @torch.no_grad()
    def diagnostics(self, rollout: Rollout) -> Metrics:
        """How much of their width the policy and the value network use."""
        features, _ = self.policy.unroll(rollout.obs, rollout.task, rollout.is_first, rollout.core_state)
        policy, value = self.policy.usage(features, rollout.task), self.value.usage(features, rollout.task)
        return {
            **{f"policy_{key}": number for key, number in policy.items()},
            **{f"value_{key}": number for key, number in value.items()},
        }

    @torch.no_grad()
    def _targets(
        self, rollout: Rollout
    ) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], Float[Tensor, "T B"], Float[Tensor, "T B"]]:
        """Log-probabilities under the current policy; V-trace targets, advantages (in units of the reward), weights."""
        task = rollout.task
        features, states = self.policy.unroll(rollout.obs, task, rollout.is_first, rollout.core_state)
        log_prob = self.policy.distribution(features, task).log_prob(rollout.action)
        value = self._value(features, task)
        # V(s_{t+1}) is the next row's value, except where an episode or the rollout ends.
        next_value = value.roll(-1, dims=0)
        t, slot = rollout.ends
        last_task = task[t, slot][None]
        first = torch.zeros_like(last_task, dtype=torch.bool)
        last, _ = self.policy.unroll(rollout.end_obs[None], last_task, first, states[t, slot])
        next_value[t, slot] = self._value(last[0], last_task[0])
        target, advantage, weight = vtrace(
            log_prob - rollout.log_prob,
            self._reward(rollout, features, log_prob),
            self.gamma * rollout.continuation,
            rollout.done.float(),
            value,
            next_value,
            self.gae_lambda,
            self.clip_rho,
            self.clip_c,
            self.clip_pg_rho,
        )
        return log_prob, target, advantage, weight

    def _reward(
        self, rollout: Rollout, features: Float[Tensor, "T B F"], log_prob: Float[Tensor, "T B"]
    ) -> Float[Tensor, "T B"]:
        """What values and advantages are of; `log_prob` is that of the actions under the current policy."""
        return rollout.reward

    def _value(self, features: Tensor, task: Tensor) -> Tensor:
        return self.value_norm.denormalise(self.value(features, task), task)

    def _step(
        self,
        batch: Minibatch,
        entropy_coef: Float[Tensor, ""],
        aux_coefs: Float[Tensor, "M K"],
        regulariser: float | Float[Tensor, " K"] = 0.0,
    ) -> Metrics:
        """One step of the optimisers; `regulariser` is added to the policy loss."""
        task = batch.task
        features = self._features(batch)
        policy_loss, metrics = self._policy_loss(features, batch, entropy_coef, aux_coefs)
        value_loss = self._value_loss(features, batch)
        inputs = features.detach()  # auxiliary losses of a trunk train its parameters, not the torso's
        policy_aux, policy_diagnostics = self.policy.aux(inputs, task)
        value_aux, value_diagnostics = self.value.aux(inputs, task)
        grad_metrics = self.steps(task, policy_loss + regulariser, self.value_coef * value_loss, policy_aux, value_aux)
        return {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            **metrics,
            **{f"policy_{key}": value for key, value in policy_diagnostics.items()},
            **{f"value_{key}": value for key, value in value_diagnostics.items()},
            **{f"grad/{key}": value for key, value in grad_metrics.items()},
        }

    def _features(self, batch: Minibatch) -> Float[Tensor, "L N F"]:
        features, _ = self.policy.unroll(batch.obs, batch.task, batch.is_first, batch.core_state[0])
        return features

    def _policy_loss(
        self,
        features: Float[Tensor, "L N F"],
        batch: Minibatch,
        entropy_coef: Float[Tensor, ""],
        aux_coefs: Float[Tensor, "M K"],
    ) -> tuple[Float[Tensor, " K"], Metrics]:
        task, chosen = batch.task, batch.chosen
        distribution = self.policy.distribution(features, task)
        # Masked rather than multiplied by an advantage of zero: the ratio of an action far from the policy overflows.
        log_ratio = torch.where(chosen, distribution.log_prob(batch.action) - batch.log_prob, 0)
        surrogate = clipped_surrogate(log_ratio.exp(), batch.advantage, self.clip_range)
        loss = -surrogate - entropy_coef * distribution.entropy_bonus()
        loss, aux_metrics = aux_loss.added(loss, self.aux_losses, aux_coefs, batch.aux_targets, batch, distribution)
        with torch.no_grad():
            metrics = {
                "entropy": per_task.mean(distribution.entropy(), task, self.num_tasks),
                "approximate_kl": (log_ratio.exp() - 1 - log_ratio).sum() / chosen.sum().clamp(min=1),
                "clip_fraction": ((log_ratio.exp() - 1).abs() > self.clip_range).sum() / chosen.sum().clamp(min=1),
            }
        return per_task.mean_or_zero(loss, task, self.num_tasks), metrics | aux_metrics

    def _value_loss(self, features: Float[Tensor, "L N F"], batch: Minibatch) -> Float[Tensor, " K"]:
        return per_task.mean_or_zero(self.value.loss(features, batch.task, batch.target), batch.task, self.num_tasks)


def _mean(values: list[Tensor]) -> Tensor:
    """Mean over steps; per-task values are NaN in the steps from which the task is absent, and these are ignored."""
    stacked = torch.stack(values)
    return stacked.mean(0) if stacked.ndim == 1 else stacked.nanmean(0)
