"""Actors in processes of their own, and what the learner makes of what they send."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe

import pytest
import torch
from torch import Tensor

import mtrl.parallel.actors
from mtrl.data.experience import EpisodeStatistics
from mtrl.data.task_sampling import TaskSampler
from mtrl.envs.counting import CountingEnv
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.parallel.actor import Ended, Recipe, broadcast_tree
from mtrl.parallel.actors import AsyncOnPolicy
from mtrl.parallel.transport import ActorError, ActorProcess, Death, Delivery, LocalProcesses, Transport
from mtrl.types import Rollout, UserError, VecEnv
from tests.helpers import describe, next_obs_of, no_timer, of_slots, random_rollout
from tests.system.commands import alive, shared_memory, wait_for
from tests.unit.parallel.actor_envs import make_counting, make_dead, make_failing

K, T, B = 3, 7, 6  # B slots of each actor
TASK, GOAL, EPISODE, STEP, SLOT = range(5)
DESCRIPTION = describe("gaussian", obs_norm="running") | {"core": {"name": "lstm", "width": 5}}
SPEC = CountingEnv(B, episode_length=4, stagger=2).spec


class Fixed(TaskSampler):
    """The shares that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = torch.full((K,), 1 / K, dtype=torch.float64)

    def probabilities(self) -> Tensor:
        return self.shares


class Run:
    """An experience of two actors, and its policy as it was at each update, counted from 1."""

    def __init__(self, make_env: Callable[[], VecEnv], count: int = 2, transport: Transport | None = None) -> None:
        torch.manual_seed(0)
        self.said: list[str] = []
        self.policy: PolicyNetwork = build_policy(DESCRIPTION, SPEC)
        self.sampler = Fixed()
        episodes = EpisodeStatistics(SPEC, self.sampler)
        options: dict[str, float] = {}
        self.transport: Any = transport or LocalProcesses("cpu")
        self.source = AsyncOnPolicy(
            count, count * B, make_env, episodes, self.transport, no_timer, options, 1, self.said.append, T
        )
        self.source.connect(self.policy)
        self.policies: list[PolicyNetwork] = []

    def collect(self) -> tuple[list[Rollout], list[int]]:
        """The rollouts of the next batch and their lags; then "learns", statistics of the observations included."""
        self.policies.append(copy.deepcopy(self.policy))
        known = len(self.source._lags)
        assert self.source.collect(self.policy) == T * B * self.source.count
        (batch,) = self.source.batches()
        assert not list(self.source.batches())  # each is used once
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        self.policy.obs_norm.update(batch.obs, batch.task)
        return [of_slots(batch, i, i + B) for i in range(0, 2 * B, B)], [lag for _, lag in self.source._lags[known:]]

    @property
    def pids(self) -> list[int]:
        return [process.pid for _, process in sorted(self.transport.processes.items())]


@contextmanager
def running(make_env: Callable[[], VecEnv], count: int = 2) -> Iterator[Run]:
    """Ends the actors, and checks that nothing of them is left."""
    before = shared_memory()
    run = Run(make_env, count)
    try:
        yield run
    finally:
        pids = run.pids
        run.source.close()
        assert not any(map(alive, pids))
    assert shared_memory() <= before


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with running(make_counting) as started:
        yield started


def test_actors_act_as_the_learner_did(run: Run) -> None:
    """Whole episodes without gaps; log-probabilities of the policy that acted, its normaliser and memory included."""
    ends = [(torch.ones(B), torch.zeros(B))] * 2  # episode (reset twice before the first) and step that must come next
    seen, all_lags = [], []
    for _ in range(6):
        rollouts, lags = run.collect()
        assert not torch.equal(rollouts[0].action, rollouts[1].action)  # random numbers of their own
        for rollout, lag in zip(rollouts, lags, strict=True):
            behaviour = run.policies[-1 - lag]
            next_obs = next_obs_of(rollout)
            features, _ = behaviour.unroll(rollout.obs, rollout.task, rollout.is_first, rollout.core_state)
            log_prob = behaviour.distribution(features, rollout.task).log_prob(rollout.action)
            torch.testing.assert_close(rollout.log_prob, log_prob)
            assert torch.equal(rollout.core_state.any(1), rollout.obs[0, :, STEP] > 0)
            for column in (TASK, GOAL, EPISODE, SLOT):
                assert torch.equal(rollout.obs[..., column], next_obs[..., column])
            assert torch.equal(next_obs[..., STEP], rollout.obs[..., STEP] + 1)
            assert torch.equal(rollout.task, rollout.obs[..., TASK].long())
            done = rollout.terminated | rollout.truncated
            assert torch.equal(rollout.obs[1:][~done[:-1]], next_obs[:-1][~done[:-1]])
            begins = (rollout.obs[0, :, EPISODE], rollout.obs[0, :, STEP])
            (index, *_) = [i for i, end in enumerate(ends) if all(map(torch.equal, end, begins))]
            episode, step = next_obs[-1, :, EPISODE], next_obs[-1, :, STEP]
            ends[index] = (episode + done[-1], torch.where(done[-1], 0, step))
        seen += rollouts
        all_lags += lags
    assert all_lags[:2] == [0, 0]
    assert max(all_lags) >= 1  # stale weights have been looked at

    statistics = run.source.statistics()
    assert float(statistics["policy_lag"]) == sum(all_lags) / 12
    assert int(statistics["policy_lag_max"]) == max(all_lags)
    assert int(statistics["actor_restarts"]) == 0
    done = torch.stack([r.terminated | r.truncated for r in seen])
    task, length = torch.stack([r.task for r in seen])[done], torch.stack([next_obs_of(r) for r in seen])[done][:, STEP]
    success = torch.stack([r.terminated for r in seen])[done].double()
    for k in range(K):
        own = length[task == k]
        assert len(own) > 20
        assert float(statistics["episode_length"][k]) == pytest.approx(float(own.mean()))
        assert float(statistics["success_rate"][k]) == pytest.approx(float(success[task == k].mean()))
        returns = 1000 * k * own + own * (own + 1) / 2  # the reward of step n is 1000 k + n
        assert float(statistics["return"][k]) == pytest.approx(float(returns.mean()))


def test_the_shares_of_the_tasks_reach_the_actors(run: Run) -> None:
    run.sampler.shares = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    for _ in range(5):  # of 7 steps; running episodes, and the lag, are over by then
        rollouts, _ = run.collect()
    for rollout in rollouts:
        assert Counter(rollout.task[-1].tolist()) == {1: 3, 2: 3}


def check_back_pressure(run: Run, idle: Callable[[], bool]) -> None:
    """While the learner is busy, each of two actors makes one rollout and no more.

    Args:
        idle: Whether a rollout of each actor waits.
    """
    run.collect()
    wait_for(idle)
    before = run.transport.version
    time.sleep(1)  # time for hundreds of rollouts
    for _ in range(3):  # of a learner that learns from others meanwhile
        run.transport.publish(broadcast_tree(run.policy, run.sampler.shares))
    for version in (before, before + 3):  # what waited, and what was begun after that was received
        wait_for(idle)
        found = [(delivery.actor, delivery.version) for delivery in run.transport.receive(100)]
        assert found == [(0, version), (1, version)]


def test_a_slow_learner_bounds_what_waits() -> None:
    with running(make_counting) as run:
        processes = run.transport.processes
        check_back_pressure(run, lambda: all(process.connection.poll() for process in processes.values()))


def test_killed_actor_is_replaced(run: Run) -> None:
    run.collect()
    run.said.clear()
    before, restarts = run.pids, run.source.restarts
    os.kill(before[1], signal.SIGKILL)
    wait_for(lambda: not alive(before[1]))
    for _ in range(3):
        run.collect()
    assert run.pids[0] == before[0]
    assert run.pids[1] != before[1]
    assert int(run.source.statistics()["actor_restarts"]) == restarts + 1
    assert run.said == [
        f"WARNING: Actor 1 (process {before[1]}) ended with exit code -9 (SIGKILL: often a lack of memory). "
        f"It was started again (restarts so far: {restarts + 1})."
    ]


def test_exception_in_an_environment_is_one_line() -> None:
    with running(make_failing) as run, pytest.raises(ActorError) as error:
        run.collect()
    assert isinstance(error.value, UserError)
    assert str(error.value).startswith("An actor failed: ZeroDivisionError: the wheel came off (actor_envs.py, line ")
    assert "\n" not in str(error.value)


def test_actor_that_keeps_dying_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.parallel.actors, "MOST_DEATHS", 2)
    with running(make_dead, count=1) as run:
        with pytest.raises(ActorError, match=r"Actor 0 .* ended with exit code 3, 2 times in a row without a rollout"):
            run.collect()
        assert run.source.restarts == len(run.said) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Bookkeeping, without processes
# ---------------------------------------------------------------------------------------------------------------------


class Scripted:
    """A transport that delivers rollouts of the given versions of each actor, without processes."""

    def __init__(self, *versions: list[int]) -> None:
        self.version, self.left = 0, versions
        self.started: list[tuple[int, int]] = []

    def publish(self, weights: Any) -> None:
        self.version += 1

    def start(self, actor: int, recipe: Recipe) -> None:
        self.started.append((actor, recipe.seed))

    def receive(self, most: int) -> list[Delivery | Death]:
        ready = [(actor, left.pop(0)) for actor, left in list(enumerate(self.left))[:most] if left]
        return [
            Delivery(
                actor,
                random_rollout(T, B, K, 5, torch.full((T, B, 2), float(version)), seed=0),
                version,
                [([version % K], {"return": [1.0], "success": [1.0], "length": [4.0]})],
            )
            for actor, version in ready
        ]

    def close(self) -> None:
        pass


def scripted(*versions: list[int]) -> AsyncOnPolicy:
    return Run(make_counting, len(versions), Scripted(*versions)).source


def test_lags_by_hand() -> None:
    """Two actors, updates 1 to 4. Lags: 0, 0; then 1, 0; 1, 2; and at last 0 and 3 updates."""
    experience = scripted([1, 1, 2, 4], [1, 2, 1, 1])
    batches = []
    for _ in range(4):
        experience.collect(experience.policy)
        batches += list(experience.batches())
    statistics = experience.statistics()
    assert float(statistics["policy_lag"]) == (0 + 0 + 1 + 0 + 1 + 2 + 0 + 3) / 8
    assert int(statistics["policy_lag_max"]) == 3
    of_actors = [float(statistics[f"policy_lag/actor-{i}"]) for i in range(2)]
    assert of_actors == [(0 + 1 + 1 + 0) / 4, (0 + 0 + 2 + 3) / 4]
    assert batches[3].action[0, :, 0].tolist() == [4] * B + [1] * B  # side by side
    again = experience.statistics()  # told once
    assert again["policy_lag"].isnan()
    assert "policy_lag/actor-0" not in again


def test_a_quick_actor_need_not_wait_for_a_slow_one() -> None:
    experience = scripted([1, 1, 2, 2], [])
    for expected in ([1, 1], [2, 2]):
        experience.collect(experience.policy)
        (batch,) = experience.batches()
        assert batch.action[0, ::B, 0].tolist() == expected


class Waiting(ActorProcess):
    """A process with rollouts of some versions in its pipe."""

    def __init__(self, versions: list[int]) -> None:
        self.connection, self._there = Pipe()
        for version in versions:
            self._there.send(version)

    def receive(self, device: str) -> tuple[Rollout, int, Ended]:
        version = self.connection.recv()
        return random_rollout(T, B, K, 5, torch.full((T, B, 2), float(version)), seed=0), version, []

    def end(self, seconds: float) -> None:
        pass


def test_what_is_not_asked_for_stays() -> None:
    transport: Any = LocalProcesses("cpu")
    transport.processes |= {0: Waiting([1, 2]), 1: Waiting([3, 4])}
    received = [[(delivery.actor, delivery.version) for delivery in transport.receive(most)] for most in (1, 2, 2)]
    assert received == [[(0, 1)], [(0, 2), (1, 3)], [(1, 4)]]
    transport.close()


def test_what_is_saved() -> None:
    """Results not logged yet, the number of restarts, and how many actors there have been, so that seeds are new."""
    transports = [Scripted([1, 2], [1]) for _ in range(3)]
    sources = [Run(make_counting, 2, transport).source for transport in transports]
    for source in sources[:2]:
        source.collect(source.policy)
    sources[1].load_state_dict(sources[0].state_dict())
    sources[2].load_state_dict(sources[0].state_dict())
    results = [source.episodes.statistics()["return"].nan_to_num().tolist() for source in sources]
    assert results == [[0, 1, 0]] * 3
    transports[2].left = ([1], [1])
    sources[2].collect(sources[2].policy)
    first, _, resumed = ([seed for _, seed in transport.started] for transport in transports)
    assert [actor for actor, _ in transports[2].started] == [0, 1]
    assert first == [seed for _, seed in transports[1].started]
    assert len({*first, *resumed}) == 4


def test_deaths_are_counted_in_a_row() -> None:
    """Two deaths, a rollout, two deaths: three in a row would be too many. What is said names the actor."""

    class Deadly(Scripted):
        def receive(self, most: int) -> list[Delivery | Death]:
            (left,) = self.left
            if left[0] == 0:
                left.pop(0)
                return [Death(0, "Actor 0 (process 7) ended with exit code 3")]
            return super().receive(most)

    run = Run(make_counting, 1, Deadly([0, 0, 1, 0, 0, 2, 0, 0, 0]))
    for _ in range(2):
        run.source.collect(run.policy)
    assert run.source.restarts == 4
    assert "process 7) ended with exit code 3. It was started again (restarts so far: 4)." in run.said[-1]
    with pytest.raises(ActorError, match=r"Actor 0 .* ended with exit code 3, 3 times in a row without a rollout"):
        run.source.collect(run.policy)
