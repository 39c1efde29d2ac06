"""IMPALA-style learner: V-trace actor-critic, optionally with PPO's clipped surrogate, epochs and minibatches.

Espeholt et al., "IMPALA" (2018); Schulman et al., "PPO" (2017); Hessel et al., "Multi-task Deep RL with PopArt" (2018).
`agent=impala` is one pass without clipping; `agent=ppo` several epochs with it. On-policy, V-trace with lambda is
GAE(lambda), so that nothing else differs.

Differences from the papers:
    1. Targets and advantages are computed once per update, from the networks as they are when it begins; the
       importance weights are those of that moment (with one epoch of one minibatch: the paper's).
    2. Policy and value share the torso (and core), if there is one, and one optimiser then; what comes after is
       separate. On flat observations they are separate networks, each with an optimiser of its own.
    3. Losses are means over the samples of each task, the paper's sums over a batch: see
       `configs/experiment/atari57_impala.yaml` for what this makes of its settings.
    4. The clipped ratio is taken to the policy at the beginning of the update, not to the behaviour policy; the two
       are the same unless actors lag (decoupled PPO, Hilton et al. 2021).
    5. Values are zero at first, and advantages are divided by a tenth of a typical reward at least (`ValueNorm.floor`),
       in PPO by their deviation however small: where there is no reward, they are errors of the value network.
    6. The entropy bonus widens no Gaussian beyond a standard deviation of 1 (`Gaussian.entropy_bonus`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtrl.agents.losses import clipped_surrogate, per_task_mean, per_task_standardise, require_finite, vtrace
from mtrl.checks import not_negative, positive
from mtrl.nn.networks import PolicyNetwork, ValueNetwork
from mtrl.nn.scaling import ValueNorm
from mtrl.optim.step import JointStep, SeparateSteps
from mtrl.types import Metrics, Rollout, State


class Impala:
    """V-trace actor-critic for K tasks.

    Args:
        value: On the features of the policy.
        steps: On the parameters of both.
        reward_clip: Rewards count as this at most, either way; infinity for as they are.
        clip_range: Of the ratio to the policy at the start of the update; infinity for none.
        normalise_advantage: Standardise the advantages of each task over the actions of the rollout that the policy
            chose, dividing by `ValueNorm.floor` at least.
        value_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus at the start.
        final_factor: What learning rates and entropy weight have been multiplied by at the end of training; linear.
    """

    def __init__(
        self,
        policy: PolicyNetwork,
        value: ValueNetwork,
        value_norm: ValueNorm,
        steps: SeparateSteps | JointStep,
        num_tasks: int,
        gamma: float = 0.99,
        lambda_: float = 1.0,
        clip_rho: float = 1.0,
        clip_c: float = 1.0,
        clip_pg_rho: float = 1.0,
        clip_range: float = float("inf"),
        reward_clip: float = float("inf"),
        epochs: int = 1,
        minibatches: int = 1,
        normalise_advantage: bool = False,
        value_coef: float = 1.0,
        entropy_coef: float = 0.01,
        final_factor: float = 1.0,
    ) -> None:
        positive(epochs=epochs, minibatches=minibatches, clip_range=clip_range, clip_rho=clip_rho, clip_c=clip_c)
        positive(reward_clip=reward_clip, value_coef=value_coef)
        not_negative(entropy_coef=entropy_coef, final_factor=final_factor, lambda_=lambda_, gamma=gamma)
        self.policy, self.value, self.value_norm = policy, value, value_norm
        self.networks = nn.ModuleDict({"policy": policy, "value": value, "value_norm": value_norm})
        self.steps, self.num_tasks = steps, num_tasks
        self.gamma, self.lambda_, self.reward_clip = gamma, lambda_, reward_clip
        self.clip_rho, self.clip_c, self.clip_pg_rho, self.clip_range = clip_rho, clip_c, clip_pg_rho, clip_range
        self.epochs, self.minibatches, self.normalise_advantage = epochs, minibatches, normalise_advantage
        self.value_coef, self.entropy_coef, self.final_factor = value_coef, entropy_coef, final_factor
        self.act, self.initial_state = policy.act, policy.initial_state

    def update(self, rollout: Rollout, progress: float) -> Metrics:
        """Learns from one rollout; `progress` in [0, 1] is the share of training done."""
        factor = 1 + (self.final_factor - 1) * progress
        self.steps.set_lr_factor(factor)

        rollout = replace(rollout, reward=rollout.reward.clamp(-self.reward_clip, self.reward_clip))
        log_prob, target, advantage, weight = self._targets(rollout)
        task = rollout.task
        require_finite(target + advantage, task)  # before they can reach a statistic or a parameter
        chosen = weight > 0  # not by chance (`agent.random_start`): statistics of the policy are over these
        self.value_norm.update(target, rollout.reward * chosen, task, [self.value.head])
        if self.normalise_advantage:
            advantage = per_task_standardise(advantage, task, chosen, self.value_norm.floor)
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
            "first": rollout.first,
            "state": rollout.state.expand(len(task), *rollout.state.shape),
        }
        samples = {key: self.policy.core.sequences(tensor) for key, tensor in samples.items()}
        entropy_coef = advantage.new_tensor(factor * self.entropy_coef)
        steps: list[Metrics] = []
        for _ in range(self.epochs):
            order = torch.randperm(samples["task"].shape[1], device=task.device)
            for chosen in order.tensor_split(self.minibatches):
                steps.append(self._step({key: tensor[:, chosen] for key, tensor in samples.items()}, entropy_coef))
        # Afterwards, so that the policy that acted and the one that learned saw the same observations.
        self.policy.obs_norm.update(rollout.obs, task)

        metrics = {key: _mean([step[key] for step in steps]) for key in steps[0]}
        metrics["value_scale"] = self.value_norm.sigma.float()
        return metrics

    @torch.no_grad()
    def diagnostics(self, rollout: Rollout) -> Metrics:
        """How much of the policy and of the value network is in use."""
        features, _ = self.policy.unroll(rollout.obs, rollout.task, rollout.first, rollout.state)
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
        features, states = self.policy.unroll(rollout.obs, task, rollout.first, rollout.state)
        log_prob = self.policy.distribution(features, task).log_prob(rollout.action)
        value = self._value(features, task)
        # V(s_{t+1}) is the next row's value, except where an episode or the rollout ends.
        next_value = value.roll(-1, dims=0)
        ends = rollout.done.clone()
        ends[-1] = True
        last_obs = rollout.next_obs[ends][None]
        first = torch.zeros_like(task[ends], dtype=torch.bool)
        last, _ = self.policy.unroll(last_obs, task[ends][None], first[None], states[ends])
        next_value[ends] = self._value(last[0], task[ends])
        target, advantage, weight = vtrace(
            log_prob - rollout.log_prob,
            rollout.reward,
            self.gamma * rollout.discount,
            rollout.done.float(),
            value,
            next_value,
            self.lambda_,
            self.clip_rho,
            self.clip_c,
            self.clip_pg_rho,
        )
        return log_prob, target, advantage, weight

    def _value(self, features: Tensor, task: Tensor) -> Tensor:
        return self.value_norm.denormalise(self.value(features, task), task)

    def _step(self, batch: dict[str, Tensor], entropy_coef: Float[Tensor, ""]) -> Metrics:
        task = batch["task"]
        features = self._features(batch)
        policy_loss, metrics = self._policy_loss(features, batch, entropy_coef)
        value_loss = self._value_loss(features, batch)
        own = features.detach()  # a trunk's loss is of its own parameters, not of the torso's
        policy_aux, policy_diagnostics = self.policy.aux(own, task)
        value_aux, value_diagnostics = self.value.aux(own, task)
        found = self.steps(task, policy_loss, self.value_coef * value_loss, policy_aux, value_aux)
        return {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            **metrics,
            **{f"policy_{key}": value for key, value in policy_diagnostics.items()},
            **{f"value_{key}": value for key, value in value_diagnostics.items()},
            **{f"grad/{key}": value for key, value in found.items()},
        }

    def _features(self, batch: dict[str, Tensor]) -> Float[Tensor, "L N F"]:
        features, _ = self.policy.unroll(batch["obs"], batch["task"], batch["first"], batch["state"][0])
        return features

    def _policy_loss(
        self, features: Float[Tensor, "L N F"], batch: dict[str, Tensor], entropy_coef: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " K"], Metrics]:
        task = batch["task"]
        distribution = self.policy.distribution(features, task)
        chosen = batch["chosen"]
        # Left out, not only multiplied by an advantage of zero: the ratio of an action far from the policy overflows.
        log_ratio = torch.where(chosen, distribution.log_prob(batch["action"]) - batch["log_prob"], 0)
        surrogate = clipped_surrogate(log_ratio.exp(), batch["advantage"], self.clip_range)
        loss = per_task_mean(-surrogate - entropy_coef * distribution.entropy_bonus(), task, self.num_tasks)
        with torch.no_grad():
            metrics = {
                "entropy": per_task_mean(distribution.entropy(), task, self.num_tasks),
                "approximate_kl": (log_ratio.exp() - 1 - log_ratio).sum() / chosen.sum().clamp(min=1),
                "clip_fraction": ((log_ratio.exp() - 1).abs() > self.clip_range).sum() / chosen.sum().clamp(min=1),
            }
        return loss, metrics

    def _value_loss(self, features: Float[Tensor, "L N F"], batch: dict[str, Tensor]) -> Float[Tensor, " K"]:
        return per_task_mean(self.value.loss(features, batch["task"], batch["target"]), batch["task"], self.num_tasks)

    def state_dict(self) -> State:
        return {key: getattr(self, key).state_dict() for key in self._SAVED}

    def load_state_dict(self, state: State) -> None:
        for key in self._SAVED:
            getattr(self, key).load_state_dict(state[key])

    _SAVED = ("networks", "steps")
    COMPILABLE = ("_features", "_policy_loss", "_value_loss")


def _mean(values: list[Tensor]) -> Tensor:
    """Mean over steps; a task is NaN in steps from which it was absent."""
    stacked = torch.stack(values)
    return stacked.mean(0) if stacked.ndim == 1 else stacked.nanmean(0)
