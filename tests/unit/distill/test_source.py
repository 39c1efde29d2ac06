"""DAgger's dataset: who acts, what is labelled, what is learned from."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrl.envs
from mtrl.data.experience import Collector, EpisodeStatistics
from mtrl.data.replay import Replay
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.distill.episodes import AllEpisodes, SuccessfulEpisodes
from mtrl.distill.losses import label_size
from mtrl.distill.schedules import Constant, Linear, Schedule
from mtrl.distill.source import Dagger, check_success
from mtrl.distill.teachers import FunctionTeacher, Teacher
from mtrl.types import UserError, VecEnv
from tests.helpers import make_spec

K, B = 3, 6
TASK, EPISODE, STEP, SLOT = 0, 2, 3, 4
TEACHER, STUDENT = 0.5, -0.5


class Student:
    """Always does the same."""

    def initial_state(self, num: int) -> Tensor:
        return torch.zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((len(task), 2), STUDENT), torch.zeros(len(task)), state


def label(obs: Tensor, task: Tensor) -> Tensor:
    """Says in which slot, step and episode it was asked."""
    assert torch.equal(obs[:, TASK].long(), task)
    return torch.stack([torch.full((len(task),), TEACHER), obs[:, SLOT] / 10], 1)


def make_env(seed: int = 0) -> VecEnv:
    return mtrl.envs.make("counting", num_envs=B, seed=seed, num_tasks=K, episode_length=4, stagger=2)


def make(
    share: Schedule | float = 0.0, seed: int = 0, teacher: Teacher | None = None, **options: Any
) -> tuple[Dagger, list[Tensor]]:
    torch.manual_seed(seed)
    env = make_env(seed)
    acted: list[Tensor] = []
    step = env.step

    def watched(action: Tensor, truncate: Tensor | None = None) -> Any:
        acted.append(action.clone())
        return step(action, truncate)

    env.step = watched  # type: ignore[method-assign]
    collector = Collector(env, EpisodeStatistics(env.spec, Uniform(K)), "cpu", lambda phase: nullcontext())
    teacher = teacher or FunctionTeacher(label, "action")
    columns = {"obs": ((5,), torch.float32), "label": ((label_size(teacher.kind, env.spec),), torch.float32)}
    options = {
        "batch_size": 2,
        "samples_per_insert": 1.0,
        "learning_starts": 0,
        "teacher_noise": 0.0,
        "student_noise": 0.0,
        "episodes": AllEpisodes(),
        "capacity": 50,
    } | options
    schedule = share if isinstance(share, Schedule) else Constant(share)
    dataset = Replay(K, options.pop("capacity"), columns, "cpu")
    return Dagger(collector, teacher, dataset, teacher_share=schedule, **options), acted


@pytest.mark.parametrize(("share", "expected"), [(0.0, STUDENT), (1.0, TEACHER)])
def test_who_acts(share: float, expected: float) -> None:
    source, acted = make(share)
    for _ in range(10):
        source.collect(Student(), 0.0)
    assert (torch.stack(acted)[..., 0] == expected).all()


def test_one_of_the_two_acts_throughout_an_episode() -> None:
    source, acted = make(0.5)
    episodes = []
    for _ in range(200):
        obs = source.collector.obs
        source.collect(Student(), 0.0)
        episodes += list(zip(obs[:, SLOT].tolist(), obs[:, EPISODE].tolist(), acted[-1][:, 0].tolist(), strict=True))
    who: dict[tuple[float, float], set[float]] = {}
    for slot, episode, action in episodes:
        who.setdefault((slot, episode), set()).add(action)
    assert all(len(actions) == 1 for actions in who.values())
    share = sum(actions == {TEACHER} for actions in who.values()) / len(who)
    assert 0.4 < share < 0.6  # of some 240 episodes: standard error 0.03


def test_the_share_follows_its_schedule() -> None:
    source, acted = make(Linear(1.0, 0.0, until=0.5))
    source.collect(Student(), 0.0)
    assert (acted[-1][:, 0] == TEACHER).all()
    for _ in range(8):
        source.collect(Student(), 0.6)
    assert (acted[-1][:, 0] == STUDENT).all()


def test_noise_is_added_to_actions_and_not_to_labels() -> None:
    source, acted = make(0.0, student_noise=0.1, capacity=1000)
    for _ in range(200):
        source.collect(Student(), 0.0)
    noise = torch.stack(acted) - STUDENT
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    labels = torch.cat([batch.label.flatten(0, 1) for batch in source.batches()])
    assert (labels[:, 0] == TEACHER).all()


def test_every_sample_has_the_label_of_its_observation() -> None:
    source, _ = make(0.5)
    for _ in range(30):
        source.collect(Student(), 0.0)
    batches = list(source.batches())
    assert len(batches) == 30 * B // (2 * K)  # one sample learned from for each collected, two of each task in a batch
    for batch in batches:
        assert torch.equal(batch.obs[..., TASK].long(), batch.task)
        assert torch.equal(batch.label[..., 1], batch.obs[..., SLOT] / 10)
        assert batch.kind == "action"


def test_nothing_is_learned_before_learning_starts() -> None:
    source, _ = make(learning_starts=11)  # two slots of each task: after six steps
    counts = []
    for _ in range(8):
        source.collect(Student(), 0.0)
        counts.append(len(list(source.batches())))
    assert counts == [0, 0, 0, 0, 0, 1, 1, 1]


def test_goes_on_from_its_state() -> None:
    """Across the ends of episodes, with noise, with a ring that is full."""
    one, acted = make(0.5, student_noise=0.2, teacher_noise=0.3, capacity=20)
    for _ in range(30):
        one.collect(Student(), 0.2)
        list(one.batches())
    other, other_acted = make(0.5, seed=1, student_noise=0.2, teacher_noise=0.3, capacity=20)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    found = []
    for source in (one, other):
        torch.manual_seed(3)
        batches = []
        for _ in range(20):
            source.collect(Student(), 0.3)
            batches += list(source.batches())
        found.append(batches)
    assert torch.equal(torch.stack(acted[-20:]), torch.stack(other_acted[-20:]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.label, b.label)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 1.0), (1.0, 0.5)])
def test_discrete_actions_are_random_with_the_probability_of_the_noise(probability: float, share: float) -> None:
    torch.manual_seed(0)
    env = mtrl.envs.make("counting", num_envs=B, num_tasks=K, episode_length=4, action_kind="discrete", action_dim=2)
    collector = Collector(env, EpisodeStatistics(env.spec, Uniform(K)), "cpu", lambda phase: nullcontext())
    acted: list[Tensor] = []
    step = env.step
    env.step = lambda action, truncate=None: (acted.append(action.clone()), step(action, truncate))[1]  # type: ignore[method-assign]
    teacher = FunctionTeacher(lambda obs, task: torch.ones(len(task), 1), "action")
    dataset = Replay(K, 50, {"obs": ((5,), torch.float32), "label": ((1,), torch.float32)}, "cpu")
    source = Dagger(collector, teacher, dataset, 2, 1.0, 0, Constant(1.0), probability, 0.0, AllEpisodes())

    class Never(Student):
        def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
            return torch.zeros_like(task), torch.zeros(len(task)), state

    for _ in range(100):
        source.collect(Never(), 0.0)
    ones = torch.stack(acted).float().mean()
    assert float(ones) == pytest.approx(share, abs=0.1)


def test_a_dataset_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity=4 is less than learning_starts=0 or the number of slots, 6"):
        make(capacity=4)


# --- successful episodes --------------------------------------------------------------------------------------------

COLUMNS = {"obs": ((5,), torch.float32), "label": ((2,), torch.float32)}


def successful(seed: int = 0) -> Dagger:
    """Of the counting environment, where the episodes with an even number succeed, in their last step."""
    source, _ = make(0.5, seed, capacity=60, teacher_noise=0.3, episodes=SuccessfulEpisodes(B, 6, COLUMNS, "cpu"))
    return source


def test_an_episode_enters_when_it_ends_and_only_if_it_succeeded() -> None:
    """Against the list of all observations: those of even episodes, as soon as the slot is in a later one."""
    source, seen, found = successful(), [], []
    for _ in range(14):
        seen += source.collector.obs.tolist()
        source.collect(Student(), 0.0)
        now = {(int(row[SLOT]), int(row[EPISODE])) for row in source.collector.obs.tolist()}
        over = [row for row in seen if row[EPISODE] % 2 == 0 and (int(row[SLOT]), int(row[EPISODE])) not in now]
        stored = [row for task in range(K) for row in ring(source, "obs", task).tolist()]
        assert sorted(stored) == sorted(over)
        found.append(len(stored))
    assert found[0] == 0
    assert len(set(found)) > 3
    for task in range(K):
        rows, labels = ring(source, "obs", task), ring(source, "label", task)
        assert (rows[:, TASK] == task).all()
        assert torch.equal(labels[:, 1], rows[:, SLOT] / 10)
        steps = rows[:, STEP]  # from 0 on in each episode, in order
        assert ((steps[1:] == steps[:-1] + 1) | (steps[1:] == 0)).all()


def ring(source: Dagger, name: str, task: int) -> Tensor:
    """The samples of a task in the dataset."""
    return source.replay._rings[name][task, : int(source.replay.size[task])]


def test_samples_are_learned_from_as_they_enter() -> None:
    """One for each that is added after every task has some: batches of 2 samples of each of the 3 tasks."""
    source, batches = successful(), 0
    before = None
    for _ in range(40):
        source.collect(Student(), 0.0)
        batches += len(list(source.batches()))
        if before is None and (source.replay.added > 0).all():
            before = int(source.replay.added.sum())
            assert batches <= before / (2 * K)
            first = batches
    assert before is not None
    owed = int(source.replay.added.sum()) - before
    assert abs((batches - first) - owed / (2 * K)) < 1


def test_held_samples_go_on_from_their_state() -> None:
    """In the middle of episodes, which then enter whole."""
    one = successful()
    for _ in range(9):
        one.collect(Student(), 0.2)
    other = successful(seed=1)
    state = copy.deepcopy(one.state_dict())
    assert int(state["running"]["length"].max()) > 0
    other.load_state_dict(state)
    for source in (one, other):
        torch.manual_seed(3)
        for _ in range(13):
            source.collect(Student(), 0.2)
            list(source.batches())
    assert torch.equal(one.replay.added, other.replay.added)
    for task in range(K):
        for name in COLUMNS:
            assert torch.equal(ring(one, name, task), ring(other, name, task))


def test_damaged_held_samples_are_refused() -> None:
    source = successful()
    for _ in range(3):
        source.collect(Student(), 0.2)
    state = copy.deepcopy(source.state_dict())
    state["running"]["length"] += 1
    with pytest.raises(ValueError, match="running: expected 4 samples"):
        source.load_state_dict(state)


@pytest.mark.parametrize(
    ("reports", "longest", "capacity", "message"),
    [
        ((True, False), 10, 20, "success, which task-1 does not report"),
        ((True, True), 0, 20, "no limit here: set data.max_episode_steps"),
        ((True, True), 21, 20, "capacity=20 is less than an episode of 21 steps"),
    ],
)
def test_successes_that_cannot_be_told_or_held(
    reports: tuple[bool, ...], longest: int, capacity: int, message: str
) -> None:
    spec = dataclasses.replace(make_spec(num_tasks=2), reports_success=reports)
    with pytest.raises(UserError, match=message):
        check_success(spec, longest, capacity)
