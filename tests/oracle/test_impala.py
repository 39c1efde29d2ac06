"""Updates of the V-trace learner against a float64 loop over single samples."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.agents.aux_loss import AuxLoss
from mtrl.agents.vtrace_actor_critic import VTraceActorCritic
from mtrl.nn.networks import build_policy, build_value
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform, Weighting
from mtrl.registry import build
from mtrl.types import Rollout
from tests.helpers import (
    SCALAR,
    TRUNK,
    copy_parameters,
    describe,
    end_fields,
    given,
    make_spec,
    naive_network,
    naive_vtrace,
    next_obs_of,
    random_rollout,
)

K, T, B, OBS, A = 3, 6, 4, 4, 2
LR, GAMMA, ENTROPY = 0.05, 0.875, 0.02  # gamma exact in float32, as masks are
SPEC = make_spec(K, OBS, A)


def make_learner(
    obs_norm: str = "none",
    value_norm: str = "none",
    discrete: bool = False,
    trunk: dict[str, Any] = TRUNK,
    value_head: dict[str, Any] = SCALAR,
    column: dict[str, Any] | None = None,
    agent: Any = None,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    spec = make_spec(K, OBS, A + 1, "discrete") if discrete else SPEC
    description = describe("categorical" if discrete else "gaussian", obs_norm=obs_norm, trunk=trunk)
    policy = build_policy(description | {"column": column or {"name": "none"}}, spec)
    value = build_value(description, spec, "per_task", value_head, policy.core.out_features)
    with torch.no_grad():
        for head in (policy.head, value.head):
            for parameter in head.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
    policy.double()
    value.double()

    def step(module: nn.Module, max_norm: float, has_positive: bool) -> MultiTaskOptimizer:
        parameters = list(module.parameters())
        optimizer = torch.optim.SGD([{"params": parameters, "initial_lr": LR}], lr=LR)
        return MultiTaskOptimizer(parameters, optimizer, Uniform(), Sum(), math.inf, has_positive)

    norm = build("value_norm", {"name": value_norm}, num_tasks=K)
    agent = agent or partial(VTraceActorCritic, entropy_coef=ENTROPY)
    return agent(given(spec, policy, [value], norm, step), optimizer={}, **{"gamma": GAMMA} | options)


def make_rollout(seed: int = 0) -> Rollout:
    action = torch.randn(T, B, A, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return random_rollout(T, B, K, OBS, action, seed)


def on_policy(rollout: Rollout, learner: VTraceActorCritic) -> Rollout:
    """The rollout as if the learner's policy had made it, one row at a time."""
    with torch.no_grad():
        rows = [learner.policy(rollout.obs[t], rollout.task[t]).log_prob(rollout.action[t]) for t in range(T)]
    return dataclasses.replace(rollout, log_prob=torch.stack(rows))


class Naive:
    """The learner's equations, one sample at a time: one or more epochs of one minibatch, plain gradient descent."""

    def __init__(self, learner: VTraceActorCritic) -> None:
        self.policy, self.value = copy_parameters(learner.policy), copy_parameters(learner.value)
        self.metrics: dict[str, list[Tensor]] = {"policy_loss": [], "value_loss": [], "entropy": []}

    def v(self, obs: Tensor, k: int) -> Tensor:
        return naive_network(self.value, obs, k, K)[0]

    def log_prob(self, obs: Tensor, action: Tensor, k: int) -> Tensor:
        mean = naive_network(self.policy, obs, k, K, head="head.head.")
        std = self.policy["head.log_std"][k].exp()
        return (-0.5 * ((action - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).sum()

    def entropy(self, k: int) -> Tensor:
        return (0.5 * math.log(2 * math.pi * math.e) + self.policy["head.log_std"][k]).sum()

    def bonus(self, k: int) -> Tensor:
        """A standard deviation above 1 counts as 1."""
        return self.entropy(k) - self.policy["head.log_std"][k].clamp(min=0).sum()

    def update(
        self,
        r: Rollout,
        gae_lambda: float = 1.0,
        clips: tuple[float, float, float] = (1.0, 1.0, 1.0),
        num_epochs: int = 1,
        clip_range: float = math.inf,
        normalise: bool = False,
    ) -> None:
        everyone, next_obs = [(t, b) for t in range(T) for b in range(B)], next_obs_of(r)
        with torch.no_grad():
            value = torch.stack([self.v(r.obs[i], int(r.task[i])) for i in everyone]).view(T, B)
            next_value = torch.stack([self.v(next_obs[i], int(r.task[i])) for i in everyone]).view(T, B)
            start = torch.stack([self.log_prob(r.obs[i], r.action[i], int(r.task[i])) for i in everyone]).view(T, B)
        target, advantage, weight = naive_vtrace(
            start - r.log_prob,
            r.reward,
            GAMMA,
            r.terminated,
            r.truncated,
            value,
            next_value,
            gae_lambda,
            *clips,
        )
        if normalise:
            for k in range(K):
                own = advantage[r.task == k]
                advantage[r.task == k] = (own - own.mean()) / own.std(unbiased=False)
        advantage = weight * advantage
        for _ in range(num_epochs):
            policy_loss, value_loss, entropy = [], [], []
            for k in range(K):
                samples = [i for i in everyone if r.task[i] == k]
                own_policy, own_value = [], []
                for i in samples:
                    ratio = (self.log_prob(r.obs[i], r.action[i], k) - start[i]).exp()
                    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                    objective = torch.minimum(ratio * advantage[i], clipped * advantage[i])
                    own_policy.append(-objective - ENTROPY * self.bonus(k))
                    own_value.append(0.5 * (self.v(r.obs[i], k) - target[i]) ** 2)
                policy_loss.append(sum(own_policy) / len(samples))
                value_loss.append(sum(own_value) / len(samples))
                entropy.append(self.entropy(k))
            for params, losses in ((self.policy, policy_loss), (self.value, value_loss)):
                leaves = list(params.values())
                gradients = torch.autograd.grad(sum(losses), leaves, materialize_grads=True)
                with torch.no_grad():
                    for p, g in zip(leaves, gradients, strict=True):
                        p -= LR * g
            for key, losses in (("policy_loss", policy_loss), ("value_loss", value_loss), ("entropy", entropy)):
                self.metrics[key].append(torch.stack(losses).detach())


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def compare(learner: VTraceActorCritic, naive: Naive, metrics: dict[str, Tensor]) -> None:
    for key, losses in naive.metrics.items():
        close(metrics[key].double(), torch.stack(losses).mean(0))
    close(dict(learner.policy.named_parameters()), {k: p.detach() for k, p in naive.policy.items()})
    close(dict(learner.value.named_parameters()), {k: p.detach() for k, p in naive.value.items()})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("gae_lambda", "clips"), [(1.0, (1.0, 1.0, 1.0)), (0.9, (2.0, 1.5, 0.8))])
def test_one_update_is_the_naive_loop(seed: int, gae_lambda: float, clips: tuple[float, float, float]) -> None:
    """Off-policy, with ends of both kinds; slots change tasks."""
    clip_rho, clip_c, clip_pg_rho = clips
    learner = make_learner(gae_lambda=gae_lambda, clip_rho=clip_rho, clip_c=clip_c, clip_pg_rho=clip_pg_rho)
    rollout = make_rollout(seed)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    naive = Naive(learner)
    metrics = learner.update(rollout, 0.0)
    naive.update(rollout, gae_lambda, clips)
    compare(learner, naive, metrics)


def test_ppo_epochs_are_the_naive_loop() -> None:
    """Three epochs; the ratio is to the policy at the start of the update, and clipped; advantages are standardised."""
    options: dict[str, Any] = {"gae_lambda": 0.95, "num_epochs": 3, "clip_range": 0.05}
    learner, rollout = make_learner(normalise_advantage=True, **options), make_rollout(2)
    naive = Naive(learner)
    metrics = learner.update(rollout, 0.0)
    assert metrics["clip_fraction"] > 0.1
    naive.update(rollout, normalise=True, **options)
    compare(learner, naive, metrics)


def test_minibatches_have_one_size() -> None:
    """24 samples in five minibatches: four in each, and four others left over in each epoch."""
    learner, sizes = make_learner(num_epochs=3, num_minibatches=5), []
    take = learner.steps

    def count(task: Tensor, *losses: Tensor) -> dict[str, Tensor]:
        sizes.append(task.numel())
        return take(task, *losses)

    learner.steps = count  # type: ignore[assignment]
    learner.update(make_rollout(), 0.0)
    assert sizes == [4] * 15


@pytest.mark.parametrize("obs_norm", ["none", "running"])
def test_on_policy_ratios_are_one(obs_norm: str) -> None:
    """In the first epoch the policy is the one that acted: normalisation statistics have not moved between."""
    learner = make_learner(obs_norm=obs_norm, clip_range=0.2)
    for seed in range(3):
        rollout = on_policy(make_rollout(seed), learner)
        features, _ = learner.policy.unroll(rollout.obs, rollout.task, rollout.is_first, rollout.core_state)
        log_prob = learner.policy.distribution(features, rollout.task).log_prob(rollout.action)
        torch.testing.assert_close(log_prob, rollout.log_prob, rtol=0, atol=1e-12)
        metrics = learner.update(rollout, 0.0)
        assert metrics["approximate_kl"].abs() < 1e-12
        assert metrics["clip_fraction"] == 0


def test_several_epochs_leave_the_policy_that_acted() -> None:
    learner = make_learner(num_epochs=2)
    metrics = learner.update(on_policy(make_rollout(), learner), 0.0)
    assert metrics["approximate_kl"] > 1e-6


def test_observation_statistics_move_only_after_learning() -> None:
    """All epochs see observations on the scale before: as a learner without a scale that is given them on it."""
    learner, plain = (make_learner(obs_norm=name, num_epochs=2, num_minibatches=2) for name in ("running", "none"))
    norm, first, second = learner.policy.obs_norm, make_rollout(0), make_rollout(1)
    norm.update(first.obs, first.task)
    step, slot = second.ends
    obs, end_obs = norm(second.obs, second.task), norm(second.end_obs, second.task[step, slot])
    for one, rollout in ((learner, second), (plain, dataclasses.replace(second, obs=obs, end_obs=end_obs))):
        torch.manual_seed(1)
        one.update(rollout, 0.0)
    expected = dict(plain.networks.named_parameters())
    for name, parameter in learner.networks.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-9, atol=1e-12)
    both = torch.cat([first.obs, second.obs]).flatten(0, 1)
    torch.testing.assert_close(norm.mean, both.mean(0))
    torch.testing.assert_close(norm.var, both.var(0, unbiased=False))


def test_bootstraps_from_what_the_step_led_to() -> None:
    """`end_obs` counts where an episode was truncated and after the last step, not where the task terminated."""
    rollout = make_rollout(0)
    ended = rollout.terminated | rollout.truncated

    def losses(changed: Tensor) -> Tensor:
        learner = make_learner()
        step, slot = rollout.ends
        end_obs = rollout.end_obs + changed[step, slot, None].double()
        return learner.update(dataclasses.replace(rollout, end_obs=end_obs), 0.0)["value_loss"]

    nothing, last = losses(torch.zeros(T, B)), torch.zeros(T, B, dtype=torch.bool)
    last[-1] = True
    assert torch.equal(losses(rollout.terminated), nothing)
    assert not torch.equal(losses(rollout.truncated & ~last), nothing)
    assert not torch.equal(losses(last & ~ended), nothing)


def test_the_next_episode_is_not_bootstrapped_from() -> None:
    """After a truncation the reset observation changes its own sample, and nothing of the episode before.

    Which is of task 0, and the one after it of task 1: so their losses tell them apart.
    """
    rollout = make_rollout(0)
    truncated = torch.zeros(T, B, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    quiet = dataclasses.replace(
        rollout,
        terminated=torch.zeros(T, B, dtype=torch.bool),
        truncated=truncated,
        continuation=torch.ones(T, B),
        **end_fields(truncated, next_obs_of(rollout)),
        task=torch.zeros(T, B, dtype=torch.int64).index_fill(0, torch.arange(3, T), 1),
    )
    obs, reward = quiet.obs.clone(), quiet.reward.clone()
    obs[3:] += 1
    reward[3:] += 100
    changed = dataclasses.replace(quiet, obs=obs, reward=reward)
    one, other = (make_learner().update(data, 0.0) for data in (quiet, changed))
    for loss in ("policy_loss", "value_loss"):
        assert torch.equal(one[loss][0], other[loss][0])
        assert not torch.isclose(one[loss][1], other[loss][1])


def test_clipping_holds_the_policy_back() -> None:
    kl = {}
    for clip_range in (0.05, math.inf):
        learner = make_learner(num_epochs=10, clip_range=clip_range, entropy_coef=0.0)
        metrics = learner.update(on_policy(make_rollout(), learner), 0.0)
        kl[clip_range] = float(metrics["approximate_kl"])
        assert (metrics["clip_fraction"] > 0) == math.isfinite(clip_range)
    assert kl[0.05] < 0.5 * kl[math.inf]


def test_an_update_ends_beyond_the_target_kl() -> None:
    """Before the first step the policy is the one that acted, with a KL divergence of 0, and afterwards it is not."""
    learner = make_learner(num_epochs=3, num_minibatches=2, target_kl=1e-9)
    twice = make_learner(num_epochs=1, num_minibatches=2)
    changes = []
    for one in (learner, twice):
        torch.manual_seed(1)
        changes.append(moved(one, on_policy(make_rollout(), one)))
    for name, change in changes[0].items():
        assert torch.equal(change, changes[1][name])
    assert changes[0]["policy.trunk.input.weight"].any()


class Samples(Weighting):
    """A task's loss counts as often as it has samples in a rollout."""

    def forward(self, losses: Tensor) -> Tensor:
        return losses * make_rollout().task.flatten().bincount(minlength=K)


def moved(learner: VTraceActorCritic, rollout: Rollout) -> dict[str, Tensor]:
    """What an update adds to each parameter, with a rate so small that steps add up."""
    before = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}
    learner.update(rollout, 1.0)
    return {name: p.detach() - before[name] for name, p in learner.networks.named_parameters()}


def test_minibatches_cover_the_rollout() -> None:
    """Every sample is learned from once in each epoch: three epochs of single samples are three times their sum."""
    whole, single = make_learner(end_factor=1e-6), make_learner(end_factor=1e-6, num_epochs=3, num_minibatches=T * B)
    for step in whole.optimizers.values():
        step.weighting = Samples()
    expected = moved(whole, make_rollout())
    for name, change in moved(single, make_rollout()).items():
        torch.testing.assert_close(change, 3 * expected[name], rtol=1e-4, atol=1e-12)


def test_minibatches_are_drawn_at_random() -> None:
    found = []
    for seed in (0, 1):
        learner = make_learner(num_minibatches=5)
        torch.manual_seed(seed)
        learner.update(make_rollout(), 0.0)
        found.append(learner.value.head.weight.detach())
    assert not torch.allclose(*found)


def test_discrete_actions_learn_by_the_policy_gradient() -> None:
    """One step raises the probability of an action with a positive advantage in its state, and lowers the other's."""
    learner = make_learner(discrete=True, entropy_coef=0.0)
    rollout = random_rollout(1, 2, 1, OBS, torch.tensor([[0, 2]]), 0)
    reward, ended = torch.tensor([[50.0, -50.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    rollout = dataclasses.replace(
        rollout, reward=reward, terminated=ended, truncated=~ended, continuation=(~ended).float()
    )
    before = learner.policy(rollout.obs, rollout.task).log_prob(rollout.action).detach()
    learner.update(dataclasses.replace(rollout, log_prob=before), 0.0)
    after = learner.policy(rollout.obs, rollout.task).log_prob(rollout.action)
    assert after[0, 0] > before[0, 0]
    assert after[0, 1] < before[0, 1]


def test_rates_and_entropy_weight_fall_linearly() -> None:
    # 1 + (0.2 - 1) * 0.5 = 0.6
    learner = make_learner(end_factor=0.2)
    learner.update(make_rollout(), 0.5)
    for step in learner.optimizers.values():
        assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.6 * LR)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3])
def test_popart_makes_the_scale_of_rewards_irrelevant(normalise: bool, factor: float) -> None:
    """Task 1's rewards times 1000: the same normalised losses and the same policy, and sigma times 1000.

    Values begin at zero, so that the first targets scale with the rewards too. After that PopArt keeps outputs.
    """
    learners, history = [], []
    for scale in (1.0, factor):
        learner = make_learner(value_norm="popart", normalise_advantage=normalise)
        for parameter in learner.value.head.parameters():
            nn.init.zeros_(parameter)
        metrics = []
        for seed in range(4):
            rollout = make_rollout(seed)
            reward = rollout.reward * torch.where(rollout.task == 1, scale, 1.0)
            metrics.append(learner.update(dataclasses.replace(rollout, reward=reward), 0.0))
        learners.append(learner)
        history.append(metrics)
    for small, large in zip(*history, strict=True):
        for key in ("value_loss", "policy_loss"):
            torch.testing.assert_close(small[key], large[key], rtol=1e-6, atol=1e-8)
        ratio = large["value_scale"] / small["value_scale"]
        torch.testing.assert_close(ratio, torch.tensor([1.0, factor, 1.0]), rtol=1e-5, atol=0)
    small, large = (learner.networks.state_dict() for learner in learners)
    for key in small:
        if not key.startswith("value_norm"):
            torch.testing.assert_close(small[key], large[key], rtol=1e-6, atol=1e-8)


def test_popart_keeps_the_values_through_an_update() -> None:
    """With no learning to speak of, an update changes the statistics and no denormalised value."""
    learner, rollout = make_learner(value_norm="popart"), make_rollout()
    for step in learner.optimizers.values():
        step.optimizer.param_groups[0]["initial_lr"] = 1e-30
    rollout = dataclasses.replace(rollout, reward=30 * rollout.reward)

    def values() -> Tensor:
        with torch.no_grad():
            return learner.value_norm.denormalise(learner.value(rollout.obs, rollout.task), rollout.task)

    before = values()
    learner.update(rollout, 0.0)
    assert ((learner.value_norm.sigma - 1).abs() > 0.1).all()
    torch.testing.assert_close(values(), before, rtol=1e-9, atol=1e-9)


def test_without_popart_the_scale_of_rewards_matters() -> None:
    """The control for the test above."""
    losses = []
    for scale in (1.0, 1000.0):
        rollout = make_rollout()
        losses.append(make_learner().update(dataclasses.replace(rollout, reward=rollout.reward * scale), 0.0))
    assert (losses[1]["value_loss"] > 100 * losses[0]["value_loss"]).all()


def test_saving_and_loading_continues_bit_exactly() -> None:
    one, other = (make_learner("running", "popart", num_epochs=2, num_minibatches=3) for _ in range(2))
    for seed in range(2):
        one.update(make_rollout(seed), 0.1)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, other):
        torch.manual_seed(5)
        learner.update(make_rollout(3), 0.2)
    for ours, theirs in zip(one.networks.state_dict().values(), other.networks.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("action", "reward"), [(7.0, 0.0), (1e6, 0.0), (7.0, 50.0)])
@pytest.mark.parametrize("value_norm", ["none", "popart"])
@pytest.mark.parametrize("normalise", [False, True])
def test_nothing_is_learned_from_actions_that_nobody_chose(
    normalise: bool, value_norm: str, action: float, reward: float
) -> None:
    """Their log-probability is infinite; whatever they were and earned, the update is the same, and finite."""
    rollout = make_rollout()
    forced = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.3
    rollout = dataclasses.replace(rollout, log_prob=rollout.log_prob.masked_fill(forced, torch.inf))
    other = dataclasses.replace(
        rollout,
        action=torch.where(forced[..., None], action, rollout.action),
        reward=rollout.reward + reward * forced,
    )
    options: dict[str, Any] = {"value_norm": value_norm, "normalise_advantage": normalise}
    learners = [make_learner(num_epochs=2, clip_range=0.2, **options) for _ in range(2)]
    metrics = []
    for learner, data in zip(learners, (rollout, other), strict=True):
        torch.manual_seed(0)  # of the minibatches
        metrics.append(learner.update(data, 0.0))
    for one, two in zip(*(learner.networks.state_dict().values() for learner in learners), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, two)
    for one, two in zip(*(row.values() for row in metrics), strict=True):
        assert torch.equal(one, two)


# --- auxiliary losses -----------------------------------------------------------------------------------------------


class Pull(AuxLoss):
    """Draws the mean of the policy towards 1: (*samples,) mean over components of (mean - 1)^2, times 3 in the end."""

    def coefficient(self, progress: float) -> float:
        return 3 * progress

    def __call__(self, minibatch: Any, output: Any, targets: Tensor) -> Tensor:
        return (output.mode() - 1).square().mean(-1)


def test_an_auxiliary_loss_is_added_for_each_task() -> None:
    """Plain gradient descent: parameters differ by -rate * coefficient * gradient of the sum over tasks of its mean."""
    learners, rollout = [make_learner(), make_learner()], make_rollout()
    learners[1].aux_losses = {"pull": Pull()}
    start = make_learner()
    for learner in learners:
        torch.manual_seed(0)
        learner.update(rollout, 0.5)
    obs, task = rollout.obs.flatten(0, 1), rollout.task.flatten()
    distances = (start.policy(obs, task).mode() - 1).square().mean(-1)
    total = sum(distances[task == k].mean() for k in range(K))
    parameters = dict(start.policy.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    found = [dict(learner.policy.named_parameters()) for learner in learners]
    for name, gradient in zip(parameters, gradients, strict=True):
        expected = torch.zeros_like(parameters[name]) if gradient is None else -LR * 1.5 * gradient
        torch.testing.assert_close(found[1][name] - found[0][name], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(*(learner.value.trunk.input.weight for learner in learners))
