"""Meta-World through `mtrl.envs.make` is Meta-World: goals, observations, rewards, success of the published package."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import metaworld
import numpy as np
import pytest
import torch
from metaworld.policies import ENV_POLICY_MAP

import mtrl.envs
from mtrl.envs.metaworld import catalog, suite
from mtrl.envs.metaworld import goals as goals_module
from mtrl.envs.metaworld.cache import read_arrays, write_arrays
from mtrl.envs.metaworld.goals import Benchmark, _draw_goals, official_goals
from mtrl.envs.metaworld.official import official_task
from mtrl.types import UserError

TASKS = ["drawer-close-v3", "pick-place-v3"]
SEED = 7

scripted = pytest.mark.filterwarnings("ignore:Constant")  # of the scripted policies, whose actions exceed [-1, 1]


@pytest.fixture(scope="module")
def official() -> metaworld.MT10:
    return metaworld.MT10(seed=SEED)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Goals are drawn for these tests, never found."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MTRL_CACHE", str(folder))
        yield folder


def test_lists_of_tasks_are_the_official_ones() -> None:
    for name, tasks in {"MT10": catalog.MT10, "MT25": catalog.MT25, "MT50": catalog.MT50}.items():
        assert tasks == catalog.TASKS_OF[name]["train"] == tuple(getattr(metaworld._env_dict, f"{name}_V3"))


def test_lists_of_meta_learning_tasks_are_the_official_ones() -> None:
    for name in ("ML10", "ML25", "ML45"):
        for split, tasks in getattr(metaworld._env_dict, f"{name}_V3").items():
            assert catalog.TASKS_OF[name][split] == tuple(tasks)


@pytest.mark.parametrize("split", ["train", "test"])
def test_goals_of_meta_learning_are_the_official_ones(split: Literal["train", "test"]) -> None:
    official = metaworld.ML1("push-v3", seed=SEED)
    tasks = official.train_tasks if split == "train" else official.test_tasks
    (goals,) = official_goals(Benchmark("ML1", ("push-v3",), split), SEED)
    assert len(goals) == len(tasks) == 50
    for task, vector in zip(tasks, goals, strict=True):
        ours = official_task("push-v3", vector, goal_visible=False)
        assert sorted(ours.data) == sorted(task.data)  # the same entries, in another order


def test_goals_are_the_official_ones(official: metaworld.MT10) -> None:
    """Running `set_task` with our vector gives what it gives with the official task."""
    goals = official_goals(Benchmark("MT10", catalog.MT10), SEED)
    assert [len(vectors) for vectors in goals] == [50] * 10
    for i, task in enumerate(official.train_tasks):
        ours = official_task(task.env_name, goals[i // 50][i % 50])
        assert ours.env_name == task.env_name == catalog.MT10[i // 50]
        assert sorted(ours.data) == sorted(task.data)  # the same entries, in another order


def test_goals_of_every_task_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """One goal of each of the 50, ours drawn without physics."""
    monkeypatch.setattr(metaworld, "_N_GOALS", 1)
    goals = _draw_goals(Benchmark("MT50", catalog.MT50), SEED, 1)
    for task, (vector,) in zip(metaworld.MT50(seed=SEED).train_tasks, goals, strict=True):
        assert sorted(official_task(task.env_name, vector).data) == sorted(task.data)


@pytest.mark.parametrize("reward_version", ["v1", "v2"])
def test_episodes_are_those_of_the_published_env(official: metaworld.MT10, reward_version: str) -> None:
    """Two episodes per task, with a change of goal between them, against the class driven by hand."""
    tasks, horizon, goals = ["push-v3", "door-open-v3", "pick-place-v3"], 60, (11, 12)
    vectors = {name: [task for task in official.train_tasks if task.env_name == name] for name in tasks}
    env = mtrl.envs.make(
        "mt10",
        physics="official",
        seed=SEED,
        reward_version=reward_version,
        horizon=horizon,
        num_workers=2,
        num_envs=10,
    )
    task = torch.tensor([catalog.MT10.index(tasks[i % 3]) for i in range(10)])
    env.assign(task, torch.full((10,), goals[0]))
    obs = env.reset()
    env.assign(task, torch.full((10,), goals[1]))
    references = []
    for name in tasks:
        reference = official.train_classes[name](reward_function_version=reward_version)
        reference.set_task(vectors[name][goals[0]])
        references.append(reference)
        first, _ = reference.reset()
        assert np.array_equal(obs[tasks.index(name)], first.astype(np.float32))
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (2 * horizon, 10, 4)).astype(np.float32)
    for t, action in enumerate(actions):
        step = env.step(torch.from_numpy(action))
        for i, reference in enumerate(references):
            expected, reward, _, _, info = reference.step(action[i].clip(-1, 1))
            assert np.array_equal(step.final_obs[i], expected.astype(np.float32))
            assert step.reward[i].item() == np.float32(reward)
            assert step.success[i].item() == (info["success"] > 0)
            if t == horizon - 1:
                reference.set_task(vectors[tasks[i]][goals[1]])
                first, _ = reference.reset()
                assert np.array_equal(step.obs[i], first.astype(np.float32))
        assert step.truncated.all() == ((t + 1) % horizon == 0)
        assert not step.terminated.any()
    env.close()


@scripted
@pytest.mark.parametrize("task", ["drawer-close-v3", "reach-v3"])
def test_scripted_policy_succeeds_and_500_steps_are_an_episode(task: str) -> None:
    env = mtrl.envs.make("mt1", task=task, physics="official", num_workers=0, seed=SEED)
    policy = ENV_POLICY_MAP[task]()
    obs, succeeded = env.reset(), False
    for t in range(501):
        action = torch.from_numpy(policy.get_action(obs[0].double().numpy())).float()[None]
        step = env.step(action)
        obs, succeeded = step.obs, succeeded or bool(step.success)
        assert bool(step.truncated) == (t == 499)
    assert succeeded


@scripted
def test_saved_in_mid_episode_by_one_process_goes_on_in_another() -> None:
    """Contacts included: the scripted policy is grasping when the state is saved."""
    env = mtrl.envs.make("metaworld", tasks=TASKS, physics="official", num_envs=4, seed=SEED, horizon=90, num_workers=2)
    policy = ENV_POLICY_MAP["pick-place-v3"]()

    def action(obs: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.from_numpy(policy.get_action(row.double().numpy())).float() for row in obs])

    obs = env.reset()
    for _ in range(60):
        obs = env.step(action(obs)).obs
    state, start = env.state_dict(), obs
    expected = []
    for _ in range(60):
        expected.append(env.step(action(obs)))
        obs = expected[-1].obs
    env.close()

    env = mtrl.envs.make(
        "metaworld",
        tasks=TASKS,
        physics="official",
        num_envs=4,
        seed=SEED + 1,
        goal_seed=SEED,
        horizon=90,
        num_workers=0,
    )
    env.load_state_dict(state)
    obs = start
    for step in expected:
        found = env.step(action(obs))
        for field in vars(step).keys() - {"life_lost"}:
            assert torch.equal(getattr(found, field), getattr(step, field)), field
        obs = found.obs
    env.close()


def test_goal_seed_decides_the_goals_and_seed_their_order() -> None:
    def first(**options: int) -> tuple[torch.Tensor, torch.Tensor]:
        env = mtrl.envs.make(
            "mt1", task="reach-v3", physics="official", num_envs=3, num_workers=0, horizon=1, **options
        )
        env.reset()
        drawn = env.goal
        env.assign(env.task, torch.arange(3))
        obs = env.reset()
        env.close()
        return drawn, obs

    drawn, obs = first(seed=1)
    same_goals, same_obs = first(seed=2, goal_seed=1)
    _, other_obs = first(seed=2)
    assert torch.equal(obs, same_obs)
    assert not torch.equal(drawn, same_goals)
    assert not torch.equal(obs, other_obs)


def test_goals_are_kept_on_disk(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for path in cache.iterdir():
        path.unlink()
    drawn = official_goals(Benchmark("", ("reach-v3",)), 3)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(goals_module, "_draw_goals", None)  # would raise
        assert np.array_equal(official_goals(Benchmark("", ("reach-v3",)), 3)[0], drawn[0])
    monkeypatch.setattr(goals_module, "_draw_goals", lambda *_: drawn)
    flipped = bytes(byte ^ (i == len(whole) // 2) for i, byte in enumerate(whole))
    for damaged in (b"", whole[: len(whole) // 2], flipped, b"nonsense"):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(official_goals(Benchmark("", ("reach-v3",)), 3)[0], drawn[0])
        assert "damaged" in caplog.text
        assert read_arrays(path) is not None  # mended
    assert [other.name for other in cache.iterdir()] == [path.name]  # nothing temporary is left


def test_goals_without_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(goals_module, "_draw_goals", lambda *_: (np.zeros((50, 3)),))
    with caplog.at_level(logging.WARNING):
        assert official_goals(Benchmark("MT1", ("reach-v3",)), 0)[0].shape == (50, 3)
    assert "could not be cached" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mt1", {"task": "reach-v2"}, "Did you mean 'reach-v3'"),
        ("mt1", {}, "needs a value for: task"),
        ("mt10", {"physics": "oficial"}, "Did you mean 'official'"),
        ("mt10", {"horizon": 501}, "horizon must be from 1 to 500"),
        ("mt10", {"horizon": 0}, "horizon must be from 1 to 500"),
        ("mt10", {"reward_version": "v3"}, "reward_version"),
        ("mt10", {"seed": -1}, "seed must be from 0"),
        ("metaworld", {"tasks": []}, "must be a list"),
        ("metaworld", {"tasks": "reach-v3"}, "must be a list"),
        ("metaworld", {"tasks": ["reach-v3", "reach-v3"]}, "may be named once"),
        ("metaworld", {"tasks": ["reach-v3", "rech-v3"]}, "Did you mean 'reach-v3'"),
    ],
)
def test_wrong_values(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mtrl.envs.make(name, **options)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise suite.PackageNotFoundError(name)

    monkeypatch.setattr(suite, "version", missing)
    with pytest.raises(UserError, match=r"pip install metaworld==3\.1\.1"):
        mtrl.envs.make("mt10")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have homes")
def test_goals_without_a_home(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In a container that runs as a user without $HOME and without an entry in its passwd."""
    monkeypatch.delenv("MTRL_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr(goals_module, "_draw_goals", lambda *_: (np.zeros((50, 3)),))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            official_goals(Benchmark("", ("reach-v3",)), 5)
    (record,) = caplog.records
    assert "No home folder" in record.getMessage()


def test_others_may_read_the_cache(tmp_path: Path) -> None:
    """As far as the umask lets them: a group may share one."""
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(3)})
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
