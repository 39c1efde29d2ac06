"""The ring of each task, and sampling from it."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from mtrl.data.replay import Replay, transition_columns
from mtrl.types import Batch
from tests.helpers import make_spec

K = 3


def make_replay(capacity: int, num_tasks: int = K) -> Replay:
    columns = transition_columns(make_spec(num_tasks, obs_dim=1, action_dim=1))
    return Replay(num_tasks, capacity, columns, "cpu")


def add(replay: Replay, task: list[int], numbers: list[float]) -> None:
    """Stores transitions that all carry their number."""
    n = torch.tensor(numbers, dtype=torch.float32)
    columns = {"obs": n[:, None], "action": n[:, None] + 0.25, "reward": n + 0.5, "next_obs": n[:, None] + 0.75}
    replay.add(torch.tensor(task), columns | {"continuation": (n % 2 != 0).float()})


def held(replay: Replay, k: int) -> list[float]:
    """Numbers of the transitions held for a task, in the order of the ring."""
    return replay.state_dict()["rings"]["obs"][k, : int(replay.size[k]), 0].tolist()


def test_the_ring_overwrites_the_oldest() -> None:
    replay = make_replay(capacity=3, num_tasks=1)
    for i in range(5):
        add(replay, [0], [i])
        assert replay.size.tolist() == [min(i + 1, 3)]
    assert held(replay, 0) == [3, 4, 2]


def test_a_ring_that_is_exactly_full_is_full() -> None:
    """The public defect: `pos` was wrapped before it was compared with the capacity, so that `full` never came."""
    replay = make_replay(capacity=4, num_tasks=1)
    for i in range(4):
        add(replay, [0], [i])
    assert replay.size.tolist() == [4]
    assert set(replay.sample(200)["obs"].flatten().tolist()) == {0, 1, 2, 3}
    add(replay, [0], [4])
    assert replay.size.tolist() == [4]
    assert set(replay.sample(200)["obs"].flatten().tolist()) == {1, 2, 3, 4}


def test_tasks_fill_at_their_own_pace() -> None:
    replay = make_replay(capacity=4)
    for i in range(6):
        add(replay, [0, 2], [i, 10 + i])
    add(replay, [1], [99])
    assert replay.size.tolist() == [4, 1, 4]
    assert replay.added.tolist() == [6, 1, 6]
    assert [sorted(held(replay, k)) for k in range(K)] == [[2, 3, 4, 5], [99], [12, 13, 14, 15]]


def test_several_slots_of_a_task_in_one_add() -> None:
    """They keep their order, also across the end of the ring."""
    replay = make_replay(capacity=4)
    add(replay, [1, 0, 1, 1, 0], [0, 1, 2, 3, 4])
    assert held(replay, 1) == [0, 2, 3]
    assert held(replay, 0) == [1, 4]
    add(replay, [1, 1, 2, 1], [5, 6, 7, 8])
    assert held(replay, 1) == [6, 8, 3, 5]
    assert held(replay, 2) == [7]


def test_a_sample_is_one_transition() -> None:
    """All of its fields belong together."""
    replay = make_replay(capacity=5)
    for i in range(7):
        add(replay, [0, 1, 2], [3 * i, 3 * i + 1, 3 * i + 2])
    torch.manual_seed(0)
    batch = Batch(**replay.sample(40))
    number = batch.obs[..., 0]
    assert torch.equal(batch.action[..., 0], number + 0.25)
    assert torch.equal(batch.reward, number + 0.5)
    assert torch.equal(batch.next_obs[..., 0], number + 0.75)
    assert torch.equal(batch.continuation == 0, number % 2 == 0)
    assert torch.equal(batch.task, torch.arange(K)[:, None].expand(K, 40))
    assert torch.equal(number.long() % 3, batch.task)


@pytest.mark.parametrize("full", [False, True])
def test_sampling_is_uniform_within_each_task(full: bool) -> None:
    """Whatever the tasks' sizes: each gives n samples, each transition as often as any other of its task."""
    replay, n = make_replay(capacity=10 if full else 1000), 4000
    for i in range(25):
        add(replay, [0], [i])
        if i < 7:
            add(replay, [1, 2], [i, i])
    torch.manual_seed(0)
    obs = replay.sample(n)["obs"]
    assert obs.shape == (K, n, 1)
    for k in range(K):
        values, counts = obs[k].unique(return_counts=True)
        assert sorted(values.tolist()) == sorted(held(replay, k))
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01
    assert replay.size.tolist() == ([10, 7, 7] if full else [25, 7, 7])


def test_tasks_are_sampled_independently() -> None:
    replay = make_replay(capacity=50)
    for i in range(50):
        add(replay, [0, 1, 2], [i, i, i])
    torch.manual_seed(0)
    obs = replay.sample(500)["obs"][..., 0]
    assert torch.corrcoef(obs)[~torch.eye(K, dtype=torch.bool)].abs().max() < 0.15


def test_a_task_without_transitions_is_an_error_that_names_it() -> None:
    replay = make_replay(capacity=4)
    add(replay, [1], [0])
    with pytest.raises(ValueError, match=r"tasks \[0, 2\]"):
        replay.sample(1)


def test_capacity_is_positive() -> None:
    with pytest.raises(ValueError, match="capacity must be positive"):
        make_replay(capacity=0)


@pytest.mark.parametrize("transitions", [3, 4, 11])
def test_state_round_trip(transitions: int) -> None:
    """Partly full, just full, and wrapped: the same samples, and the same place for the next transition."""
    one, two = make_replay(capacity=4), make_replay(capacity=4)
    for i in range(transitions):
        add(one, [0, 1, 2, 2], [i, 100 + i, 200 + i, 300 + i])
    add(two, [0, 1], [7, 7])
    two.load_state_dict(one.state_dict())
    add(one, [2, 0], [-2, -4])
    add(two, [2, 0], [-2, -4])
    assert torch.equal(one.added, two.added)

    def draw(replay: Replay) -> dict[str, Any]:
        torch.manual_seed(0)
        return replay.sample(30)

    for ours, theirs in zip(draw(one).values(), draw(two).values(), strict=True):
        assert isinstance(ours, Tensor)
        assert torch.equal(ours, theirs)
    assert [held(one, k) for k in range(K)] == [held(two, k) for k in range(K)]


def test_the_saved_state_is_no_larger_than_what_is_held() -> None:
    replay = make_replay(capacity=1000)
    add(replay, [0, 1, 1], [0, 1, 2])
    assert replay.state_dict()["rings"]["obs"].shape == (K, 2, 1)
