"""Which goal runs when, and the counting and toy problems themselves."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

import mtrl.envs
from mtrl.envs.base import Assignments
from mtrl.system.cores import available_cores
from mtrl.types import UserError

CPU = torch.device("cpu")


def test_cores_that_a_scheduler_leaves_us(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert available_cores(tmp_path) == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/user/job", {"user/job/cpu.max": "max 100000", "user/cpu.max": "300000 100000"}, 3),
        ("0::/user/job", {"user/job/cpu.max": "400000 100000", "cpu.max": "800000 100000"}, 4),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, 2),  # in a container
        ("0::/../../other", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/docker/1", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:memory:/\n1:name=systemd:/", {"cpu.max": "200000 100000"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_cores_that_a_container_leaves_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], expected: int
) -> None:
    """Of 64: a quota in versions 1 and 2 of control groups is a share of each period; any group above counts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    for name, content in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{key}": files[key] for key in files}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cores(tmp_path) == expected


def test_goals_are_drawn_uniformly() -> None:
    assignments = Assignments(100, 2, 5, seed=0, device=CPU)
    counts = torch.zeros(5)
    for _ in range(100):
        counts += torch.bincount(assignments.goal, minlength=5)
        assignments.advance(torch.ones(100, dtype=torch.bool))
    assert (counts - 2000).abs().max() < 6 * math.sqrt(10_000 * 0.2 * 0.8)


def test_a_goal_stays_until_its_episode_begins() -> None:
    assignments = Assignments(4, 2, 1000, seed=0, device=CPU)
    before = assignments.goal
    assignments.advance(torch.tensor([False, True, False, False]))
    assert (assignments.goal != before).tolist() == [False, True, False, False]


def test_assigning_draws_nothing() -> None:
    """How often a task sampler assigns does not change which goals come up."""
    one, two = (Assignments(4, 2, 1000, seed=0, device=CPU) for _ in range(2))
    one.assign(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 3, 4]))
    one.assign(torch.tensor([0, 0, 1, 1]), None)
    assert torch.equal(one.goal, two.goal)


def test_counting_tells_episodes_apart() -> None:
    env = mtrl.envs.make("counting", num_envs=3, episode_length=2, terminate_every=2)
    assert env.reset()[:, 2:].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]  # episode, step, slot
    action = torch.zeros(3, 2)
    step = env.step(action)
    assert step.reward.tolist() == [1, 1001, 2001]
    assert not step.done.any()
    step = env.step(action)
    assert step.terminated.all()  # episode 0
    assert step.success.all()
    assert step.final_obs[0, 2:].tolist() == [0, 2, 0]
    assert step.obs[0, 2:].tolist() == [1, 0, 0]
    env.step(action)
    step = env.step(action)
    assert step.truncated.all()  # episode 1
    assert not step.success.any()
    assert env.reset()[:, 2].tolist() == [3, 3, 3]


def test_counting_staggered() -> None:
    env = mtrl.envs.make("counting", num_envs=3, episode_length=2, stagger=2, terminate_every=0)
    env.reset()
    done = [env.step(torch.zeros(3, 2)).truncated.tolist() for _ in range(4)]
    assert done == [[False, False, False], [True, False, False], [False, True, False], [True, False, True]]


@pytest.mark.parametrize("name", ["toy_reach", "toy_scale"])
def test_toy_reach_is_solved_by_going_there(name: str) -> None:
    env = mtrl.envs.make(name, num_envs=200)
    obs, succeeded = env.reset(), torch.zeros(200, dtype=torch.bool)
    angle = env.task * math.pi / 2
    target = 0.7 * torch.stack((angle.cos(), angle.sin()), dim=1)
    for t in range(25):
        step = env.step((target - obs) / 0.2)
        obs, succeeded = step.obs, succeeded | step.success
        assert step.truncated.all() == (t == 24)
    assert succeeded.all()


def test_toy_reach_hand_arithmetic() -> None:
    env = mtrl.envs.make("toy_scale", num_envs=4)
    start = env.reset()
    step = env.step(torch.zeros(4, 2))
    assert torch.equal(step.obs, start)
    # Task 0: target (0.7, 0), rewards times 10^-1.5. Task 3: target (0, -0.7), rewards times 10^1.5.
    assert step.reward[0] == pytest.approx(-math.dist(start[0], (0.7, 0.0)) * 10**-1.5)
    assert step.reward[3] == pytest.approx(-math.dist(start[3], (0.0, -0.7)) * 10**1.5)


def test_toy_grid_is_solved_by_walking_to_the_corner() -> None:
    env = mtrl.envs.make("toy_grid", num_envs=40)
    env.reset()
    vertical, horizontal = torch.where(env.task < 2, 0, 1), torch.where(env.task % 2 == 0, 2, 3)
    arrived = torch.zeros(40, dtype=torch.bool)
    for t in range(8):
        step = env.step(vertical if t < 4 else horizontal)
        assert torch.equal(step.success, step.terminated)
        assert torch.equal(step.reward, step.success.float())
        arrived |= step.success
    assert arrived.all()


def test_toy_grid_truncates() -> None:
    env = mtrl.envs.make("toy_grid", num_envs=4, horizon=3)
    env.reset()
    env.assign(env.task, torch.full((4,), 9))  # the middle of the grid: (2, 1)
    env.reset()
    for t in range(3):
        step = env.step(torch.full((4,), t % 2))  # up and down
        assert step.truncated.tolist() == [t == 2] * 4
        assert not step.terminated.any()


def test_wrong_values() -> None:
    with pytest.raises(UserError, match="episode_length must be positive"):
        mtrl.envs.make("counting", episode_length=0)
    with pytest.raises(UserError, match="size must be at least 3"):
        mtrl.envs.make("toy_grid", size=2)


@pytest.mark.parametrize(("name", "action"), [("toy_grid", torch.zeros(4)), ("toy_reach", torch.zeros(4, 2).long())])
def test_action_of_the_wrong_type(name: str, action: torch.Tensor) -> None:
    env = mtrl.envs.make(name)
    env.reset()
    with pytest.raises(ValueError, match="must be"):
        env.step(action)
