"""The LSTM core against its equations step by step, and the learner's use of it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl.envs
from mtrl.agents.resets import Resets
from mtrl.agents.vtrace_actor_critic import VTraceActorCritic
from mtrl.data.experience import Collector, EpisodeStatistics, OnPolicy
from mtrl.data.task_sampling.uniform import Uniform as UniformTasks
from mtrl.nn.cores import LSTM
from mtrl.nn.networks import build_policy, build_value
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import JointStep, MultiTaskOptimizer, SeparateSteps
from mtrl.optim.weighting import Uniform
from mtrl.registry import build
from mtrl.types import EnvSpec, Rollout
from tests.helpers import (
    SCALAR,
    TRUNK,
    describe,
    given,
    make_spec,
    naive_vtrace,
    next_obs_of,
    no_timer,
    of_slots,
    random_rollout,
    small,
)

K, T, B, OBS, WIDTH = 3, 6, 4, 4, 5
GAMMA = 0.875  # exact in float32, as masks are


def naive_cell(core: LSTM, x: Tensor, state: Tensor) -> Tensor:
    """One sample: gates i, f, o and candidate g; c' = f c + i g, h' = o tanh(c') (Hochreiter, Gers et al.)."""
    cell, (h, c) = core.cell, state.chunk(2)
    gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c])


def test_an_unroll_is_step_by_step_with_resets() -> None:
    torch.manual_seed(0)
    core = LSTM(OBS, WIDTH).double()
    x, state = torch.randn(T, B, OBS).double(), torch.randn(B, 2 * WIDTH).double()
    first = torch.rand(T, B) < 0.3
    first[0, 1] = True
    assert first.any()
    assert not first.all(0).any()
    outputs, states = core(x, first, state)
    for b in range(B):
        now = state[b]
        for t in range(T):
            now = naive_cell(core, x[t, b], torch.zeros_like(now) if first[t, b] else now)
            torch.testing.assert_close(states[t, b], now, rtol=0, atol=1e-12)
            torch.testing.assert_close(outputs[t, b], now[:WIDTH], rtol=0, atol=1e-12)


def make_learner(spec: EnvSpec, trunk: dict[str, Any] = TRUNK, **options: Any) -> VTraceActorCritic:
    torch.manual_seed(0)
    head = "categorical" if spec.action_kind == "discrete" else "gaussian"
    description = describe(head, trunk=trunk) | {"core": {"name": "lstm", "width": WIDTH}}
    policy = build_policy(description, spec)
    value = build_value(description, spec, "per_task", SCALAR, policy.core.out_features)
    with torch.no_grad():
        for parameter in (*policy.parameters(), *value.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape)

    def step(module: nn.Module, max_norm: float, has_positive: bool) -> MultiTaskOptimizer:
        parameters = list(module.parameters())
        optimizer = torch.optim.SGD([{"params": parameters, "initial_lr": 0.05}], lr=0.05)
        return MultiTaskOptimizer(parameters, optimizer, Uniform(), Sum(), float("inf"), has_positive)

    norm = build("value_norm", {"name": "none"}, num_tasks=spec.num_tasks)
    return VTraceActorCritic(given(spec, policy, [value], norm, step), optimizer={}, gamma=GAMMA, **options)


def make_rollout() -> Rollout:
    """Off-policy, with ends of both kinds, a lost life, and a state from before."""
    g = torch.Generator().manual_seed(5)
    rollout = random_rollout(T, B, K, OBS, torch.randn(T, B, 2, generator=g, dtype=torch.float64), 1)
    continuation = rollout.continuation.clone()
    alive = (~rollout.done).nonzero()[3]
    continuation[alive[0], alive[1]] = 0
    return dataclasses.replace(
        rollout, continuation=continuation, core_state=torch.randn(B, 2 * WIDTH, generator=g, dtype=torch.float64)
    )


def test_targets_are_the_naive_loop_with_memory() -> None:
    """Memory ends with an episode, not with a life; the value of what a step led to is that of the memory so far."""
    learner, r = make_learner(make_spec(K, OBS, 2)), make_rollout()
    learner.networks.double()
    next_obs = next_obs_of(r)
    assert r.terminated[:-1].any()
    assert r.truncated[:-1].any()
    policy, core = learner.policy, learner.policy.core
    value, next_value, log_prob = (torch.zeros(T, B, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for b in range(B):
            state = r.core_state[b]
            for t in range(T):
                k = r.task[t, b]
                state = naive_cell(core, r.obs[t, b], state)
                value[t, b] = learner.value(state[:WIDTH], k)
                log_prob[t, b] = policy.distribution(state[:WIDTH], k).log_prob(r.action[t, b])
                next_value[t, b] = learner.value(naive_cell(core, next_obs[t, b], state)[:WIDTH], k)
                if r.done[t, b]:
                    state = torch.zeros_like(state)
    zero = r.continuation == 0
    expected = naive_vtrace(
        log_prob - r.log_prob, r.reward, GAMMA, zero, r.truncated & ~zero, value, next_value, 1.0, 1.0, 1.0, 1.0
    )
    found_log_prob, *found = learner._targets(r)
    torch.testing.assert_close(found_log_prob, log_prob, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def log_probs(learner: VTraceActorCritic, r: Rollout) -> Tensor:
    """Of the rollout's actions, under the policy as a learner unrolls it."""
    features, _ = learner.policy.unroll(r.obs, r.task, r.is_first, r.core_state)
    return learner.policy.distribution(features, r.task).log_prob(r.action)


def test_the_learner_sees_what_the_actor_remembered() -> None:
    """Over rollouts that begin in mid-episode, and episodes that end in both ways: the same log-probabilities."""
    env = mtrl.envs.make("counting", num_envs=6, num_tasks=K, episode_length=4, stagger=2, terminate_every=2)
    learner = make_learner(env.spec)
    collector = Collector(env, EpisodeStatistics(env.spec, UniformTasks(K)), "cpu", no_timer)
    collector.core_state = learner.initial_state(6)
    experience, done = OnPolicy(collector, rollout_length=7), 0
    for _ in range(4):
        experience.collect(learner)
        (rollout,) = experience.batches()
        torch.testing.assert_close(log_probs(learner, rollout), rollout.log_prob, rtol=1e-4, atol=1e-4)
        done += int(rollout.done.sum())
    assert done > 12
    assert rollout.core_state.abs().sum(1).any(), "rollouts begin in mid-episode"
    forgetful = dataclasses.replace(rollout, core_state=torch.zeros_like(rollout.core_state))
    assert (log_probs(learner, forgetful) - rollout.log_prob).abs().max() > 1e-3


def moved(r: Rollout, **options: Any) -> dict[str, Tensor]:
    """What an update adds to each parameter, with a rate so small that steps add up."""
    learner = make_learner(make_spec(K, OBS, 2), end_factor=1e-6, **options)
    learner.networks.double()
    before = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}
    learner.update(r, 1.0)
    return {name: p.detach() - before[name] for name, p in learner.networks.named_parameters()}


def test_minibatches_are_whole_sequences() -> None:
    """Two epochs of a slot at a time are twice the sum of updates with one slot each, with its state and its ends."""
    r = make_rollout()
    alone = [moved(of_slots(r, b, b + 1)) for b in range(B)]
    for name, change in moved(r, num_epochs=2, num_minibatches=B).items():
        expected = 2 * sum(slot[name] for slot in alone)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-12)


def test_memory_learns_from_both_losses() -> None:
    """One step down the gradient of the sum of both losses, the value's with its weight."""
    r, moved = make_rollout(), {}
    for value_coef in (1e-12, 0.5, 1.0):
        learner = make_learner(make_spec(K, OBS, 2), value_coef=value_coef)
        learner.networks.double()
        weight = learner.policy.core.cell.weight_hh
        before = weight.detach().clone()
        learner.update(r, 0.0)
        moved[value_coef] = (weight - before).detach()
    policy, half, whole = moved.values()
    assert policy.any()
    assert not torch.allclose(policy, whole)
    torch.testing.assert_close(half - policy, 0.5 * (whole - policy), rtol=1e-6, atol=1e-12)


def test_a_trunks_own_loss_does_not_form_the_memory() -> None:
    r, memories, trunks = make_rollout(), [], []
    for diversity in (0.0, 1.0):
        learner = make_learner(make_spec(K, OBS, 2), trunk=small("soft_modules") | {"diversity": diversity})
        learner.networks.double()
        learner.update(r, 0.0)
        memories.append(nn.utils.parameters_to_vector(learner.policy.core.parameters()))
        trunks.append(nn.utils.parameters_to_vector(learner.policy.trunk.parameters()))
    assert torch.equal(*memories)
    assert not torch.equal(*trunks)


def test_a_reset_learner_with_memory_is_a_new_one() -> None:
    """Its one optimiser forgets."""
    learner = make_learner(make_spec(K, OBS, 2))
    learner.networks.double()
    step = learner.optimizers["joint"]
    step.optimizer = torch.optim.Adam([{"params": step.parameters, "initial_lr": 0.05}], lr=0.05)
    resets, found = Resets(learner, count=1, sampler=UniformTasks(K)), []
    assert torch.equal(resets.initial_state(B), torch.zeros(B, 2 * WIDTH))
    for progress in (0.0, 0.5):
        torch.manual_seed(0)
        resets.update(make_rollout(), progress)
        found.append(nn.utils.parameters_to_vector(learner.networks.parameters()))
    assert torch.equal(*found)


# ---------------------------------------------------------------------------------------------------------------------
# What the learner does besides for Atari
# ---------------------------------------------------------------------------------------------------------------------


def test_rewards_are_clipped_in_the_learner() -> None:
    r = make_rollout()
    large = dataclasses.replace(r, reward=10 * r.reward)
    clipped = dataclasses.replace(r, reward=(10 * r.reward).clamp(-1, 1))
    found = []
    for rollout, reward_clip in ((large, 1.0), (clipped, float("inf")), (large, float("inf"))):
        learner = make_learner(make_spec(K, OBS, 2), reward_clip=reward_clip)
        learner.networks.double()
        found.append(learner.update(copy.deepcopy(rollout), 0.0)["value_loss"])
    assert torch.equal(found[0], found[1])
    assert not torch.isclose(found[0], found[2]).all()


def test_steps_on_one_parameter() -> None:
    """w = 2, rate 0.1, losses of two tasks: policy w and 2w, value w^2 and 0; of the trunks w/2 and w.

    Joint: the gradient is 1 + 2 + 2w + 1.5 = 8.5, so that w becomes 1.15. Separate: the policy's is 3.5, the value's 5.
    """
    task = torch.arange(2)

    def step(parameter: nn.Parameter) -> MultiTaskOptimizer:
        return MultiTaskOptimizer(
            [parameter], torch.optim.SGD([parameter], lr=0.1), Uniform(), Sum(), float("inf"), True
        )

    w, v = (nn.Parameter(torch.tensor(2.0)) for _ in range(2))
    JointStep(step(w))(task, torch.stack([w, 2 * w]), torch.stack([w**2, 0 * w]), w / 2, w)
    assert float(w.detach()) == pytest.approx(1.15)
    w = nn.Parameter(torch.tensor(2.0))
    SeparateSteps(step(w), step(v))(task, torch.stack([w, 2 * w]), torch.stack([v**2, 0 * v]), w / 2, v)
    assert float(w.detach()) == pytest.approx(1.65)
    assert float(v.detach()) == pytest.approx(1.5)


def test_published_sums_as_means() -> None:
    """RMSProp on a mean of n losses with epsilon / n and norm / n makes the steps that a sum makes."""
    n, paths = 570, []
    for scale in (1, n):
        w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        node = {"name": "rmsprop", "lr": 6e-4, "eps": 0.01 * scale / n}
        step = MultiTaskOptimizer(
            [w], build("optimizer", node, parameters=[w]), Uniform(), Sum(), 40 * scale / n, False
        )
        path = []
        for t in range(20):
            loss = (torch.tensor([0.05, 0.01 * t]) * w.square()).sum()  # its norm passes 40 / n on the way
            step(torch.zeros(1, dtype=torch.int64), signed=scale * loss[None])
            path.append(w.detach().clone())
        paths.append(torch.stack(path))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-6, atol=0)  # clipping adds 1e-6 to the norm
