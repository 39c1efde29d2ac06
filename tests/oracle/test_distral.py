"""Distral's functions and its tables against closed forms and float64 loops over single samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from mtrl.distill.distral import centroid, regularised_reward, soft_value, strengths, two_column_logits
from mtrl.distill.two_rooms import BACK, MOVES, Settings, TabularDistral, TwoRooms, train
from mtrl.types import UserError

STRENGTHS = [(1.0, 0.0), (0.3, 0.3), (0.05, 0.2), (0.0, 0.5)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_strengths() -> None:
    """alpha = c_kl / (c_kl + c_ent), beta = 1 / (c_kl + c_ent), so that alpha / beta = c_kl."""
    assert strengths(0.3, 0.1) == pytest.approx((0.75, 2.5))
    assert strengths(0.5, 0.0) == (1.0, 2.0)
    assert strengths(0.0, 0.25) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("c_kl", "c_ent", "message"), [(0.0, 0.0, "both 0"), (-0.1, 0.5, "c_kl"), (0.1, -1.0, "c_ent")]
)
def test_strengths_that_make_no_sense(c_kl: float, c_ent: float, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        strengths(c_kl, c_ent)


@pytest.mark.parametrize(("c_kl", "c_ent"), STRENGTHS)
def test_the_reward_has_the_costs_of_the_objective(c_kl: float, c_ent: float) -> None:
    """Its mean over a policy's actions is r - c_kl KL(pi_i || pi_0) + c_ent H(pi_i)."""
    log_pi, log_pi0 = draw(0, 5).log_softmax(0), draw(1, 5).log_softmax(0)
    p, p0 = log_pi.exp().numpy(), log_pi0.exp().numpy()
    found = (log_pi.exp() * regularised_reward(torch.full((5,), 2.0).double(), log_pi, log_pi0, c_kl, c_ent)).sum()
    kl = sum(p[a] * math.log(p[a] / p0[a]) for a in range(5))
    entropy = -sum(p[a] * math.log(p[a]) for a in range(5))
    assert float(found) == pytest.approx(2.0 - c_kl * kl + c_ent * entropy, abs=1e-12)


@pytest.mark.parametrize(("c_kl", "c_ent"), STRENGTHS)
def test_two_columns_are_the_best_policy(c_kl: float, c_ent: float) -> None:
    """softmax(alpha h_0 + beta Q) is what an optimiser finds, who knows only costs; `soft_value` is what it reaches."""
    alpha, beta = strengths(c_kl, c_ent)
    q, h0 = draw(2, 4), draw(3, 4)
    log_p0 = h0.log_softmax(0).numpy()

    def cost(x: np.ndarray) -> float:
        log_p = x - scipy.special.logsumexp(x)
        p = np.exp(log_p)
        return -float((p * q.numpy()).sum() - c_kl * (p * (log_p - log_p0)).sum() - c_ent * (p * log_p).sum())

    best = scipy.optimize.minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    policy = two_column_logits(h0, q, alpha, beta).softmax(0)
    np.testing.assert_allclose(policy, scipy.special.softmax(best.x), atol=1e-5)
    assert float(soft_value(q, h0.log_softmax(0), alpha, beta)) == pytest.approx(-best.fun, abs=1e-8)
    by_hand = [math.exp(alpha * float(h0[a]) + beta * float(q[a])) for a in range(4)]
    np.testing.assert_allclose(policy, np.array(by_hand) / sum(by_hand), rtol=1e-12)


def test_without_a_shared_policy_it_is_soft_q_learning() -> None:
    """alpha = 0: V = (1 / beta) log sum exp(beta Q), whatever pi_0 is."""
    q = draw(4, 3, 4)
    for seed in (5, 6):
        value = soft_value(q, draw(seed, 3, 4).log_softmax(-1), 0.0, 3.0)
        for i in range(3):
            expected = math.log(sum(math.exp(3.0 * float(q[i, a])) for a in range(4))) / 3.0
            assert float(value[i]) == pytest.approx(expected, rel=1e-12)


def test_at_the_centroid_the_gradient_is_zero() -> None:
    """Of the visits-weighted log-likelihood of pi_0 under the task policies, by autograd; elsewhere it is not."""
    probs, visits = draw(7, 3, 5, 4).softmax(-1), draw(8, 3, 5).exp()
    mean = centroid(probs, visits)
    for s in range(5):
        expected = sum(visits[i, s] * probs[i, s] for i in range(3)) / visits[:, s].sum()
        torch.testing.assert_close(mean[s], expected, rtol=1e-12, atol=0)

    def gradient(h0: Tensor) -> Tensor:
        h0 = h0.clone().requires_grad_()
        objective = (visits[..., None] * probs * h0.log_softmax(-1)).sum()
        return torch.autograd.grad(objective, h0)[0]

    assert gradient(mean.log()).abs().max() < 1e-12
    h0 = draw(9, 5, 4)
    expected = (visits[..., None] * (probs - h0.softmax(-1))).sum(0)
    torch.testing.assert_close(gradient(h0), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 0.1


def test_a_prior_counts_as_visits_of_a_uniform_policy() -> None:
    probs, visits = draw(7, 2, 3, 4).softmax(-1), draw(8, 2, 3).exp()
    visits[:, 0] = 0
    uniform = torch.full((1, 3, 4), 0.25).double()
    expected = centroid(torch.cat([probs, uniform]), torch.cat([visits, torch.full((1, 3), 2.0).double()]))
    torch.testing.assert_close(centroid(probs, visits, prior=2.0), expected)
    torch.testing.assert_close(expected[0], uniform[0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

RUNS = [
    Settings(alpha, beta, lr, two)
    for (alpha, two) in ((0.0, False), (1.0, False), (1.0, True), (0.5, False), (0.5, True))
    for beta, lr in ((2.0, 0.3), (9.0, 1.0))
]
R, K, S, A = len(RUNS), 2, 5, 3
GAMMA, MEMORY, PRIOR = 0.9, 0.7, 1.5


class Naive:
    """One run in Python numbers, with the equations of the paper one state at a time."""

    def __init__(self, run: Settings) -> None:
        self.run = run
        self.f = [[[0.0] * A for _ in range(S)] for _ in range(K)]
        self.pi0 = [[1 / A] * A for _ in range(S)]
        self.visits = [[0.0] * A for _ in range(S)]

    def unnormalised(self, k: int, s: int) -> list[float]:
        alpha = self.run.alpha if self.run.two_columns else 0.0
        return [self.pi0[s][a] ** alpha * math.exp(self.run.beta * self.f[k][s][a]) for a in range(A)]

    def policy(self, k: int, s: int) -> list[float]:
        weights = self.unnormalised(k, s)
        return [w / sum(weights) for w in weights]

    def learn(self, k: int, s: int, a: int, reward: float, next_s: int, reached: bool) -> None:
        value = math.log(sum(self.unnormalised(k, next_s))) / self.run.beta
        if not self.run.two_columns:
            reward += self.run.alpha / self.run.beta * math.log(self.pi0[s][a])
        target = reward + (0.0 if reached else GAMMA * value)
        self.f[k][s][a] += self.run.lr * (target - self.f[k][s][a])

    def distill(self, visited: list[tuple[int, int]]) -> None:
        policies = [self.policy(k, s) for k, s in visited]
        self.visits = [[MEMORY * v for v in row] for row in self.visits]
        for (_, s), policy in zip(visited, policies, strict=True):
            for a in range(A):
                self.visits[s][a] += policy[a]
        for s in range(S):
            total = sum(self.visits[s]) + PRIOR
            self.pi0[s] = [(self.visits[s][a] + PRIOR / A) / total for a in range(A)]


def test_tables_are_the_naive_loop() -> None:
    """Every variant, over rollouts with ends and with walkers that have stopped; with one shared policy per run."""
    learner = TabularDistral(RUNS, K, S, A, GAMMA, MEMORY, PRIOR)
    naive = [Naive(run) for run in RUNS]
    rng = np.random.default_rng(0)
    for _ in range(6):
        states, actives = [], []
        for _ in range(4):
            state, next_state = rng.integers(S, size=(2, R, K))
            action, reward = rng.integers(A, size=(R, K)), rng.normal(size=(R, K))
            reached, active = rng.random((R, K)) < 0.3, rng.random((R, K)) < 0.8
            learner.learn(*(torch.from_numpy(x) for x in (state, action, reward, next_state, reached, active)))
            for (r, k), on in np.ndenumerate(active):
                if on:
                    i = (r, k)
                    naive[r].learn(k, state[i], action[i], reward[i], next_state[i], reached[i])
            states.append(torch.from_numpy(state))
            actives.append(torch.from_numpy(active))
        learner.distill(torch.stack(states), torch.stack(actives))
        for r, one in enumerate(naive):
            visited = [(k, int(s[r, k])) for s, on in zip(states, actives, strict=True) for k in range(K) if on[r, k]]
            one.distill(visited)
    for r, one in enumerate(naive):
        np.testing.assert_allclose(learner.table[r], one.f, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(learner.shared_log_probs[r].exp(), one.pi0, rtol=1e-10)
    for s in range(S):
        log_probs = learner.log_probs(torch.full((R, K), s))
        expected = [[one.policy(k, s) for k in range(K)] for one in naive]
        np.testing.assert_allclose(log_probs.exp(), expected, rtol=1e-10)


def test_one_column_converges_to_the_policy_of_two() -> None:
    """For a shared policy that stays: f_i = Q_i + (alpha / beta) log pi_0 there, and the same policy."""
    runs = [Settings(0.5, 3.0, 1.0, two) for two in (False, True)]
    learner = TabularDistral(runs, 1, S, A, GAMMA)
    learner.shared_log_probs = draw(0, S, A).log_softmax(-1).expand(2, S, A)
    rng = np.random.default_rng(1)
    leads_to, reward, reached = rng.integers(S, size=(S, A)), rng.normal(size=(S, A)), rng.random((S, A)) < 0.2
    both: Any = torch.ones(2, 1)
    for _ in range(300):
        for s in range(S):
            for a in range(A):
                learner.learn(
                    (both * s).long(),
                    (both * a).long(),
                    both.double() * reward[s, a],
                    (both * int(leads_to[s, a])).long(),
                    both.bool() & bool(reached[s, a]),
                    both.bool(),
                )
    one, two = learner.table[:, 0]
    torch.testing.assert_close(one, two + 0.5 / 3.0 * learner.shared_log_probs[0], rtol=0, atol=1e-9)
    for s in range(S):
        policies = learner.log_probs(torch.full((2, 1), s))
        torch.testing.assert_close(policies[0], policies[1], rtol=0, atol=1e-8)


# ---------------------------------------------------------------------------------------------------------------------
# The map
# ---------------------------------------------------------------------------------------------------------------------


def test_rooms_meet_in_the_corridor_only() -> None:
    """Every cell can be reached from every other; without the middle of the corridor, only those of one room."""
    rooms = TwoRooms()

    def reachable(blocked: set[int]) -> set[int]:
        found, frontier = {0}, [0]
        while frontier:
            for after in rooms.leads_to[frontier.pop()].tolist():
                if after not in found | blocked:
                    found.add(after)
                    frontier.append(after)
        return found

    assert reachable(set()) == set(range(len(rooms.cells))) == set(range(55))
    middle = int((rooms.rooms == -1).nonzero()[2])
    assert {int(rooms.rooms[cell]) for cell in reachable({middle})} == {0, -1}


def test_moves() -> None:
    """From the left upper corner: into a wall, to the right, and back, which is the goal."""
    rooms = TwoRooms()
    goal, state = torch.tensor(0), rooms.first_state(torch.tensor(1))
    expected = [((0, 1), 2, -0.1, False), ((-1, 0), 2, -0.5, False), ((0, -1), 1, -0.1, False), ((0, -1), 0, 1.0, True)]
    states = {int(state)}
    for move, cell, reward, ended in expected:
        action = torch.tensor(MOVES.index(move))
        state, found, reached = rooms.step(state, action, goal)
        assert (int(rooms.cell(state)), float(found), bool(reached)) == (cell, reward, ended)
        assert state == rooms.state(torch.tensor(cell), action, torch.tensor(move == (-1, 0)))
        states.add(int(state))
    assert len(states) == 5
    assert max(states) < rooms.num_states
    assert all(MOVES[BACK[a]] == (-r, -c) for a, (r, c) in enumerate(MOVES))


def test_the_shared_policy_learns_to_go_on_through_the_corridor() -> None:
    """Tasks lie on either side, so that which way to go depends on where one comes from: the paper's example."""
    rooms = TwoRooms(room=3, corridor=3)
    goals = rooms.draw_goals(4, torch.Generator().manual_seed(0))[None]
    returns, learner = train([Settings(1.0, 20.0, 0.5, True)], goals, rooms, 60, seed=0)
    assert returns[-10:].mean() > returns[:10].mean() + 1
    middle = (rooms.rooms == -1).nonzero().flatten()[1]
    for move in ((0, -1), (0, 1)):
        action = MOVES.index(move)
        state = rooms.state(middle, torch.tensor(action), torch.tensor(False))
        probs = learner.shared_log_probs[0, state].exp()
        assert probs[action] > 0.6
        assert probs[action] > 3 * probs[BACK[action]]
