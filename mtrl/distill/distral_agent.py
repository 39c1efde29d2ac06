"""Distral on the V-trace learner: each task's policy is held near a shared policy that does not know the task.

Teh et al., "Distral: Robust Multitask Reinforcement Learning" (2017), for continuous and discrete actions.

Differences from the paper:
    1. The task policies are one network that knows the task, with whatever trunk and heads are configured, and have one
       column; V-trace stands in place of A3C's returns.
    2. The shared policy reads the features of the task policies' torso and core, which do not know the task, and does
       not change them.
    3. The shared policy learns from KL(pi_i || pi_0) in the states of the rollout, in closed form: the gradient is the
       paper's, sum_a (pi_i - pi_0) grad h_0, without the discount gamma^t of the time in the episode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl import per_task
from mtrl.agents.components import Components
from mtrl.agents.minibatch import Minibatch
from mtrl.agents.vtrace_actor_critic import VTraceActorCritic
from mtrl.checks import not_negative, positive
from mtrl.distill.distral import regularised_reward
from mtrl.nn.distributions import Categorical, Distribution, Gaussian
from mtrl.nn.layers import mlp
from mtrl.registry import register
from mtrl.types import EnvSpec, Metrics, Rollout

MIN_LOG_STD = math.log(1e-3)
"""Of a shared Gaussian."""


class SharedPolicy(nn.Module):
    """pi_0: a multi-layer perceptron from features to a distribution. Of the task it knows the action mask only."""

    action_mask: Tensor

    def __init__(self, features: int, spec: EnvSpec, width: int, depth: int, initial_std: float) -> None:
        super().__init__()
        self.network = mlp([features, *[width] * depth, spec.action_dim], "tanh", "orthogonal")
        with torch.no_grad():
            for parameter in self.network[-1].parameters():
                parameter.mul_(0.01)  # as in the heads of task policies: nearly the same in all states
        self.discrete = spec.action_kind == "discrete"
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((spec.action_dim,), initial_std).log())
        self.register_buffer("action_mask", torch.tensor(spec.action_mask), persistent=False)

    def forward(self, features: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Distribution:
        outputs, mask = self.network(features), self.action_mask[task]
        if self.discrete:
            return Categorical(outputs, mask)
        log_std = self.log_std.clamp(min=MIN_LOG_STD)
        return Gaussian(outputs, log_std.expand_as(outputs), mask)


@register("agent", "distral")
class Distral(VTraceActorCritic):
    """V-trace actor-critic for r + c_kl log pi_0(a | s) - (c_kl + c_ent) log pi_i(a | s), and pi_0 distilled from pi_i.

    In the symbols of the paper, c_kl = alpha / beta and c_kl + c_ent = 1 / beta. Both zero: `agent=impala` without its
    entropy bonus.

    Args:
        c: See `VTraceActorCritic`, as for all settings that are not named here.
        c_kl: Cost of the KL divergence from a task's policy to the shared one, in units of the reward.
        c_ent: Cost of missing entropy of a task's policy, likewise. It has no limit for Gaussians.
        shared_width: Of the layers of the shared policy.
        shared_depth: Number of its hidden layers.
    """

    compilable = (*VTraceActorCritic.compilable, "_shared_loss")

    def __init__(
        self,
        c: Components,
        optimizer: dict[str, Any],
        c_kl: float = 5e-4,
        c_ent: float = 5e-4,
        shared_width: int = 256,
        shared_depth: int = 2,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_rho: float = 1.0,
        clip_c: float = 1.0,
        clip_pg_rho: float = 1.0,
        clip_range: float = float("inf"),
        reward_clip: float = float("inf"),
        num_epochs: int = 1,
        num_minibatches: int = 1,
        normalise_advantage: bool = False,
        value_coef: float = 1.0,
        end_factor: float = 1.0,
        max_grad_norm: float = 1.0,
        obs_norm: str = "running",
        initial_std: float = 1.0,
    ) -> None:
        not_negative(c_kl=c_kl, c_ent=c_ent)
        positive(shared_width=shared_width, shared_depth=shared_depth)
        super().__init__(
            c,
            optimizer,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_rho=clip_rho,
            clip_c=clip_c,
            clip_pg_rho=clip_pg_rho,
            clip_range=clip_range,
            reward_clip=reward_clip,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            normalise_advantage=normalise_advantage,
            value_coef=value_coef,
            entropy_coef=0.0,
            end_factor=end_factor,
            max_grad_norm=max_grad_norm,
            obs_norm=obs_norm,
            initial_std=initial_std,
        )
        self.c_kl, self.c_ent = c_kl, c_ent
        features = self.policy.core.out_features
        self.shared_policy = SharedPolicy(features, c.spec, shared_width, shared_depth, initial_std).to(c.device)
        self.networks["shared_policy"] = self.shared_policy
        step = c.optimizer(self.shared_policy, optimizer, max_grad_norm, has_positive=False)
        self.optimizers = {**self.optimizers, "shared_policy": step}

    def _reward(
        self, rollout: Rollout, features: Float[Tensor, "T B F"], log_prob: Float[Tensor, "T B"]
    ) -> Float[Tensor, "T B"]:
        shared = self.shared_policy(features, rollout.task).log_prob(rollout.action)
        return regularised_reward(rollout.reward, log_prob, shared, self.c_kl, self.c_ent)

    def _step(self, batch: Minibatch, entropy_coef: Float[Tensor, ""], aux_coefs: Float[Tensor, "M K"]) -> Metrics:
        """Both sides learn from one another as they were before the step."""
        with torch.no_grad():
            features = self._features(batch)
        loss, metrics = self._shared_loss(features, batch)
        found = super()._step(batch, entropy_coef, aux_coefs)
        self.optimizers["shared_policy"](batch.task, signed=loss)
        return found | metrics

    def _shared_loss(self, features: Float[Tensor, "L N F"], batch: Minibatch) -> tuple[Float[Tensor, " K"], Metrics]:
        """Of the shared policy alone."""
        task = batch.task
        with torch.no_grad():
            own = self.policy.distribution(features, task)
        kl = own.kl_divergence(self.shared_policy(features, task))
        loss = per_task.mean_or_zero(self.c_kl * kl, task, self.num_tasks)
        return loss, {"shared_policy_kl": per_task.mean(kl.detach(), task, self.num_tasks)}
