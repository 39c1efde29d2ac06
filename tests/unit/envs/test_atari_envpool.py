"""Atari on EnvPool: its own steps in the contract's form. Most tests need EnvPool, which is no part of CI."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import mtrl.envs
from mtrl.envs.atari.rows import AleRows, EnvPoolRows
from mtrl.envs.atari.vector import AtariVecEnv
from mtrl.types import UserError

OPTIONS = {
    "num_threads": 1,
    "full_action_space": False,
    "repeat_action_probability": 0.0,
    "noop_max": 0,
    "max_num_frames_per_episode": 4 * 150,
    "frameskip": 4,
    "stack_num": 4,
    "img_height": 84,
    "img_width": 84,
    "reward_clipping": False,
    "use_fire_reset": False,
}


def make(games: Any, num_envs: int, **options: Any) -> AtariVecEnv:
    return mtrl.envs.make("atari", games=games, num_envs=num_envs, seed=3, num_workers=1, backend="envpool", **options)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match=r'backend=envpool needs EnvPool: pip install .* -e "\.\[atari,envpool\]"'):
        make("pong", 1)


@pytest.fixture
def envpool() -> Any:
    return pytest.importorskip("envpool")


def test_ends_are_those_of_envpool(envpool: Any) -> None:
    """Every step beside EnvPool's own next-step autoreset: it needs one step more after an episode's end."""
    horizon = 150
    env = make("breakout", 2, horizon=horizon)
    obs = env.reset(seed=1)
    seeds = mtrl.envs.make("atari", games="breakout", num_envs=2, seed=3)
    seeds.reset(seed=1)
    raw = envpool.make_gymnasium(
        "Breakout-v5",
        num_envs=2,
        env_seed=seeds.goal.tolist(),
        max_episode_steps=horizon,
        repeat_action_probability=0.25,
        use_fire_reset=False,
    )
    first, info = raw.reset()
    assert np.array_equal(obs, first)
    generator, ended = torch.Generator().manual_seed(0), torch.zeros(2)
    lives = info["lives"]
    for t in range(280):
        action = torch.randint(2, (2,), generator=generator) * (t < 150)
        step = env.step(action)
        obs, reward, terminated, truncated, info = raw.step(action.numpy())
        assert np.array_equal(step.final_obs, obs)
        assert np.array_equal(step.reward, reward)
        assert np.array_equal(step.terminated, terminated)
        assert np.array_equal(step.truncated, truncated)
        done = terminated | truncated
        assert np.array_equal(step.life_lost, (info["lives"] < lives) & (info["lives"] > 0) & ~done)
        lives = info["lives"].copy()
        for slot in np.flatnonzero(done):
            again, _, _, _, info = raw.step(np.zeros(1, np.int32), np.array([slot]))
            obs[slot], lives[slot] = again[0], info["lives"][0]
        assert np.array_equal(step.obs, obs)
        ended += torch.from_numpy(done)
    assert (ended > 1).all()
    assert (env.goal == -1).all()


@pytest.mark.parametrize("game", ["pong", "space_invaders"])
def test_it_is_the_game_of_ale(envpool: Any, game: str) -> None:
    """After one no-op, as some of ale-py's starts, the frames are the same once the first has left the stack."""
    ale, pool = AleRows(game, 8, **{**OPTIONS, "noop_max": 2}), EnvPoolRows(game, 1, **OPTIONS)
    assert pool.actions == ale.actions
    ale.reset(np.arange(8), np.ones(8, bool))
    pool.reset(np.array([1]), np.array([True]))
    generator, same, total = np.random.default_rng(0), np.ones(8, bool), 0.0
    for t in range(140):
        action = generator.integers(len(ale.actions))
        ale.send(np.full(8, action))
        pool.send(np.array([action]))
        expected, found = ale.recv(), pool.recv()
        same &= (expected.reward == found.reward) & (expected.lives == found.lives)
        if t >= 3:
            same &= (expected.obs == found.obs).all((1, 2, 3))
        total += abs(found.reward.item())
    assert total > 0
    assert same.any()
    assert not same.all()


def test_a_seed_restarts_the_random_numbers(envpool: Any) -> None:
    env, other = make(["pong", "breakout"], 4), make(["pong", "breakout"], 4)
    assert torch.equal(env.reset(seed=5), other.reset(seed=5))
    action = torch.tensor([0, 1, 0, 1])
    for _ in range(20):
        assert torch.equal(env.step(action).obs, other.step(action).obs)


def test_slots_may_change_their_game(envpool: Any) -> None:
    env = make(["pong", "breakout"], 2)
    env.reset()
    env.assign(torch.tensor([1, 0]))
    step = env.step(torch.tensor([0, 0]), truncate=torch.tensor([True, True]))
    assert env.task.tolist() == [1, 0]
    assert step.truncated.all()
    assert not torch.equal(env.step(torch.tensor([1, 1])).obs, step.obs)


def test_episodes_cannot_be_seeded(envpool: Any) -> None:
    env = make("pong", 1)
    with pytest.raises(ValueError, match=r"EnvPool cannot seed an episode.*: use backend=ale"):
        env.assign(env.task, torch.tensor([3]))
