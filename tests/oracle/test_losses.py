"""The learners' mathematics against naive loops and hand arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mtrl.agents.losses import clipped_surrogate, per_task_standardise, td_target, vtrace
from tests.helpers import naive_vtrace

T, B = 9, 6


@dataclass
class Data:
    log_rho: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    value: Tensor
    next_value: Tensor

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated


def make_data(seed: int, on_policy: bool = False, done_share: float = 0.25) -> Data:
    g = torch.Generator().manual_seed(seed)

    def randn() -> Tensor:
        return torch.randn(T, B, generator=g, dtype=torch.float64)

    ended = torch.rand(T, B, generator=g) < done_share
    terminated = ended & (torch.rand(T, B, generator=g) < 0.5)
    value, final_value = randn(), randn()
    following = torch.cat([value[1:], final_value[-1:]])
    next_value = torch.where(ended, final_value, following)
    log_rho = torch.zeros(T, B, dtype=torch.float64) if on_policy else randn()
    return Data(log_rho, randn(), terminated, ended & ~terminated, value, next_value)


def run(data: Data, gamma: float, **options: float) -> tuple[Tensor, Tensor, Tensor]:
    discount = gamma * (~data.terminated).double()
    return vtrace(data.log_rho, data.reward, discount, data.done.double(), data.value, data.next_value, **options)


@pytest.mark.parametrize("seed", range(6))
def test_vtrace_is_the_papers_sum(seed: int) -> None:
    data = make_data(seed)
    assert data.terminated.any()
    assert data.truncated.any()
    lambda_, gamma, clip_rho, clip_c, clip_pg = [
        (1.0, 0.99, 1.0, 1.0, 1.0),
        (0.9, 0.9, 1.0, 1.0, 1.0),
        (1.0, 0.95, 2.5, 1.2, 0.7),
        (0.5, 1.0, 0.6, 0.8, 3.0),
        (0.0, 0.9, 1.0, 1.0, 1.0),
        (0.97, 0.99, math.inf, math.inf, math.inf),
    ][seed]
    options = {"lambda_": lambda_, "clip_rho": clip_rho, "clip_c": clip_c, "clip_pg_rho": clip_pg}
    found = run(data, gamma, **options)
    expected = naive_vtrace(
        data.log_rho, data.reward, gamma, data.terminated, data.truncated, data.value, data.next_value, **options
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 0.95, 1.0])
def test_on_policy_vtrace_is_gae(lambda_: float) -> None:
    """Schulman et al. (2016), equation 16: A_s = sum_l (gamma lambda)^l delta_{s+l}, within the episode."""
    data, gamma = make_data(11, on_policy=True), 0.97
    target, advantage, weight = run(data, gamma, lambda_=lambda_)
    assert (weight == 1).all()
    expected = torch.zeros(T, B, dtype=torch.float64)
    for b in range(B):
        for s in range(T):
            for t in range(s, T):
                going = 0.0 if data.terminated[t, b] else gamma
                delta = data.reward[t, b] + going * data.next_value[t, b] - data.value[t, b]
                expected[s, b] += (gamma * lambda_) ** (t - s) * delta
                if data.done[t, b]:
                    break
    torch.testing.assert_close(advantage, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, data.value + expected, rtol=1e-12, atol=1e-12)


def test_on_policy_vtrace_with_lambda_one_is_the_n_step_return() -> None:
    """Rewards to the episode's end, plus the value of the last state unless the task terminated there."""
    data, gamma = make_data(12, on_policy=True), 0.9
    target, *_ = run(data, gamma, lambda_=1.0)
    for b in range(B):
        for s in range(T):
            last = next((t for t in range(s, T) if data.done[t, b]), T - 1)
            rewards = sum(gamma ** (t - s) * float(data.reward[t, b]) for t in range(s, last + 1))
            bootstrap = 0.0 if data.terminated[last, b] else float(data.next_value[last, b])
            assert float(target[s, b]) == pytest.approx(rewards + gamma ** (last - s + 1) * bootstrap, abs=1e-12)


def test_vtrace_by_hand() -> None:
    """Three steps of one slot, gamma 0.5, lambda 1, all clips 1; nothing ends.

    rho = (2, 0.5, 4): clipped (1, 0.5, 1). r = (1, 2, 3), V = (4, 5, 6), V of the state after the last step 8.
    delta_2 = 1   * (3 + 0.5 * 8 - 6) =  1      v_2 = 6 + 1 = 7
    delta_1 = 0.5 * (2 + 0.5 * 6 - 5) =  0      v_1 = 5 + 0 + 0.5 * 0.5 * 1 = 5.25
    delta_0 = 1   * (1 + 0.5 * 5 - 4) = -0.5    v_0 = 4 - 0.5 + 0.5 * 1 * 0.25 = 3.625
    A_2 = 3 + 0.5 * 8    - 6 = 1
    A_1 = 2 + 0.5 * 7    - 5 = 0.5
    A_0 = 1 + 0.5 * 5.25 - 4 = -0.375
    """
    column = torch.tensor([[2.0], [0.5], [4.0]])
    target, advantage, weight = vtrace(
        column.log(),
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.full((3, 1), 0.5),
        torch.zeros(3, 1),
        torch.tensor([[4.0], [5.0], [6.0]]),
        torch.tensor([[5.0], [6.0], [8.0]]),
    )
    torch.testing.assert_close(target, torch.tensor([[3.625], [5.25], [7.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[-0.375], [0.5], [1.0]]))
    torch.testing.assert_close(weight, torch.tensor([[1.0], [0.5], [1.0]]))


def test_vtrace_at_an_end_by_hand() -> None:
    """Two slots of two steps, on-policy, gamma 0.5; the first step ends slot 0 by termination, slot 1 by truncation.

    r = 1 then 100, V = 2 then 3, V of the old episode's last state 10, of the state after the rollout 4.
    Slot 0: v_0 = 1. Slot 1: v_0 = 1 + 0.5 * 10 = 6. Neither sees the 100 of the next episode, whose v_1 is 102.
    """
    pair = torch.ones(1, 2)
    target, advantage, _ = vtrace(
        torch.zeros(2, 2),
        torch.cat([pair, 100 * pair]),
        torch.tensor([[0.0, 0.5], [0.5, 0.5]]),
        torch.cat([pair, 0 * pair]),
        torch.cat([2 * pair, 3 * pair]),
        torch.cat([10 * pair, 4 * pair]),
    )
    torch.testing.assert_close(target, torch.tensor([[1.0, 6.0], [102.0, 102.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[-1.0, 4.0], [99.0, 99.0]]))


def test_vtrace_learns_nothing_from_actions_that_nobody_chose() -> None:
    """The second of three steps, gamma 1, on-policy else: its target is its value, and no trace passes it.

    V = 0, r = 1: v_2 = 1, v_1 = V = 0 with weight 0, v_0 = 1 + V_1 = 1 (what follows the second step is not its doing).
    """
    zeros, column = torch.zeros(3, 1), torch.tensor([[0.0], [-torch.inf], [0.0]])
    target, advantage, weight = vtrace(column, torch.ones(3, 1), torch.ones(3, 1), zeros, zeros, zeros)
    assert target.flatten().tolist() == [1, 0, 1]
    assert weight.flatten().tolist() == [1, 0, 1]
    assert advantage.isfinite().all()


def test_td_target_bootstraps_unless_terminated() -> None:
    # 1 + 0.9 * 10 = 10 where it goes on or was truncated (which the target does not even see), 1 where it terminated.
    target = td_target(torch.ones(2), torch.tensor([1.0, 0.0]), torch.full((2,), 10.0), 0.9)
    torch.testing.assert_close(target, torch.tensor([10.0, 1.0]))


def test_td_target_is_not_clipped() -> None:
    target = td_target(torch.tensor([-1e7, 1e7]), torch.ones(2), torch.tensor([-1e8, 1e8]), 1.0)
    torch.testing.assert_close(target, torch.tensor([-1.1e8, 1.1e8]))


def samples(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values, and tasks 0, 1 and 3 of four: task 2 is absent."""
    g = torch.Generator().manual_seed(seed)
    task = torch.tensor([0, 1, 3])[torch.randint(3, shape, generator=g)]
    return torch.randn(shape, generator=g, dtype=torch.float64), task


def test_per_task_standardise_is_a_loop() -> None:
    """Mean and deviation are those of the chosen samples; the others are shifted and scaled alike."""
    values, task = samples((6, 5), seed=1)
    chosen = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.7
    scaled = per_task_standardise(values, task, chosen, torch.zeros(4))
    for k in (0, 1, 3):
        own, among = values[task == k], values[(task == k) & chosen]
        assert len(own) > len(among)
        mean = sum(among.tolist()) / len(among)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in among.tolist()) / len(among))
        torch.testing.assert_close(scaled[task == k], (own - mean) / deviation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("value", "count"), [(0.1, 10), (1000.1, 7), (3.0, 2), (-1e30, 5), (1e-30, 5)])
def test_per_task_standardise_of_equal_samples_is_zero(value: float, count: int, dtype: torch.dtype) -> None:
    """And of samples that differ by rounding only; beside another task, and with one that nobody chose."""
    values = torch.full((count + 2,), value, dtype=dtype)
    values[1] = torch.nextafter(values[1], torch.tensor(torch.inf, dtype=dtype))
    values[-2:] = 5.0
    task, chosen = torch.zeros(count + 2, dtype=torch.int64), torch.ones(count + 2, dtype=torch.bool)
    task[-2], chosen[-1] = 1, False
    scaled = per_task_standardise(values, task, chosen, torch.zeros(2))
    assert scaled.tolist() == [0] * (count + 2)


def test_per_task_standardise_divides_by_the_floor_at_least() -> None:
    """Deviations .01 and 3: (-.01, .01) / max(.01, .1) and (-3, 3) / max(3, .1)."""
    values, task = torch.tensor([4.99, 5.01, -3.0, 3.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    scaled = per_task_standardise(values, task, torch.ones(4, dtype=torch.bool), torch.full((2,), 0.1))
    torch.testing.assert_close(scaled, torch.tensor([-0.1, 0.1, -1, 1], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_clipped_surrogate_by_hand() -> None:
    """Clip 0.2. The objective never gains from a ratio beyond the clip, and always suffers from one."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], requires_grad=True)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0])
    # min(1.5*2, 1.2*2) = 2.4; min(1.5*-2, 1.2*-2) = -3; min(0.5*2, 0.8*2) = 1; min(0.5*-2, 0.8*-2) = -1.6; 3.3
    surrogate = clipped_surrogate(ratio, advantage, 0.2)
    torch.testing.assert_close(surrogate.detach(), torch.tensor([2.4, -3.0, 1.0, -1.6, 3.3]))
    (gradient,) = torch.autograd.grad(surrogate.sum(), ratio)
    assert gradient.tolist() == [0, -2, 2, 0, 3]  # none where the clip holds


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_the_surrogate_at_ratio_one_is_the_policy_gradient(clip: float) -> None:
    g = torch.Generator().manual_seed(0)
    log_prob = torch.randn(20, generator=g, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(20, generator=g, dtype=torch.float64)
    ratio = (log_prob - log_prob.detach()).exp()
    (ours,) = torch.autograd.grad(-clipped_surrogate(ratio, advantage, clip).mean(), log_prob)
    (plain,) = torch.autograd.grad(-(log_prob * advantage).mean(), log_prob)
    torch.testing.assert_close(ours, plain)


def test_an_infinite_clip_never_clips() -> None:
    ratio = torch.tensor([1e-3, 0.5, 7.0, 1e4])
    for sign in (1.0, -1.0):
        torch.testing.assert_close(clipped_surrogate(ratio, sign * torch.ones(4), math.inf), sign * ratio)
