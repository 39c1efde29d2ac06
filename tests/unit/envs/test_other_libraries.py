"""The batched Meta-World in other libraries, each used as its own documentation does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import mtrl  # noqa: F401  # registers the ids

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

HORIZON = 5


def make_vec(name: str = "mtrl/MT10-v0", num_envs: int = 20, **options: Any) -> Any:
    return gymnasium.make_vec(name, num_envs=num_envs, horizon=HORIZON, **options)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_torchrl_vectorised(mode: str) -> None:
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(make_vec(autoreset_mode=mode))
    check_env_specs(env)
    rollout = env.rollout(2 * HORIZON, break_when_any_done=False)
    assert rollout.batch_size == (20, 2 * HORIZON)
    done = rollout["next", "truncated"].squeeze(-1)
    assert done.all(0).tolist() == done.any(0).tolist() == ([False] * (HORIZON - 1) + [True]) * 2
    # Within an episode the next observation is the following row's; at its end it is the last one, not the next first.
    followed = (rollout["next", "observation"][:, :-1] == rollout["observation"][:, 1:]).all(-1)
    assert torch.equal(followed, ~done[:, :-1])


def test_torchrl_by_name() -> None:
    from torchrl.envs import GymEnv

    env = GymEnv("mtrl/reach-v3")
    assert env.rollout(3)["next", "reward"].shape == (3, 1)


def test_stable_baselines_ppo_and_sac() -> None:
    import stable_baselines3 as sb3
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from mtrl.envs.stable_baselines import StableBaselinesEnv

    env = StableBaselinesEnv(make_vec(use_one_hot=True, seed=1))
    ppo = sb3.PPO("MlpPolicy", VecNormalize(VecMonitor(env)), n_steps=10, batch_size=100, seed=3, device="cpu")
    ppo.learn(400)
    episodes = list(ppo.ep_info_buffer)
    assert {episode["l"] for episode in episodes} == {HORIZON}
    assert len(ppo.ep_success_buffer) == len(episodes) == 400 // HORIZON
    sac = sb3.SAC("MlpPolicy", env, learning_starts=40, batch_size=20, device="cpu")
    sac.learn(100)
    assert sac.predict(env.reset(), deterministic=True)[0].shape == (20, 4)


def test_stable_baselines_sees_the_ends_of_episodes() -> None:
    """Slot i of the counting env ends after 2 + i % 2 steps; even episodes terminate, in success at their last step."""
    import mtrl.envs
    from mtrl.envs.gym_vector import GymVectorEnv
    from mtrl.envs.stable_baselines import StableBaselinesEnv

    options: dict[str, Any] = {"num_tasks": 1, "num_envs": 2, "episode_length": 2, "stagger": 1}
    env, inner = (mtrl.envs.make("counting", **options) for _ in range(2))
    adapter = StableBaselinesEnv(GymVectorEnv(env))
    assert np.array_equal(adapter.reset(), inner.reset(None).numpy())
    succeeded = np.zeros(2, bool)
    for _ in range(12):
        obs, reward, done, infos = adapter.step(np.zeros((2, 2), np.float32))
        step = inner.step(torch.zeros(2, 2))
        succeeded |= step.success.numpy()
        assert np.array_equal(obs, step.obs.numpy())
        assert np.array_equal(reward, step.reward.numpy())
        assert np.array_equal(done, step.done.numpy())
        for slot, info in enumerate(infos):
            assert ("terminal_observation" in info) == done[slot]
            if done[slot]:
                assert np.array_equal(info["terminal_observation"], step.final_obs[slot].numpy())
                assert info["TimeLimit.truncated"] == bool(step.truncated[slot])
                assert info["is_success"] == succeeded[slot]
                succeeded[slot] = False
    with pytest.raises(ValueError, match="expected autoreset_mode=SameStep"):
        StableBaselinesEnv(GymVectorEnv(inner, autoreset_mode="NextStep"))


def test_skrl_wraps_it() -> None:
    """`docs/examples/skrl_ppo.py` is a whole run."""
    from skrl.envs.wrappers.torch import wrap_env

    env = wrap_env(make_vec())
    obs, _ = env.reset()
    assert obs.shape == (20, 39)
    for _ in range(HORIZON):
        _, reward, _, truncated, infos = env.step(torch.zeros(20, 4))
    assert reward.shape == truncated.shape == (20, 1)
    assert truncated.all()
    assert infos["final_obs"].shape == (20, 39)


def test_the_loop_of_cleanrl() -> None:
    """Its `ppo_continuous_action.py`: Gymnasium's default, next-step autoreset, and RecordEpisodeStatistics."""
    envs = RecordEpisodeStatistics(make_vec(autoreset_mode="NextStep"))
    assert isinstance(envs.single_action_space, gymnasium.spaces.Box)
    next_obs, _ = envs.reset(seed=1)
    returns, collected = [], np.zeros(20)
    for step in range(3 * (HORIZON + 1)):
        action = np.stack([envs.single_action_space.sample() for _ in range(20)])
        next_obs, reward, terminations, truncations, infos = envs.step(action)
        collected += reward
        assert next_obs.shape == (20, 39)
        if "episode" in infos:
            assert np.logical_or(terminations, truncations).all()
            assert step % (HORIZON + 1) == HORIZON - 1
            returns.append(infos["episode"]["r"][infos["_episode"]])
            np.testing.assert_allclose(returns[-1], collected, rtol=1e-5)
            collected[:] = 0
    assert len(returns) == 3
