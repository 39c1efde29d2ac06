"""`GymVectorEnv` behaves as Gymnasium's own vector environments do, and shows what the `VecEnv` in it does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import (
    DtypeObservation,
    FlattenObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
)

import mtrl.envs
from mtrl.envs.gym_vector import GymVectorEnv
from mtrl.envs.metaworld.catalog import MT50
from mtrl.types import UserError
from tests.counting_device import counting


def make(
    name: str, use_one_hot: bool = False, autoreset_mode: str = "SameStep", tensors: bool = False, **options: Any
) -> GymVectorEnv:
    return GymVectorEnv(mtrl.envs.make(name, **options), use_one_hot, autoreset_mode, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtrl/reach-v3", {"horizon": 5}),
        (
            "mtrl/MT1-v0",
            {"task": "reach-v3", "horizon": 5, "physics": "official", "num_workers": 0, "use_one_hot": True},
        ),
        ("mtrl/ML1-v0", {"task": "reach-v3", "horizon": 5, "split": "test"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(infinity|render|spec)")  # the checker's advice
def test_passes_gymnasiums_checker(name: str, options: dict[str, Any]) -> None:
    """Determinism by seed, data not reused, spaces kept, options accepted."""
    env = gymnasium.make(name, **options)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.reset(seed=3)[1]["goal"] == gymnasium.make(name, **options).reset(seed=3)[1]["goal"]
    for t in range(5):
        *_, truncated, info = env.step(env.action_space.sample())
        assert truncated == (t == 4)
    assert isinstance(info["success"], bool)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(env.action_space.sample())


def test_one_environment_of_several_tasks_is_refused() -> None:
    with pytest.raises(UserError, match=r"mt10 has 10 tasks.*make_vec"):
        gymnasium.make("mtrl/MT10-v0", physics="official")


def test_an_unknown_option_is_named() -> None:
    """TorchRL tries `frameskip` and looks for Python's words in the answer."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        gymnasium.make("mtrl/reach-v3", frameskip=1)
    with pytest.raises(TypeError, match="Did you mean 'physics'"):
        gymnasium.make_vec("mtrl/reach-v3", phisics="official")


def test_without_num_envs_there_is_a_slot_for_each_task() -> None:
    env = gymnasium.make_vec("mtrl/MT10-v0", horizon=5)
    assert env.num_envs == 10
    assert env.reset(seed=0)[1]["task"].tolist() == list(range(10))


def test_autoreset_modes_show_the_same_episodes() -> None:
    """Three episodes of two steps, in the order that Gymnasium documents for each mode."""
    options: dict[str, Any] = {"num_tasks": 2, "num_envs": 4, "episode_length": 2}
    modes = ("SameStep", "NextStep", "Disabled")
    same, following, disabled = envs = [make("counting", autoreset_mode=mode, **options) for mode in modes]
    assert [env.metadata["autoreset_mode"].value for env in envs] == list(modes)
    obs, infos = same.reset(seed=1)
    for other in (following, disabled):
        other_obs, other_infos = other.reset(seed=1)
        assert np.array_equal(other_obs, obs)
    for t in range(6):
        action = np.full((4, 2), 0.1 * t, np.float32)
        obs, reward, terminated, truncated, infos = same.step(action)
        done = terminated | truncated
        assert done.all() == done.any() == (t % 2 == 1)
        for other in (following, disabled):
            other_obs, *outcome, other_infos = other.step(action)
            assert all(np.array_equal(a, b) for a, b in zip(outcome, (reward, terminated, truncated), strict=True))
            assert np.array_equal(other_obs, infos["final_obs"] if done.all() else obs)
            assert np.array_equal(other_infos["goal"], infos["final_info"]["goal"] if done.all() else infos["goal"])
        if done.all():
            first, reward, terminated, truncated, other_infos = following.step(action)  # which is ignored
            assert np.array_equal(first, obs)
            assert not np.stack([reward, terminated, truncated]).any()
            assert np.array_equal(other_infos["goal"], infos["goal"])
            with pytest.raises(gymnasium.error.ResetNeeded):
                disabled.step(action)
            first, other_infos = disabled.reset(options={"reset_mask": np.ones(4, bool)})
            assert np.array_equal(first, obs)
            assert np.array_equal(other_infos["goal"], infos["goal"])


def test_what_slots_that_wait_cannot_do() -> None:
    env = make("counting", autoreset_mode="NextStep", num_tasks=1, num_envs=2, episode_length=2, stagger=1)
    env.reset()
    env.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"1 of 2 slots.*use SameStep"):
        env.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="reset_mask must be true for all"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match="render_mode"):
        env.render()


def test_observation_wrappers_go_on_next_step_autoreset() -> None:
    env: Any = gymnasium.make_vec("mtrl/reach-v3", num_envs=2, autoreset_mode="NextStep", horizon=2)
    env = NormalizeObservation(FlattenObservation(DtypeObservation(env, np.float32)))
    env = TransformObservation(env, lambda obs: 2 * obs, single_observation_space=env.single_observation_space)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3].all() for _ in range(6)]
    assert ends == [False, True, False, False, True, False]


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
    env = make("counting", use_one_hot=True, num_tasks=3, num_envs=3, episode_length=2)
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


# --- Tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("use_one_hot", [False, True])
def test_tensors_are_what_arrays_are(autoreset_mode: str, use_one_hot: bool) -> None:
    """Three episodes with the same actions, as numpy arrays and as tensors; none shares memory with a later one."""
    options: dict[str, Any] = {"num_envs": 6, "seed": 3, "num_tasks": 3, "horizon": 4}
    options |= {"use_one_hot": use_one_hot, "autoreset_mode": autoreset_mode}
    arrays, tensors = make("toy_reach", **options), make("toy_reach", tensors=True, **options)
    generator = np.random.default_rng(0)
    pairs = [(arrays.reset(seed=3), tensors.reset(seed=3))]
    kept = []
    for _ in range(14):
        done = pairs[-1][0][2:4] if len(pairs[-1][0]) == 5 else ()
        if autoreset_mode == "Disabled" and any(ended.all() for ended in done):
            pairs.append((arrays.reset(), tensors.reset()))
            continue
        action = generator.uniform(-1, 1, arrays.action_space.shape).astype(np.float32)
        pairs.append((arrays.step(action), tensors.step(torch.from_numpy(action))))
        kept.append((pairs[-1][1][0], pairs[-1][1][0].clone()))
    for expected, found in pairs:
        assert_same(expected, found)
    assert all(torch.equal(one, copy) for one, copy in kept)
    assert sum("final_obs" in found[-1] for _, found in pairs) == (3 if autoreset_mode == "SameStep" else 0)


def assert_same(expected: Any, found: Any) -> None:
    """Nested arrays and tensors of the same types and values."""
    if isinstance(expected, dict):
        assert list(expected) == list(found)
        assert_same(list(expected.values()), list(found.values()))
    elif isinstance(expected, (tuple, list)):
        for one, two in zip(expected, found, strict=True):
            assert_same(one, two)
    else:
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected, strict=True)


def test_tensors_stay_on_their_device() -> None:
    """The host asks once in a step whether an episode has ended, and for nothing else."""
    with counting() as device:
        env = make("toy_reach", num_envs=4, num_tasks=2, horizon=3, device="meta", tensors=True, use_one_hot=True)
        obs, _ = env.reset()
        action = obs.new_zeros(env.action_space.shape)
        for step in range(7):
            device.take()
            obs, reward, *_, infos = env.step(action)
            assert device.take() == 1, device.waits
            assert ("final_obs" in infos) == (step % 3 == 2)
        assert {obs.device.type, reward.device.type, infos["task"].device.type} == {"meta"}


def test_make_vec_gives_tensors() -> None:
    env = gymnasium.make_vec("mtrl/reach-v3", num_envs=2, tensors=True)
    obs, infos = env.reset(seed=0)
    obs, reward, *_ = env.step(torch.zeros(2, 4))
    assert all(isinstance(values, torch.Tensor) for values in (obs, reward, infos["task"]))
    env.close()
