"""Distral on the V-trace learner: each task's policy is held near a shared policy that does not know the task.

Teh et al., "Distral: Robust Multitask Reinforcement Learning" (2017), for continuous and discrete actions.

Differences from the paper:
    1. The task policies are one network that knows the task, with whatever trunk and heads are configured; V-trace
       stands in place of A3C's returns.
    2. The shared policy reads the features of the task policies' torso and core, which do not know the task. What it
       learns from its own loss does not change them.
    3. The shared policy learns from KL(pi_i || pi_0) in the states of the rollout, in closed form: the gradient is the
       paper's, sum_a (pi_i - pi_0) grad h_0, without the discount gamma^t of the time in the episode.
    4. In two columns, the network's output is beta f_i, not f_i: 1 / beta is a cost, and can be very small.
    5. In two columns, both terms of the gradient of h_0 are in units of value scaling's sigma, by which advantages are
       divided. With `normalise_advantage` that is so for the second term only: advantages then have a variance of 1.
    6. Continuous actions, which the paper does not have: where it adds logits, we add the means of Gaussians. The
       standard deviations of pi_i and pi_0 are parameters of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtrl import per_task
from mtrl.agents.components import Components
from mtrl.agents.minibatch import Minibatch
from mtrl.agents.vtrace_actor_critic import VTraceActorCritic
from mtrl.checks import not_negative, positive
from mtrl.distill.distral import regularised_reward, strengths
from mtrl.nn.columns import SharedColumn, SharedPolicy
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.registry import register
from mtrl.types import Metrics, Rollout


@register("agent", "distral")
class Distral(VTraceActorCritic):
    """V-trace actor-critic for r + c_kl log pi_0(a | s) - (c_kl + c_ent) log pi_i(a | s), and pi_0 distilled from pi_i.

    In the symbols of the paper, c_kl = alpha / beta and c_kl + c_ent = 1 / beta. With one column and both zero it is
    `agent=impala`.

    One column: pi_i is what the network says. Its parameters learn from the policy gradient, those of pi_0 from
    c_kl KL(pi_i || pi_0), by an optimiser of their own.

    Two columns: pi_i is proportional to exp(alpha h_0(a | s) + beta f_i(a | s)), with h_0 the logits of pi_0, which is
    a part of the policy. Both learn from the policy gradient, which passes through alpha h_0, and h_0 in addition from
    c_kl KL(pi_i || pi_0), in which pi_i is constant. One optimiser takes the sum, as the ratio of these matters.

    Use it where the tasks differ too much for one policy, but good behaviour in them has something in common.

    Args:
        c: See `VTraceActorCritic`, as for all options that are not named here.
        optimizer: Name and options of the optimisers.
        c_kl: Cost of the KL divergence from a task's policy to the shared one, in units of the reward.
        c_ent: Cost of missing entropy of a task's policy, likewise. It has no limit for Gaussians.
        columns: Of a task's policy: 2, if the shared policy's logits or means are a part of it, else 1.
        shared_width: Of the layers of the shared policy.
        shared_depth: Number of its hidden layers.
        entropy_coef: Initial weight of an entropy bonus, as in `agent=impala`, which does not look ahead.

    Raises:
        UserError: A cost is negative, or both are zero in two columns, so that there is no alpha.
    """

    compilable = (*VTraceActorCritic.compilable, "_shared_loss")

    def __init__(
        self,
        c: Components,
        optimizer: dict[str, Any],
        c_kl: float = 5e-4,
        c_ent: float = 5e-4,
        columns: Literal[1, 2] = 1,
        shared_width: int = 256,
        shared_depth: int = 2,
        entropy_coef: float = 0.0,
        **options: Any,
    ) -> None:
        not_negative(c_kl=c_kl, c_ent=c_ent)
        positive(shared_width=shared_width, shared_depth=shared_depth)
        self.c_kl, self.c_ent = c_kl, c_ent
        kind, layers = COLUMNS[columns], {"width": shared_width, "depth": shared_depth}
        c = kind.components(c, c_kl, c_ent, layers)
        super().__init__(c, optimizer, entropy_coef=entropy_coef, **options)
        self.columns = kind(self, c, optimizer, layers)
        self.shared_policy = self.columns.shared_policy
        self.shared_policy.set_std(1.0 if self.initial_std is None else self.initial_std)
        self.networks.update(self.columns.networks)
        self.optimizers = {**self.optimizers, **self.columns.optimizers}

    def _reward(
        self, rollout: Rollout, features: Float[Tensor, "T B F"], log_prob: Float[Tensor, "T B"]
    ) -> Float[Tensor, "T B"]:
        shared = self.shared_policy(features, rollout.task).log_prob(rollout.action)
        return regularised_reward(rollout.reward, log_prob, shared, self.c_kl, self.c_ent)

    def _step(
        self,
        batch: Minibatch,
        entropy_coef: Float[Tensor, ""],
        aux_coefs: Float[Tensor, "M K"],
        regulariser: float | Float[Tensor, " K"] = 0.0,
    ) -> Metrics:
        """Both sides learn from one another as they were before the step."""
        with torch.no_grad():
            features = self._features(batch)
        loss, metrics = self._shared_loss(features, batch)
        of_learner = super()._step(batch, entropy_coef, aux_coefs, regulariser + self.columns.of_policy(loss))
        self.columns.step(batch.task, loss)
        return of_learner | metrics

    def _shared_loss(self, features: Float[Tensor, "L N F"], batch: Minibatch) -> tuple[Float[Tensor, " K"], Metrics]:
        """Of the shared policy alone."""
        task = batch.task
        with torch.no_grad():
            task_policy = self.policy.distribution(features, task)
        kl = task_policy.kl_divergence(self.shared_policy(features, task))
        loss = per_task.mean_or_zero(self.c_kl * kl, task, self.num_tasks)
        return loss, {"shared_policy_kl": per_task.mean(kl.detach(), task, self.num_tasks)}


class OneColumn:
    """The shared policy is a network of its own, with an optimiser of its own."""

    def __init__(self, learner: Distral, c: Components, optimizer: dict[str, Any], layers: dict[str, int]) -> None:
        features = learner.policy.core.out_features
        self.shared_policy = SharedPolicy(features, c.spec, **layers).to(c.device)
        self.networks = {"shared_policy": self.shared_policy}
        step = c.optimizer(self.shared_policy, optimizer, learner.max_grad_norm, has_positive=False)
        self.optimizers = {"shared_policy": step}

    @staticmethod
    def components(c: Components, c_kl: float, c_ent: float, layers: dict[str, int]) -> Components:
        """Components of the learner."""
        return c

    def of_policy(self, loss: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The part of the shared policy's loss that is added to that of the policy: nothing."""
        return torch.zeros_like(loss)

    def step(self, task: Int[Tensor, "L N"], loss: Float[Tensor, " K"]) -> None:
        """Learns from the shared policy's loss, after the policy has learned."""
        self.optimizers["shared_policy"](task, signed=loss)


class TwoColumns:
    """The shared policy is a column of the policy, and learns with it."""

    def __init__(self, learner: Distral, c: Components, optimizer: dict[str, Any], layers: dict[str, int]) -> None:
        column = cast(SharedColumn, learner.policy.column)
        self.shared_policy, self.value_norm = column.shared_policy, learner.value_norm
        self.networks: dict[str, SharedPolicy] = {}
        self.optimizers: dict[str, MultiTaskOptimizer] = {}

    @staticmethod
    def components(c: Components, c_kl: float, c_ent: float, layers: dict[str, int]) -> Components:
        """See `OneColumn`."""
        alpha, _ = strengths(c_kl, c_ent)
        return replace(c, column={"name": "shared", "alpha": alpha, **layers})

    def of_policy(self, loss: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """See `OneColumn`: all of it, in the units of advantages."""
        return loss / self.value_norm.sigma.to(loss.dtype)

    def step(self, task: Int[Tensor, "L N"], loss: Float[Tensor, " K"]) -> None:
        """See `OneColumn`: it has learned with the policy."""


COLUMNS: dict[int, type[OneColumn | TwoColumns]] = {1: OneColumn, 2: TwoColumns}
