"""Rollouts and the replay, with an environment that says where each observation comes from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrl.envs
from mtrl.data.experience import Collector, EpisodeStatistics, JointEpisodes, OffPolicy, OnPolicy, RandomActor
from mtrl.data.n_step import NStep
from mtrl.data.replay import Replay, transition_columns
from mtrl.data.task_sampling import TaskSampler
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.types import Batch, Ranks, Rollout, State, UserError
from tests.helpers import end_fields, make_spec, next_obs_of, no_timer

K = 3
TASK, GOAL, EPISODE, STEP, SLOT = range(5)


class Restless(TaskSampler):
    """Other probabilities each time: slots keep changing their tasks."""

    def probabilities(self) -> Tensor:
        return torch.rand(K, dtype=torch.float64).softmax(0) if torch.rand(()) < 0.5 else torch.eye(K).double()[1]


class Recorder:
    """An actor whose actions and log-probabilities say which observation they were chosen for, and for which task."""

    def initial_state(self, num: int) -> Tensor:
        return torch.zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        assert explore
        assert torch.equal(obs[:, TASK].long(), task)
        return self.action(obs), self.log_prob(obs), state

    @staticmethod
    def action(obs: Tensor) -> Tensor:
        return torch.stack([obs[..., STEP] / 100, obs[..., EPISODE] / 1000], dim=-1)

    @staticmethod
    def log_prob(obs: Tensor) -> Tensor:
        return -obs[..., SLOT] - obs[..., STEP] / 100


def make_collector(
    sampler: TaskSampler | None = None,
    num_envs: int = 6,
    seed: int = 0,
    exploring_start_fraction: float = 0.0,
    **options: Any,
) -> Collector:
    options = {"num_tasks": K, "episode_length": 4, "stagger": 2, "terminate_every": 2} | options
    env = mtrl.envs.make("counting", num_envs=num_envs, seed=seed, **options)
    return Collector(env, EpisodeStatistics(env.spec, sampler or Uniform(K)), "cpu", no_timer, exploring_start_fraction)


def make_off_policy(collector: Collector, capacity: int = 1000, n_step: int = 1, **options: Any) -> OffPolicy:
    options = {"batch_size": 4, "samples_per_insert": 4.0, "learning_starts": 0} | options
    replay = Replay(K, capacity, transition_columns(collector.env.spec), "cpu")
    return OffPolicy(collector, replay, NStep(n_step, 0.9), **options)


def check_transitions(
    obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor, task: Tensor
) -> None:
    """Every transition stays within one step of one episode of one task."""
    for column in (TASK, GOAL, EPISODE, SLOT):
        assert torch.equal(obs[..., column], next_obs[..., column])
    assert torch.equal(next_obs[..., STEP], obs[..., STEP] + 1)
    assert torch.equal(task, obs[..., TASK].long())
    assert torch.equal(reward, 1000 * obs[..., TASK] + next_obs[..., STEP])
    assert torch.equal(action, Recorder.action(obs))
    # An episode of slot i has 4 + i % 3 steps; those with an even number terminate.
    last = next_obs[..., STEP] == 4 + obs[..., SLOT] % 3
    assert torch.equal(terminated, last & (obs[..., EPISODE] % 2 == 0))


SAMPLERS: list[Callable[[], TaskSampler]] = [lambda: Uniform(K), Restless]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["uniform", "restless"])
def test_rollouts_do_not_mix_episodes_or_tasks(sampler: Callable[[], TaskSampler]) -> None:
    torch.manual_seed(0)
    experience, actor, rollouts = OnPolicy(make_collector(sampler()), rollout_length=7), Recorder(), []
    for _ in range(12):
        assert experience.collect(actor) == 7 * 6
        (rollout,) = experience.batches()
        assert not list(experience.batches())  # each is used once
        rollouts.append(rollout)
    next_obs = torch.cat([next_obs_of(r) for r in rollouts])
    everything = {
        key: torch.cat([getattr(r, key) for r in rollouts])
        for key in vars(rollouts[0])
        if key not in ("ends", "end_obs", "core_state")
    }
    done = everything["terminated"] | everything["truncated"]
    # Rollouts follow one another without a gap.
    rollout = Rollout(**everything, **end_fields(done, next_obs), core_state=rollouts[0].core_state)

    check_transitions(rollout.obs, rollout.action, rollout.reward, rollout.terminated, next_obs, rollout.task)
    assert torch.equal(rollout.log_prob, Recorder.log_prob(rollout.obs))
    last = next_obs[..., STEP] == 4 + rollout.obs[..., SLOT] % 3
    assert torch.equal(rollout.truncated, last & (rollout.obs[..., EPISODE] % 2 == 1))
    following, ended = rollout.obs[1:], done[:-1]
    assert torch.equal(following[~ended], next_obs[:-1][~ended])
    assert torch.equal(following[ended][:, EPISODE], rollout.obs[:-1][ended][:, EPISODE] + 1)
    assert (following[ended][:, STEP] == 0).all()
    assert torch.equal(following[..., SLOT], rollout.obs[:-1][..., SLOT])
    # What the test is about must have happened.
    assert rollout.terminated.sum() > 20
    assert rollout.truncated.sum() > 20
    assert (done.sum(1) > 0).any()
    assert (done.sum(1) < 6).any()  # not all slots together
    changes = int((rollout.task[1:] != rollout.task[:-1]).sum())
    assert changes > 20 if sampler is Restless else changes == 0


@pytest.mark.parametrize("capacity", [1000, 11])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=["uniform", "restless"])
def test_the_replay_does_not_mix_episodes_or_tasks(sampler: Callable[[], TaskSampler], capacity: int) -> None:
    torch.manual_seed(0)
    experience = make_off_policy(make_collector(sampler()), capacity)
    experience._random = Recorder()  # random actions would not say what they were chosen for
    for _ in range(100):
        assert experience.collect(Recorder()) == 6
    rings, size = experience.replay.state_dict()["rings"], experience.replay.size
    for k in range(K):
        own = {key: ring[k, : size[k]] for key, ring in rings.items()}
        terminated = own.pop("continuation") == 0
        check_transitions(**own, terminated=terminated, task=torch.full((int(size[k]),), k))
    assert experience.replay.added.sum() == 600
    if capacity == 1000:
        stored = torch.cat([rings["obs"][k, : size[k]] for k in range(K)])
        assert len(stored[:, [EPISODE, STEP, SLOT]].unique(dim=0)) == 600  # every step of every slot once


@pytest.mark.parametrize("action_kind", ["continuous", "discrete"])
def test_the_batch_is_what_was_stored(action_kind: str) -> None:
    collector = make_collector(action_kind=action_kind)
    experience = make_off_policy(collector)
    for _ in range(20):
        experience.collect(RandomActor(collector.env.spec))
    batch = Batch(**experience.replay.sample(50))
    assert torch.equal(batch.task, torch.arange(K)[:, None].expand(K, 50))
    assert torch.equal(batch.obs[..., TASK].long(), batch.task)
    assert torch.equal(batch.next_obs[..., STEP], batch.obs[..., STEP] + 1)
    assert batch.action.dtype == (torch.float32 if action_kind == "continuous" else torch.int64)


class Forbidden(Recorder):
    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        raise AssertionError("the policy acts during the warm-up")


def test_warm_up_is_random_and_learns_nothing() -> None:
    """10 transitions per task, 2 slots per task: 5 steps. From then on the policy acts, and updates are owed."""
    torch.manual_seed(0)
    experience = make_off_policy(make_collector(), learning_starts=10, samples_per_insert=4.0)
    for step in range(5):
        experience.collect(Forbidden())
        assert len(list(experience.batches())) == (0 if step < 4 else 2)  # 6 transitions * 4 / (3 tasks * 4)
    actions = experience.replay.state_dict()["rings"]["action"]
    assert actions.abs().max() <= 1
    assert len(actions.unique()) == 3 * 10 * 2  # no two alike
    assert actions.min() < -0.8
    assert actions.max() > 0.8
    experience.collect(Recorder())
    newest = {key: ring[:, 10:12] for key, ring in experience.replay.state_dict()["rings"].items()}
    assert torch.equal(newest["action"], Recorder.action(newest["obs"]))
    assert len(list(experience.batches())) == 2


def test_without_warm_up_the_first_step_is_random() -> None:
    """Every task has something to sample before learning begins, even with tasks in few slots."""
    experience = make_off_policy(make_collector(num_envs=3), learning_starts=0, samples_per_insert=4.0)
    experience.collect(Forbidden())
    assert len(list(experience.batches())) == 1


@pytest.mark.parametrize(
    ("ratio", "batch_size", "steps", "expected"),
    [
        # batches = floor(steps * 6 slots * ratio / (3 tasks * batch_size))
        (4.0, 4, 50, 100),  # 1200 / 12
        (0.125, 1, 100, 25),  # 75 / 3
        (0.375, 4, 77, 14),  # 173.25 / 12 = 14.4
        (128.0, 128, 10, 20),  # published: one update of 128 per task for each step of all tasks (twice 3 slots)
        (2.5, 8, 33, 20),  # 495 / 24 = 20.6
    ],
)
def test_replay_ratio(ratio: float, batch_size: int, steps: int, expected: int) -> None:
    experience = make_off_policy(make_collector(), samples_per_insert=ratio, batch_size=batch_size)
    batches = []
    for _ in range(steps):
        experience.collect(Recorder())
        batches.append(len(list(experience.batches())))
    assert sum(batches) == expected
    assert max(batches) - min(batches) <= 1  # spread evenly


def test_statistics_by_hand() -> None:
    """Episodes of 2 steps, one slot per task; after 2 steps each slot has finished one, which terminated.

    Return of task k: (1000 k + 1) + (1000 k + 2) = 2000 k + 3.
    """
    collector = make_collector(num_envs=3, episode_length=2, stagger=0)
    action = torch.zeros(3, 2)
    collector.step(action)
    empty = collector.episodes.statistics()
    results = {"return", "success_rate", "episode_length", "task_share"}
    assert set(empty) == results | {f"{name}_mean" for name in results - {"return"}}  # which are not comparable
    assert empty.pop("task_share").tolist() == [1 / 3] * 3
    assert float(empty.pop("task_share_mean")) == pytest.approx(1 / 3)
    assert all(values.isnan().all() for values in empty.values())
    collector.step(action)
    row = collector.episodes.statistics()
    assert row["return"].tolist() == [3, 2003, 4003]
    assert row["success_rate"].tolist() == [1, 1, 1]
    assert row["episode_length"].tolist() == [2, 2, 2]
    collector.step(action)
    collector.step(action)
    assert collector.episodes.statistics()["success_rate"].tolist() == [0, 0, 0]  # the odd episodes are truncated
    assert collector.episodes.statistics()["return"].isnan().all()  # told once


@pytest.mark.parametrize("comparable", [True, False])
def test_statistics_of_tasks_that_are_not_alike(comparable: bool) -> None:
    """Four episodes, three tasks: 0 succeeds in one of two, 1 reports none, 2 succeeds; the mean is (.5 + 1) / 2."""
    spec = replace(make_spec(3), reports_success=(True, False, True), comparable_returns=comparable)
    episodes = EpisodeStatistics(spec, Uniform(3))
    success = torch.tensor([1.0, 0.0, 0.0, 1.0])
    heard: list[list[float]] = []
    episodes.listeners.append(lambda statistics: heard.append(statistics["success_rate"].nan_to_num(-1).tolist()))
    episodes.add(torch.tensor([0, 0, 1, 2]), {"return": 4 * success, "success": success, "length": 1 + success})
    row = episodes.statistics()
    assert row["success_rate"].nan_to_num(-1).tolist() == [0.5, -1, 1] == heard[0]
    assert float(row["success_rate_mean"]) == 0.75
    assert row["return"].tolist() == [2, 0, 4]
    assert ("return_mean" in row) == comparable
    if comparable:
        assert float(row["return_mean"]) == 2
    assert float(row["episode_length_mean"]) == 1.5  # (1.5 + 1 + 2) / 3


class WithATwin(Ranks):
    """The first of two ranks; the other one does the same."""

    size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def sum_all(self, tensors: Any) -> list[Tensor]:
        return [2 * tensor for tensor in tensors]


def test_episodes_of_all_ranks_count_once_they_are_exchanged() -> None:
    """Two episodes here, two there: the sampler hears of each, in the order of the ranks."""
    heard: list[list[int]] = []
    sampler = Uniform(3)
    sampler.update = lambda task, results: heard.append(task.tolist())  # type: ignore[method-assign, assignment]
    episodes = JointEpisodes(make_spec(3), sampler, WithATwin())
    for task, success in ((0, 1.0), (1, 0.0)):
        results = {"return": 3 * torch.ones(1), "success": torch.tensor([success]), "length": torch.ones(1)}
        episodes.add(torch.tensor([task]), results)
    assert heard == []
    restored = JointEpisodes(make_spec(3), sampler, WithATwin())
    restored.load_state_dict(episodes.state_dict())  # as saved between the end of an episode and the exchange
    restored.exchange()
    assert heard == [[0], [1], [0], [1]]
    assert restored.statistics()["success_rate"].nan_to_num(-1).tolist() == [1, 0, -1]
    restored.exchange()
    assert len(heard) == 4


@pytest.mark.parametrize("others", [True, False])
def test_learning_starts_when_every_rank_has_enough(others: bool) -> None:
    class Waiting(Ranks):
        def all(self, flag: bool) -> bool:
            return flag and others

    collector = make_collector(num_envs=K, sampler=Uniform(K))
    collector.episodes.ranks = Waiting()
    source = make_off_policy(collector, 10, batch_size=2, samples_per_insert=2, learning_starts=1)
    source.collect(RandomActor(collector.env.spec))
    assert bool(list(source.batches())) == others


def test_first_episodes_end_at_different_times() -> None:
    """Episodes of 6 steps, three slots for each of two tasks: their first ones have 6/3, 2 * 6/3 and 6 steps."""
    collector = make_collector(num_envs=6, num_tasks=2, episode_length=6, stagger=0, sampler=Uniform(2))
    ends = torch.stack([collector.step(torch.zeros(6, 2)).done for _ in range(14)])
    expected = [[2, 8, 14], [4, 10], [6, 12]] * 2
    assert [(1 + slot.nonzero().flatten()).tolist() for slot in ends.T] == expected


def test_episodes_of_training_can_be_shorter() -> None:
    """At most 4 of 6 steps: the two slots of each task end their first episodes after 4/2 and 4 steps, then after 4."""
    env = mtrl.envs.make("counting", num_envs=4, num_tasks=2, episode_length=6, terminate_every=0)
    episodes = EpisodeStatistics(env.spec, Uniform(2))
    collector = Collector(env, episodes, "cpu", no_timer, max_episode_steps=4)
    steps = [collector.step(torch.zeros(4, 2)) for _ in range(10)]
    expected = [[2, 6, 10], [4, 8]] * 2
    assert [(1 + slot.nonzero().flatten()).tolist() for slot in torch.stack([s.truncated for s in steps]).T] == expected
    assert float(episodes.statistics()["episode_length_mean"]) == pytest.approx(18 / 5)  # 2, 4, 4 and 4, 4 of each task
    with pytest.raises(ValueError, match="max_episode_steps must be positive, not 0"):
        Collector(env, episodes, "cpu", no_timer, max_episode_steps=0)


def test_episodes_begin_with_one_random_action_held_for_a_while() -> None:
    """At most half of 8 steps, the actor's own actions after that; every length is seen."""
    torch.manual_seed(0)
    experience = OnPolicy(make_collector(num_envs=30, exploring_start_fraction=0.5, episode_length=8, stagger=0), 80)
    experience.collect(Recorder())
    (rollout,) = experience.batches()
    own = (rollout.action == Recorder.action(rollout.obs)).all(-1)
    torch.testing.assert_close(rollout.log_prob[own], Recorder.log_prob(rollout.obs)[own])
    assert (rollout.log_prob[~own] == torch.inf).all()
    lengths, starts = set(), []
    for slot in range(30):
        for episode in rollout.obs[:, slot, EPISODE].unique():
            rows = (rollout.obs[:, slot, EPISODE] == episode).nonzero().flatten()
            random = (~own[rows, slot]).nonzero().flatten()
            lengths.add(len(random))
            assert random.tolist() == list(range(len(random)))  # the first steps and no others
            actions = rollout.action[rows, slot][random].unique(dim=0)
            assert len(actions) <= 1
            starts += actions.tolist()
    assert lengths == {0, 1, 2, 3, 4}
    assert len({tuple(action) for action in starts}) == len(starts) > 100  # drawn anew in every episode


def test_statistics_of_one_task_alone() -> None:
    """Slot 0 has episodes of 2 steps, slot 1 of 3 steps, slot 2 of 4: after 3 steps only task 2 has no result.

    Task 1's: 1001 + 1002 + 1003.
    """
    collector = make_collector(num_envs=3, episode_length=2)
    for _ in range(3):
        collector.step(torch.zeros(3, 2))
    row = collector.episodes.statistics()
    assert row["return"][:2].tolist() == [3, 3006]
    assert row["return"].isnan().tolist() == [False, False, True]
    assert row["episode_length"][:2].tolist() == [2, 3]


def test_the_sampler_hears_of_episodes_as_they_end() -> None:
    """Slot 0 has episodes of 2 steps, slot 1 of 3: two of task 0 end, one of task 1 between, whenever rows are logged.

    Returns: 1 + 2, then 1001 + 1002 + 1003, then 1 + 2 again. Odd episodes are truncated, which is no success.
    """
    heard: list[tuple[list[int], list[float], list[float]]] = []

    class Listener(Uniform):
        def update(self, task: Tensor, results: dict[str, Tensor]) -> None:
            heard.append((task.tolist(), results["return"].tolist(), results["success"].tolist()))

    collector = make_collector(Listener(K), num_envs=3, episode_length=2)
    for _ in range(4):
        collector.step(torch.zeros(3, 2))
    assert heard[:2] == [([0], [3], [1]), ([1], [3006], [1])]
    assert heard[2][0] == [0, 2]
    assert heard[2][1][0] == 3
    assert heard[2][2][0] == 0


def test_results_belong_to_the_task_of_the_episode() -> None:
    """All slots are moved to task 1 while they run their own: the running episodes count for their own tasks."""

    class One(TaskSampler):
        def probabilities(self) -> Tensor:
            return torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    collector = make_collector(One(), num_envs=3, episode_length=2, stagger=0)
    for _ in range(2):
        collector.step(torch.zeros(3, 2))
    assert collector.episodes.statistics()["return"].tolist() == [3, 2003, 4003]
    assert collector.task.tolist() == [1] * 3
    for _ in range(2):
        collector.step(torch.zeros(3, 2))
    row = collector.episodes.statistics()["return"]
    assert row.isnan().tolist() == [True, False, True]
    assert row[1] == 2003


def equal(one: Any, two: Any) -> bool:
    """Bit for bit, NaN included."""
    if isinstance(one, Tensor):
        return one.shape == two.shape and torch.equal(one.nan_to_num(-7.0), two.nan_to_num(-7.0))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return one == two


def run_on(experience: OnPolicy | OffPolicy, times: int) -> list[Any]:
    """What comes of going on from here, with the random numbers restarted."""
    torch.manual_seed(42)
    seen: list[Any] = []
    for _ in range(times):
        experience.collect(RandomActor(experience.collector.env.spec))
        seen += [vars(batch) for batch in experience.batches()]
        seen.append(experience.statistics())
    return seen


@pytest.mark.parametrize("kind", ["on", "off"])
@pytest.mark.parametrize("through_a_file", [True, False])
def test_the_state_continues_bit_exactly(kind: str, through_a_file: bool) -> None:
    def make(seed: int) -> OnPolicy | OffPolicy:
        # Episodes with a horizon, so that they begin with random actions and their first ones are cut.
        collector = make_collector(Restless(), seed=seed, exploring_start_fraction=0.5, episode_length=6, stagger=0)
        if kind == "on":
            return OnPolicy(collector, rollout_length=5)
        return make_off_policy(collector, capacity=30, n_step=3, samples_per_insert=0.7, learning_starts=5)

    torch.manual_seed(0)
    one = make(seed=0)
    for _ in range(13):
        one.collect(RandomActor(one.collector.env.spec))
        list(one.batches())
    state: State = one.state_dict()
    other = make(seed=9)
    other.load_state_dict(copy.deepcopy(state) if through_a_file else state)
    expected = run_on(one, 30)
    assert len(expected) > 30
    for ours, theirs in zip(run_on(other, 30), expected, strict=True):
        assert equal(ours, theirs)


class Remembering(RandomActor):
    """Its state is the number of its actions in the episode."""

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        action, log_prob, _ = super().act(obs, task, state, explore)
        return action, log_prob, state + 1


def test_a_step_that_fails_leaves_the_state_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the actor included."""
    collector = make_collector()
    collector.core_state = torch.zeros(6, 1)
    experience, actor = OnPolicy(collector, rollout_length=3), Remembering(collector.env.spec)
    experience.collect(actor)
    before = copy.deepcopy(experience.state_dict())

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("the wheel came off")

    with monkeypatch.context() as patch:
        patch.setattr(collector.env, "step", fail)
        with pytest.raises(ZeroDivisionError):
            experience.collect(actor)
    assert equal(experience.state_dict(), before)
    experience.collect(actor)
    assert torch.equal(collector.core_state[:, 0], collector.env.variables["step"].float())  # type: ignore[attr-defined]


def test_random_actions_are_those_the_task_has() -> None:
    mask = ((True, True, False), (True, False, False), (False, True, True))
    task = torch.tensor([0, 1, 2]).repeat_interleave(200)
    torch.manual_seed(0)
    no_obs = (torch.zeros(600, 1), task, torch.zeros(600, 0))
    action, log_prob, _ = RandomActor(make_spec(3, 1, 3, "continuous", mask)).act(*no_obs, True)
    existing = torch.tensor(mask)[task]
    assert (action[~existing] == 0).all()
    assert action[existing].min() < -0.95
    assert action[existing].max() > 0.95
    assert action[existing].mean().abs() < 0.1
    assert log_prob.isnan().all()
    action, *_ = RandomActor(make_spec(3, 1, 3, "discrete", mask)).act(*no_obs, True)
    assert existing.gather(1, action[:, None]).all()
    assert (torch.bincount(action[task == 2], minlength=3)[1:] > 60).all()


def test_first_observation_of_a_later_episode_is_finite() -> None:
    collector = make_collector()
    step = collector.env.step

    def ill(action: Tensor, truncate: Tensor | None = None) -> Any:
        made = step(action, truncate)
        made.obs[made.done] = torch.inf
        return made

    collector.env.step = ill  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match=r"task 'count-\d' gave inf as the observation at \[0\], in step 0 of an episode"
    ):
        OnPolicy(collector, rollout_length=20).collect(Recorder())
