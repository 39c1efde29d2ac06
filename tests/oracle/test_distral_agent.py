"""Updates of Distral's V-trace learner against a float64 loop over single samples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from mtrl.distill.distral_agent import Distral
from mtrl.nn.columns import SharedPolicy
from mtrl.types import Rollout, UserError
from tests.helpers import copy_parameters, end_fields, make_spec, naive_network, random_rollout
from tests.oracle import test_impala
from tests.oracle.test_impala import LR, A, B, K, T, close, compare, make_rollout

C_KL, C_ENT, WIDTH = 0.3, 0.2, 6
ALPHA = 0.6  # C_KL / (C_KL + C_ENT)
COLUMN = {"name": "shared", "alpha": ALPHA, "width": WIDTH, "depth": 1}


def make_learner(**options: Any) -> Distral:
    settings = {"c_kl": C_KL, "c_ent": C_ENT, "shared_width": WIDTH, "shared_depth": 1}
    column = COLUMN if options.get("columns") == 2 else None
    learner: Distral = test_impala.make_learner(agent=Distral, column=column, **settings | options)
    learner.shared_policy.double()
    with torch.no_grad():
        for parameter in learner.shared_policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return learner


def make_discrete_rollout(seed: int = 0) -> Rollout:
    action = torch.randint(A + 1, (T, B), generator=torch.Generator().manual_seed(seed))
    return random_rollout(T, B, K, test_impala.OBS, action, seed)


class Naive(test_impala.Naive):
    """Besides the V-trace learner's equations, those of the paper, one sample at a time."""

    alpha = 0.0

    def __init__(self, learner: Distral) -> None:
        super().__init__(learner)
        prefix = "column.shared_policy."
        of_policy = {name.removeprefix(prefix): p for name, p in self.policy.items() if name.startswith(prefix)}
        self.shared = of_policy or copy_parameters(learner.shared_policy)
        self.metrics["shared_policy_kl"] = []

    def outputs(self, obs: Tensor, k: int) -> Tensor:
        """Logits or mean."""
        return self.alpha * self.h0(obs) + naive_network(self.policy, obs, k, K, head="head.head.")

    def own(self, obs: Tensor, k: int) -> Any:
        return Normal(self.outputs(obs, k), self.policy["head.log_std"][k].exp())

    def log_prob(self, obs: Tensor, action: Tensor, k: int) -> Tensor:
        return self.own(obs, k).log_prob(action).sum()

    def h0(self, obs: Tensor) -> Tensor:
        """Of the observation alone."""
        hidden = torch.tanh(self.shared["network.0.weight"] @ obs + self.shared["network.0.bias"])
        return self.shared["network.2.weight"] @ hidden + self.shared["network.2.bias"]

    def pi0(self, obs: Tensor) -> Any:
        outputs = self.h0(obs)
        return (
            Normal(outputs, self.shared["log_std"].exp()) if "log_std" in self.shared else Categorical(logits=outputs)
        )

    def bonus(self, k: int) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def update(self, r: Rollout, *args: Any, **options: Any) -> None:
        reward, divergences = r.reward.clone(), []
        for k in range(K):
            samples = [(t, b) for t in range(T) for b in range(B) if r.task[t, b] == k]
            of_task = []
            for i in samples:
                with torch.no_grad():
                    own = self.own(r.obs[i], k)
                shared = self.pi0(r.obs[i])
                log_pi, log_pi0 = (p.log_prob(r.action[i]).sum().detach() for p in (own, shared))
                reward[i] += C_KL * log_pi0 - (C_KL + C_ENT) * log_pi
                of_task.append(kl_divergence(own, shared).sum())
            divergences.append(sum(of_task) / len(samples))
        leaves = list(self.shared.values())
        gradients = torch.autograd.grad(C_KL * sum(divergences), leaves)
        self.metrics["shared_policy_kl"].append(torch.stack(divergences).detach())
        super().update(dataclasses.replace(r, reward=reward), *args, **options)
        with torch.no_grad():
            for p, g in zip(leaves, gradients, strict=True):
                p -= LR * g


class NaiveDiscrete(Naive):
    def own(self, obs: Tensor, k: int) -> Any:
        return Categorical(logits=self.outputs(obs, k))

    def update(self, r: Rollout, *args: Any, **options: Any) -> None:
        super().update(r, *args, **options)
        del self.metrics["entropy"]  # of Gaussians

    def entropy(self, k: int) -> Tensor:
        return torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("gae_lambda", "clips"), [(1.0, (1.0, 1.0, 1.0)), (0.9, (2.0, 1.5, 0.8))])
def test_one_update_is_the_naive_loop(
    columns: int, discrete: bool, gae_lambda: float, clips: tuple[float, float, float]
) -> None:
    """Off-policy, with ends of both kinds; slots change tasks."""
    clip_rho, clip_c, clip_pg_rho = clips
    options = {"gae_lambda": gae_lambda, "clip_rho": clip_rho, "clip_c": clip_c, "clip_pg_rho": clip_pg_rho}
    learner = make_learner(discrete=discrete, columns=columns, **options)
    rollout = make_discrete_rollout() if discrete else make_rollout()
    naive = (NaiveDiscrete if discrete else Naive)(learner)
    naive.alpha = ALPHA if columns == 2 else 0.0
    before = copy_parameters(learner.shared_policy)
    metrics = learner.update(rollout, 0.0)
    naive.update(rollout, gae_lambda, clips)
    compare(learner, naive, metrics)
    after = dict(learner.shared_policy.named_parameters())
    close(after, {name: p.detach() for name, p in naive.shared.items()})
    assert all((after[name] - before[name]).abs().max() > 1e-4 for name in before)


BANDIT = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64)
"""Probabilities of the actions in each task. Four samples of a task can have exactly these frequencies."""


def objective(h0: Tensor, beta_f: Tensor, reward: Tensor) -> Tensor:
    """The paper's equation 1 of each task, for one step in one state, with equation 8's task policies."""
    log_pi0, log_pi = h0.log_softmax(-1), (ALPHA * h0 + beta_f).log_softmax(-1)
    return (log_pi.exp() * (reward + C_KL * log_pi0 - (C_KL + C_ENT) * log_pi)).sum(-1)


@pytest.mark.parametrize("value_norm", ["none", "popart"])
def test_both_columns_climb_the_objective(value_norm: str) -> None:
    """In a bandit its gradient is known: finite differences. That of h_0 has both terms of the paper, in one unit."""
    learner = make_learner(discrete=True, columns=2, value_norm=value_norm)
    obs, tasks, eps = torch.zeros(4, K, test_impala.OBS, dtype=torch.float64), torch.arange(K), 1e-6
    with torch.no_grad():
        h0 = learner.shared_policy.network(obs[0, 0])
        beta_f = BANDIT.log() - ALPHA * h0
        learner.policy.head.head.weight.zero_()
        learner.policy.head.head.bias.copy_(beta_f)
        torch.testing.assert_close(learner.policy(obs[0], tasks).log_probs.exp(), BANDIT)
    action = torch.tensor([[0, 0, 0], [1, 0, 1], [2, 1, 1], [2, 2, 2]])
    reward = torch.tensor([[1.0, 0.0, 3.0], [0.5, -2.0, 1.0], [0.0, 2.0, -1.0]], dtype=torch.float64)
    ended = torch.ones(4, K, dtype=torch.bool)
    rollout = Rollout(
        obs=obs,
        action=action,
        log_prob=BANDIT.log()[tasks, action],
        reward=reward[tasks, action],
        terminated=ended,
        truncated=~ended,
        continuation=(~ended).double(),
        **end_fields(ended, obs),
        task=tasks.expand(4, K),
        core_state=torch.zeros(K, 0),
    )
    biases = (learner.shared_policy.network[-1].bias, learner.policy.head.head.bias)
    before = [bias.detach().clone() for bias in biases]
    learner.update(rollout, 0.0)
    sigma = learner.value_norm.sigma.double()
    assert (sigma.std() > 0.1) == (value_norm == "popart")

    def total(of_h0: Tensor, of_f: Tensor) -> Tensor:
        return (objective(h0 + of_h0, beta_f + of_f, reward) / sigma).sum()

    def slope(of: int) -> Tensor:
        """Of `total` in what is added to h_0, or to the f_i."""
        zeros = [torch.zeros_like(h0), torch.zeros_like(beta_f)]
        found = torch.zeros_like(zeros[of])
        for i in range(found.numel()):
            unit = torch.zeros(found.numel(), dtype=torch.float64)
            unit[i] = eps
            there, back = ([*zeros[:of], sign * unit.view_as(found), *zeros[of + 1 :]] for sign in (1, -1))
            found.view(-1)[i] = (total(*there) - total(*back)) / (2 * eps)
        return found

    for of, (bias, old) in enumerate(zip(biases, before, strict=True)):
        assert slope(of).abs().max() > 0.05
        torch.testing.assert_close((bias - old) / LR, slope(of), rtol=1e-6, atol=1e-7)


def test_two_columns_are_the_closed_form() -> None:
    """exp(alpha h_0 + beta f_i) over its sum; of Gaussians, the mean is the sum and the deviation the task's own."""
    obs, tasks = torch.randn(5, K, test_impala.OBS, dtype=torch.float64), torch.arange(K).expand(5, K)
    for discrete in (True, False):
        policy = make_learner(discrete=discrete, columns=2).policy
        policy.obs_norm.double()
        shared = policy.column.shared_policy
        found, h0 = policy(obs, tasks), shared.network(obs)
        own = policy.head(policy.trunk(*policy._trunk_inputs(obs, tasks)), policy.task_encoder(tasks, obs[..., :0]))
        if discrete:
            weight = torch.exp(ALPHA * h0 + own.log_probs)
            torch.testing.assert_close(found.log_probs.exp(), weight / weight.sum(-1, keepdim=True))
        else:
            torch.testing.assert_close(found.mean, own.mean + ALPHA * h0)
            torch.testing.assert_close(found.log_std, policy.head.log_std[tasks])
            assert not torch.equal(found.log_std[0, 0], shared.log_std)


def test_both_costs_zero_leave_two_columns_without_alpha() -> None:
    with pytest.raises(UserError, match="c_kl and c_ent are both 0"):
        make_learner(columns=2, c_kl=0.0, c_ent=0.0)


def test_without_costs_it_is_impala() -> None:
    """Bit for bit, and the shared policy stays as it is."""
    distral, impala = make_learner(c_kl=0.0, c_ent=0.0), test_impala.make_learner(entropy_coef=0.0)
    initial = copy_parameters(distral.shared_policy)
    for seed in range(3):
        for learner in (distral, impala):
            torch.manual_seed(seed)
            learner.update(make_rollout(seed), 0.0)
    expected = impala.networks.state_dict()
    found = distral.networks.state_dict()
    assert {name for name in found if not name.startswith("shared_policy.")} == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(p, initial[name]) for name, p in distral.shared_policy.named_parameters())


def test_the_shared_policy_becomes_the_mean_of_the_task_policies() -> None:
    """Where each task prefers another action, it is between them: in one state, their probabilities' mean."""
    learner, rollout = make_learner(discrete=True), make_discrete_rollout()
    obs = torch.ones_like(rollout.obs)
    rollout = dataclasses.replace(rollout, obs=obs, reward=torch.zeros_like(rollout.reward))
    for step in (learner.optimizers["policy"], learner.optimizers["value"]):
        for group in step.optimizer.param_groups:
            group["initial_lr"] = 0.0
    learner.optimizers["shared_policy"].optimizer.param_groups[0]["initial_lr"] = 0.3
    for _ in range(300):
        learner.update(rollout, 0.0)
    tasks = torch.arange(K)
    with torch.no_grad():
        own = learner.policy(obs[0, :1].expand(K, -1), tasks).log_probs.exp()
        shared = learner.shared_policy(obs[0, :1].expand(K, -1), tasks).log_probs.exp()
    assert own.std(0).max() > 0.05
    torch.testing.assert_close(shared, own.mean(0).expand(K, -1), rtol=0, atol=1e-4)


def test_the_shared_policy_does_not_see_the_task() -> None:
    """But its actions are those that the task has."""
    for kind in ("continuous", "discrete"):
        mask = ((True, True, False), (False, True, True))
        shared = SharedPolicy(4, make_spec(2, 4, 3, kind, mask), 8, 2)  # type: ignore[arg-type]
        shared.set_std(0.5)
        features = torch.randn(1, 4).expand(2, -1)
        one = shared(features, torch.tensor([0, 1]))
        assert shared.network(features)[0].equal(shared.network(features)[1])
        if kind == "discrete":
            assert (one.log_probs.exp() > 0).tolist() == [list(row) for row in mask]
        else:
            expected = -2 * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
            torch.testing.assert_close(one.log_prob(one.mean), torch.full((2,), expected))
            assert one.mask.tolist() == [list(row) for row in mask]


@pytest.mark.parametrize("option", ["c_kl", "c_ent", "shared_width", "shared_depth"])
def test_settings_that_make_no_sense(option: str) -> None:
    with pytest.raises((UserError, ValueError), match=option):
        make_learner(**{option: -1})
