"""One update of SAC against a float64 loop over single samples, with a forward pass and Adam of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.agents.aux_loss import AuxLoss
from mtrl.agents.sac import Sac
from mtrl.nn.networks import Ensemble, build_policy, build_value
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform
from mtrl.registry import build
from mtrl.types import Batch, EnvSpec
from tests.helpers import NO_TORSO, SCALAR, TRUNK, copy_parameters, describe, given, make_spec, naive_network

K, N, OBS, A = 3, 4, 4, 2
GAMMA, TAU, LR, EPS, MAX_NORM = 0.875, 0.1, 3e-3, 1e-5, 0.5
ALPHA = (0.1, 1.0, 3.0)
TARGET_ENTROPY = (-2.0, -1.0, 0.5)
SPEC = make_spec(K, OBS, A)


def make_learner(
    value_norm: str = "none",
    lr: float = LR,
    tau: float = TAU,
    obs_norm: str = "none",
    trunk: dict[str, Any] = TRUNK,
    value_head: dict[str, Any] = SCALAR,
    torso: dict[str, Any] = NO_TORSO,
    spec: EnvSpec = SPEC,
) -> Sac:
    torch.manual_seed(0)
    description = describe("tanh_gaussian", obs_norm=obs_norm, trunk=trunk, torso=torso)
    policy = build_policy(description, spec).double()
    with torch.no_grad():  # away from the small initial weights, so that every term matters
        for parameter in policy.head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    inputs = policy.torso.out_features + A
    critics, targets = (
        Ensemble(build_value(description, spec, "per_task", value_head, inputs) for _ in range(2)).double()
        for _ in range(2)
    )

    def step(module: nn.Module, max_norm: float, has_positive: bool) -> MultiTaskOptimizer:
        parameters = list(module.parameters())
        optimizer = build("optimizer", {"name": "adam", "lr": lr, "eps": EPS}, parameters=parameters)
        return MultiTaskOptimizer(parameters, optimizer, Uniform(), Sum(), max_norm, has_positive)

    norm = build("value_norm", {"name": value_norm}, num_tasks=K)
    components = given(spec, policy, critics, norm, step)
    learner = Sac(components, optimizer={}, gamma=GAMMA, tau=tau, max_grad_norm=MAX_NORM)
    learner.temperature.double()
    with torch.no_grad():
        learner.temperature.log_alpha.copy_(torch.tensor(ALPHA, dtype=torch.float64).log())
    learner.target_critics.load_state_dict(targets.state_dict())
    learner.target_entropy = torch.tensor(TARGET_ENTROPY)
    return learner


def make_batch(seed: int = 1, reward_scale: float = 1.0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    terminated = torch.zeros(K, N, dtype=torch.bool)
    terminated[0, 1] = terminated[2, 0] = terminated[2, 3] = True
    return Batch(
        obs=torch.randn(K, N, OBS, generator=g, dtype=torch.float64),
        action=torch.rand(K, N, A, generator=g, dtype=torch.float64) * 2 - 1,
        reward=torch.randn(K, N, generator=g, dtype=torch.float64) * reward_scale,
        continuation=(~terminated).double(),
        next_obs=torch.randn(K, N, OBS, generator=g, dtype=torch.float64),
        task=torch.arange(K)[:, None].expand(K, N),
    )


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Plants the noise of the next action (first) and of the policy's action (second)."""
    g = torch.Generator().manual_seed(7)
    planted = [torch.randn(K, N, A, generator=g, dtype=torch.float64) for _ in range(2)]
    waiting = list(planted)

    def randn_like(tensor: Tensor, **_: Any) -> Tensor:
        drawn = waiting.pop(0)
        # One number for each component of each sample of each task: no noise is shared by tasks.
        assert drawn.shape == tensor.shape
        return drawn

    monkeypatch.setattr(torch, "randn_like", randn_like)
    return planted


def naive_sample(policy: dict[str, Tensor], obs: Tensor, k: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std noise) and its log-probability, by the change of variables."""
    mean, log_std = naive_network(policy, obs, k, K, head="head.head.").split(A)
    std = log_std.clamp(-20, 2).exp()
    unsquashed = mean + std * noise
    action = torch.tanh(unsquashed)
    normal = -0.5 * ((unsquashed - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return action, (normal - torch.log(1 - action**2)).sum()


def naive_q(critic: dict[str, Tensor], obs: Tensor, action: Tensor, k: int) -> Tensor:
    return naive_network(critic, torch.cat([obs, action]), k, K)[0]


def naive_adam_step(params: list[Tensor], loss: Tensor, max_norm: float) -> list[Tensor]:
    """First step of Adam on the gradient clipped by its norm: both bias corrections cancel. Returns the gradients."""
    gradients = torch.autograd.grad(loss, params)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    gradients = [g * min(1.0, max_norm / (norm + 1e-6)) for g in gradients]
    with torch.no_grad():
        for p, g in zip(params, gradients, strict=True):
            p -= LR * g / (g.abs() + EPS)
    return gradients


class Naive:
    """SAC's equations, one sample at a time."""

    def __init__(self, learner: Sac) -> None:
        self.policy = copy_parameters(learner.policy)
        self.critics = [copy_parameters(critic) for critic in learner.critics]
        self.targets = [copy_parameters(critic) for critic in learner.target_critics]
        self.log_alpha = learner.temperature.log_alpha.detach().clone().requires_grad_()

    def target(self, batch: Batch, k: int, i: int, noise: Tensor) -> Tensor:
        if batch.continuation[k, i] == 0:
            return batch.reward[k, i]
        action, log_prob = naive_sample(self.policy, batch.next_obs[k, i], k, noise[k, i])
        q = min(naive_q(critic, batch.next_obs[k, i], action, k) for critic in self.targets)
        return (batch.reward[k, i] + GAMMA * (q - ALPHA[k] * log_prob)).detach()

    def update(self, batch: Batch, noise: list[Tensor]) -> dict[str, list[float]]:
        critic_loss, policy_loss, temperature_loss, entropy = [], [], [], []
        for k in range(K):
            errors = [
                0.5
                * (naive_q(critic, batch.obs[k, i], batch.action[k, i], k) - self.target(batch, k, i, noise[0])) ** 2
                for i in range(N)
                for critic in self.critics
            ]
            critic_loss.append(sum(errors) / N)
        critic_params = [p for critic in self.critics for p in critic.values()]
        self.critic_gradients = naive_adam_step(critic_params, sum(critic_loss), MAX_NORM)

        for k in range(K):
            own_policy, own_temperature, own_entropy = [], [], []
            for i in range(N):
                action, log_prob = naive_sample(self.policy, batch.obs[k, i], k, noise[1][k, i])
                q = min(naive_q(critic, batch.obs[k, i], action, k) for critic in self.critics)
                own_policy.append(ALPHA[k] * log_prob - q)
                own_temperature.append(-self.log_alpha[k] * (log_prob.detach() + TARGET_ENTROPY[k]))
                own_entropy.append(-log_prob.detach())
            policy_loss.append(sum(own_policy) / N)
            temperature_loss.append(sum(own_temperature) / N)
            entropy.append(sum(own_entropy) / N)
        self.policy_gradients = naive_adam_step(list(self.policy.values()), sum(policy_loss), MAX_NORM)
        self.temperature_gradients = naive_adam_step([self.log_alpha], sum(temperature_loss), math.inf)

        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for key in target:
                    target[key].copy_((1 - TAU) * target[key] + TAU * critic[key])
        losses = {"critic_loss": critic_loss, "policy_loss": policy_loss, "entropy": entropy}
        return {key: [v.item() for v in values] for key, values in losses.items()}


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def test_one_update_is_the_naive_loop(noise: list[Tensor]) -> None:
    learner, batch = make_learner(), make_batch()
    naive = Naive(learner)
    metrics = learner.update(batch, 0.0)
    losses = naive.update(batch, noise)

    for key, values in losses.items():
        close(metrics[key].double(), torch.tensor(values, dtype=torch.float64))
    close([p.grad for p in learner.critics.parameters()], naive.critic_gradients)  # nothing from the policy's loss
    close([p.grad for p in learner.policy.parameters()], naive.policy_gradients)
    close(learner.temperature.log_alpha.grad, naive.temperature_gradients[0])
    for name, networks in (("critics", learner.critics), ("targets", learner.target_critics)):
        for ours, theirs in zip(networks, getattr(naive, name), strict=True):
            close(dict(ours.named_parameters()), {k: p.detach() for k, p in theirs.items()})
    close(dict(learner.policy.named_parameters()), {k: p.detach() for k, p in naive.policy.items()})
    close(learner.temperature.log_alpha, naive.log_alpha.detach())
    assert all(p.grad is None for p in learner.target_critics.parameters())


def target_of_obs(naive: Naive, batch: Batch, k: int, i: int, noise: Tensor) -> Tensor:
    action, log_prob = naive_sample(naive.policy, batch.obs[k, i], k, noise[k, i])
    q = min(naive_q(critic, batch.next_obs[k, i], action, k) for critic in naive.targets)
    return (batch.reward[k, i] + GAMMA * batch.continuation[k, i] * (q - ALPHA[k] * log_prob)).detach()


def target_of_one_alpha(naive: Naive, batch: Batch, k: int, i: int, noise: Tensor) -> Tensor:
    if batch.continuation[k, i] == 0:
        return batch.reward[k, i]
    action, log_prob = naive_sample(naive.policy, batch.next_obs[k, i], k, noise[k, i])
    q = min(naive_q(critic, batch.next_obs[k, i], action, k) for critic in naive.targets)
    return (batch.reward[k, i] + GAMMA * (q - sum(ALPHA) / K * log_prob)).detach()


@pytest.mark.parametrize("defect", [target_of_obs, target_of_one_alpha])
def test_the_loop_tells_public_defects_apart(
    noise: list[Tensor], monkeypatch: pytest.MonkeyPatch, defect: Callable[..., Tensor]
) -> None:
    """metaworld-algorithms sampled next actions from `observations`; a temperature of all tasks is another target."""
    learner, batch = make_learner(), make_batch()
    monkeypatch.setattr(Naive, "target", defect)
    wrong = Naive(learner).update(batch, noise)["critic_loss"]
    right = learner.update(batch, 0.0)["critic_loss"]
    assert (right - torch.tensor(wrong)).abs().max() > 1e-3


def test_terminated_samples_do_not_look_ahead() -> None:
    """`next_obs` of a terminated transition changes nothing; that of any other (truncated ones too) does."""
    losses = []
    for changed in (None, (2, 0), (2, 1)):
        learner, batch = make_learner(), make_batch()
        if changed is not None:
            batch.next_obs[changed] += 1.0
        torch.manual_seed(0)
        losses.append(learner.update(batch, 0.0)["critic_loss"])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0][:2], losses[2][:2])
    assert losses[0][2] != losses[2][2]


def test_targets_are_not_clipped() -> None:
    """The error of a reward of 1e8 is about 1e8 for both critics: the loss is 0.5 * 2 * 1e16."""
    learner, batch = make_learner(), make_batch()
    batch.reward.fill_(1e8)
    torch.testing.assert_close(
        learner.update(batch, 0.0)["critic_loss"], torch.full((K,), 1e16, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_each_temperature_follows_its_own_task() -> None:
    """Entropy above the target lowers alpha, entropy below it raises alpha, for each task by itself."""
    learner, batch = make_learner(), make_batch()
    before = learner.temperature.log_alpha.detach().clone()
    learner.target_entropy = torch.tensor([-50.0, 50.0, -50.0])
    learner.update(batch, 0.0)
    assert (learner.temperature.log_alpha.detach() - before).sign().tolist() == [-1, 1, -1]


def test_saving_and_loading_continues_bit_exactly() -> None:
    one, other = make_learner("popart"), make_learner("popart")
    torch.manual_seed(0)
    for seed in range(2):
        one.update(make_batch(seed), 0.0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, other):
        torch.manual_seed(5)
        learner.update(make_batch(3), 0.0)
    for ours, theirs in zip(one.networks.state_dict().values(), other.networks.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_observation_statistics_are_those_of_the_batches_learned_from() -> None:
    learner, batch = make_learner(obs_norm="running"), make_batch()
    learner.update(batch, 0.0)
    rows = batch.obs.flatten(0, 1)
    torch.testing.assert_close(learner.policy.obs_norm.mean, rows.mean(0))
    torch.testing.assert_close(learner.policy.obs_norm.var, rows.var(0, unbiased=False))


def test_an_auxiliary_loss_reaches_the_policy_alone(noise: list[Tensor]) -> None:
    """Its gradient is that of the loss by itself: the step on it alone is the difference of the policies' gradients."""

    class Pull(AuxLoss):
        def coefficient(self, progress: float) -> float:
            return 4 * progress

        def __call__(self, minibatch: Batch, output: Any, targets: Tensor) -> Tensor:
            return (output.mode() - minibatch.action).square().sum(-1)

    planted, gradients = list(noise), []
    for aux_losses in ({}, {"pull": Pull()}):
        learner = make_learner()
        learner.aux_losses = aux_losses
        for step in learner.optimizers.values():
            step.max_grad_norm = math.inf
        draws = iter(planted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda tensor, draws=draws, **_: next(draws))
            learner.update(make_batch(), 0.5)
        gradients.append({name: p.grad.clone() for name, p in learner.policy.named_parameters() if p.grad is not None})
    start, batch = make_learner(), make_batch()
    distances = (start.policy(batch.obs, batch.task).mode() - batch.action).square().sum(-1)
    distances.mean(1).sum().backward()
    for name, parameter in start.policy.named_parameters():
        if parameter.grad is not None:
            difference = gradients[1][name] - gradients[0][name]
            torch.testing.assert_close(difference, 2 * parameter.grad, rtol=1e-8, atol=1e-11)


def test_a_torso_without_weights_is_an_observation_with_more_features() -> None:
    """With `differences`, an update is that of a learner whose observations have the differences appended."""
    nodes = {"name": "differences", "points": [0, 2], "scales": [0.5, 2.0], "axes": 2}
    learner = make_learner(torso=nodes)
    batch, torso = make_batch(), learner.policy.torso
    plain = make_learner(spec=make_spec(K, torso.out_features, A))
    longer = replace(batch, obs=torso(batch.obs, batch.obs), next_obs=torso(batch.next_obs, batch.next_obs))
    for one, of_one in ((learner, batch), (plain, longer)):
        torch.manual_seed(1)
        one.update(of_one, 0.0)
    for (name, ours), theirs in zip(learner.networks.named_parameters(), plain.networks.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert torso.out_features == OBS + 4
