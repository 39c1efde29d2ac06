"""`GymVectorEnv` behaves as Gymnasium's own vector environments do, and shows what the `VecEnv` in it does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics
from numpy.typing import NDArray

import mtrl.envs
from mtrl.envs.gym_vector import GymVectorEnv
from mtrl.envs.metaworld.catalog import MT50


def make(name: str, one_hot: bool = False, **options: Any) -> GymVectorEnv:
    return GymVectorEnv(mtrl.envs.make(name, **options), one_hot)


class OneSlot(gymnasium.Env[NDArray[Any], NDArray[Any]]):
    """A vector environment of one slot as an ordinary environment, for Gymnasium's checker."""

    def __init__(self, env: GymVectorEnv) -> None:
        self.env = env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        obs, infos = self.env.reset(seed=seed, options=options)
        return obs[0], infos

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, infos = self.env.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), infos


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtrl/reach-v3", {"horizon": 5}),
        ("mtrl/MT1-v0", {"task": "reach-v3", "horizon": 5, "physics": "official", "num_workers": 0, "one_hot": True}),
        ("mtrl/ML1-v0", {"task": "reach-v3", "horizon": 5, "split": "test"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(infinity|render|spec)")  # the checker's advice
def test_passes_gymnasiums_checker(name: str, options: dict[str, Any]) -> None:
    """Determinism by seed, data not reused, spaces kept, options accepted."""
    env = gymnasium.make_vec(name, num_envs=1, **options)
    assert isinstance(env.unwrapped, GymVectorEnv)
    check_env(OneSlot(env.unwrapped), skip_render_check=True, skip_close_check=True)
    env.close()


def test_every_benchmark_and_task_has_an_id() -> None:
    benchmarks = {f"mtrl/{name}-v0" for name in ("MT1", "MT10", "MT25", "MT50", "ML1", "ML10", "ML25", "ML45")}
    assert benchmarks | {f"mtrl/{task}" for task in MT50} <= set(gymnasium.registry)


def test_agrees_with_gymnasiums_own_vector_env_until_the_autoreset() -> None:
    """CartPole in two slots: the very same numbers, masks and last observations, to the first end of an episode."""
    ours = make("gym", ids=["CartPole-v1"], num_envs=2, num_workers=0)
    theirs = gymnasium.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    obs, infos = ours.reset(seed=3)
    expected, _ = theirs.reset(seed=infos["goal"].tolist())
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.action_space == theirs.action_space
    assert ours.single_action_space == theirs.single_action_space
    assert np.array_equal(obs, expected)
    done, steps = np.zeros(2, bool), 0
    while not done.any():
        action = np.array([1, steps % 2])
        obs, reward, terminated, truncated, infos = ours.step(action)
        expected, *outcome, expected_infos = theirs.step(action)
        done, steps = terminated | truncated, steps + 1
        for found, wanted in zip((reward, terminated, truncated), outcome, strict=True):
            assert np.array_equal(found, wanted)
        assert np.array_equal(obs[~done], expected[~done])
        assert ours.observation_space.contains(obs)
        assert ("final_obs" in infos) == ("final_obs" in expected_infos) == done.any()
    assert steps < 30
    assert np.array_equal(infos["_final_obs"], expected_infos["_final_obs"])
    assert np.array_equal(infos["_final_info"], done)
    slot = int(done.argmax())
    assert np.array_equal(infos["final_obs"][slot], expected_infos["final_obs"][slot])


def test_what_it_shows_is_what_the_env_does() -> None:
    """Slot i of the counting env ends an episode after 3 + i % 2 steps; even episodes terminate, in success."""
    options: dict[str, Any] = {"num_tasks": 2, "num_envs": 4, "episode_length": 3, "stagger": 1}
    ours, inner = make("counting", **options), mtrl.envs.make("counting", **options)
    obs, infos = ours.reset(seed=1)
    assert np.array_equal(obs, inner.reset(seed=1).numpy())
    for t in range(12):
        assert infos["task"].tolist() == inner.task.tolist()
        assert infos["goal"].tolist() == inner.goal.tolist()
        goal = infos["goal"]
        action = np.full((4, 2), 0.1 * t, np.float32)
        obs, reward, terminated, truncated, infos = ours.step(action)
        step = inner.step(torch.from_numpy(action))
        for found, wanted in (
            (obs, step.obs),
            (reward, step.reward),
            (terminated, step.terminated),
            (truncated, step.truncated),
            (infos["success"], step.success),
        ):
            assert np.array_equal(found, wanted.numpy())
        if step.done.any():
            assert np.array_equal(infos["_final_obs"], step.done.numpy())
            assert np.array_equal(infos["final_obs"], step.final_obs.numpy())
            assert np.array_equal(infos["final_info"]["goal"], goal)  # of the episode that ended
            assert np.array_equal(infos["final_info"]["success"], step.success.numpy())


def test_one_hot_task_is_appended_for_the_task_that_runs() -> None:
    env = make("counting", one_hot=True, num_tasks=3, num_envs=3, episode_length=2)
    assert env.single_observation_space.shape == (8,)
    obs, _ = env.reset()
    assert np.array_equal(obs[:, 5:], np.eye(3))
    env.env.assign(torch.tensor([2, 2, 0]))
    env.step(np.zeros((3, 2)))
    obs, *_, infos = env.step(np.zeros((3, 2)))
    assert np.array_equal(obs[:, 5:], np.eye(3)[[2, 2, 0]])  # of the new episode
    assert np.array_equal(infos["final_obs"][:, 5:], np.eye(3))  # of the old one
    assert env.observation_space.contains(obs)


def test_gymnasiums_wrappers_go_on_top() -> None:
    """Two episodes of 4 steps in each slot; the returns are 1000 k * 4 + 1 + 2 + 3 + 4."""
    inner = make("counting", num_tasks=2, num_envs=2, episode_length=4)
    env = RecordEpisodeStatistics(inner)
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.zeros((2, 2), np.float32))
    assert list(env.return_queue) == [10, 4010, 10, 4010]
    assert list(env.length_queue) == [4] * 4
    normalised = NormalizeReward(make("counting", num_tasks=2, num_envs=2))
    normalised.reset(seed=0)
    rewards = np.stack([normalised.step(np.zeros((2, 2), np.float32))[1] for _ in range(20)])
    assert np.abs(rewards).max() < 20  # 1000 and more without it


def test_wrong_use() -> None:
    env = make("counting", num_tasks=2, num_envs=2)
    env.reset()
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="NaN in the actions of slots"):
        env.step(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(gymnasium.error.NameNotFound):
        gymnasium.make_vec("mtrl/rech-v3")
