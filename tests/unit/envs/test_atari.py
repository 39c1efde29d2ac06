"""Atari: the frames of gymnasium's preprocessing, ale-py's ends of episodes in the contract's form, slots and games."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ale_py import AtariEnv, AtariVectorEnv
from ale_py.roms import get_all_rom_ids
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from torch import Tensor

import mtrl.envs
from mtrl.envs.atari.scores import human_normalised_scores
from mtrl.envs.atari.suite import GAME_SETS, named_games
from mtrl.envs.atari.vector import AtariVecEnv
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.types import UserError


def make(games: Any, num_envs: int, **options: Any) -> AtariVecEnv:
    return mtrl.envs.make("atari", games=games, num_envs=num_envs, seed=3, num_workers=1, **options)


def seeded(env: AtariVecEnv, *seeds: int) -> Tensor:
    """First observations of episodes with these seeds; the following ones are not seeded."""
    env.assign(env.task, torch.tensor(seeds))
    obs = env.reset()
    env.assign(env.task)
    return obs


def ale(game: str, seed: int, **options: Any) -> tuple[AtariVectorEnv, dict[str, np.ndarray]]:
    """ale-py's own vector environment, one row that resets in the step after an episode's end."""
    settings = {"repeat_action_probability": 0.25, "use_fire_reset": False, "reward_clipping": False}
    env = AtariVectorEnv(game, 1, num_threads=1, **{**settings, **options})
    return env, env.reset(seed=seed)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing
# ---------------------------------------------------------------------------------------------------------------------


class Reference(AtariEnv):
    """gymnasium's single environment, with ALE's seed given rather than drawn from it, and no-ops up to a frame."""

    def __init__(self, game: str, age: int) -> None:
        self.age = age
        super().__init__(game, frameskip=1, repeat_action_probability=0.25, full_action_space=True)

    def seed_game(self, seed: int | None = None) -> tuple[int, int]:
        self.ale.setInt("random_seed", seed or 0)
        return 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed, options=options)
        while self.ale.getEpisodeFrameNumber() < self.age:
            self.ale.act(0)
        return self._get_obs(), self._get_info()


@pytest.mark.parametrize("game", ["space_invaders", "air_raid"])  # whose screen is 250 lines high and not 210
def test_frames_are_those_of_gymnasium(game: str) -> None:
    seed = 5
    _, info = ale(game, seed)
    env = make(game, 1, action_set="full")
    reference: gymnasium.Env = AtariPreprocessing(Reference(game, int(info["episode_frame_number"][0])), noop_max=0)
    reference = FrameStackObservation(reference, 4, padding_type="zero")
    obs, generator, total = seeded(env, seed), torch.Generator().manual_seed(0), 0.0
    assert np.array_equal(obs[0], reference.reset(seed=seed)[0])
    for _ in range(100):
        action = torch.randint(18, (1,), generator=generator)
        step = env.step(action)
        expected, reward, terminated, truncated, _ = reference.step(int(action))
        assert np.array_equal(step.final_obs[0], expected)
        assert (step.reward.item(), step.terminated.item()) == (reward, terminated)
        total += float(reward)
        if terminated or truncated:
            break
    assert total > 2, "rewards are not clipped"


def test_noop_starts() -> None:
    """No-ops are drawn with the seed, up to `noop_max - 1`; none of them leave all seeds with one first frame."""
    seeds = range(4)
    several, none = make("enduro", 4, noop_max=30), make("enduro", 4, noop_max=0)
    assert len({obs.numpy().tobytes() for obs in seeded(several, *seeds)}) > 1
    assert len({obs.numpy().tobytes() for obs in seeded(none, *seeds)}) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Episodes
# ---------------------------------------------------------------------------------------------------------------------


def test_ends_are_those_of_ale() -> None:
    """Every step beside ale-py's own next-step autoreset: it needs one step more after an episode's end."""
    horizon, seed = 150, 0
    env = make("breakout", 1, horizon=horizon)
    raw, _ = ale("breakout", seed, max_num_frames_per_episode=4 * horizon, life_loss_info=True)
    seeded(env, seed)
    generator, seen = torch.Generator().manual_seed(0), {"life lost": 0, "terminated": 0, "truncated": 0}
    for t in range(280):
        # Whoever only serves loses the game's five balls in some 125 steps; then the last ball is not served.
        action = torch.randint(2, (1,), generator=generator) * (t < 150)
        step = env.step(action)
        obs, reward, terminated, truncated, info = raw.step(action.numpy())
        game_over = terminated & (info["lives"] == 0)
        assert np.array_equal(step.final_obs, obs)
        assert np.array_equal(step.reward, reward)
        assert np.array_equal(step.terminated, game_over)
        assert np.array_equal(step.truncated, truncated)
        assert np.array_equal(step.life_lost, terminated & ~game_over)
        assert np.array_equal(step.continuation, 1.0 - terminated)
        if step.done:
            obs, *_ = raw.step(action.numpy())
            assert env.goal.item() == -1
        assert np.array_equal(step.obs, obs)
        seen["life lost"] += step.life_lost.item()
        seen["terminated"] += step.terminated.item()
        seen["truncated"] += step.truncated.item()
    assert min(seen.values()) > 0, seen


def test_lives_may_be_ignored() -> None:
    env = make("breakout", 1, zero_discount_on_life_loss=False, noop_max=0)
    env.reset()
    lost = 0
    for t in range(60):
        step = env.step(torch.tensor([t % 2]))
        lost += step.life_lost is not None
        assert step.continuation.item() == 1
    assert not lost


def test_cut_begins_a_seeded_episode() -> None:
    env = make("pong", 2)
    seeded(env, 1, 2)
    step = env.step(torch.tensor([0, 0]), truncate=torch.tensor([True, False]))
    assert step.truncated.tolist() == [True, False]
    assert env.goal[0] not in (1, -1)
    assert env.goal[1] == 2
    assert torch.equal(step.obs[0], seeded(env, int(env.goal[0]), 2)[0])
    assert step.final_obs[0, -2].any(), "the cut episode's frames"
    assert not step.obs[0, -2].any(), "a first frame has none before it"


def test_threads_do_not_matter() -> None:
    found = []
    for num_workers in (1, 4):
        env = mtrl.envs.make("atari", games="pong", num_envs=4, seed=1, num_workers=num_workers, horizon=5)
        env.reset()
        found.append([env.step(torch.full((4,), t % 6)) for t in range(8)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.obs, two.obs)
        assert torch.equal(one.final_obs, two.final_obs)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming
# ---------------------------------------------------------------------------------------------------------------------


def test_a_loaded_state_ends_its_episodes_and_goes_on() -> None:
    env, other = make(["pong", "breakout"], 2), make(["pong", "breakout"], 2)
    env.reset()
    for _ in range(3):
        last = env.step(torch.tensor([1, 1]))
    env.assign(env.task.flip(0), torch.tensor([8, -1]))
    state, task, goal = env.state_dict(), env.task, env.goal
    for again in (other, env):
        again.load_state_dict(state)
        assert torch.equal(again.task, task)
        assert torch.equal(again.goal, goal)
        step = again.step(torch.tensor([0, 0]))
        assert step.reward.tolist() == [0, 0]
        assert step.truncated.all()
        assert not step.terminated.any()
        assert not step.life_lost.any()
        assert torch.equal(step.task, task)
        assert torch.equal(step.final_obs, last.obs)
        assert torch.equal(again.task, task.flip(0)), "the assignment is restored"
        assert again.goal[0] == 8
    assert env.goal[1] == other.goal[1] != -1, "the draws go on too"
    for _ in range(3):
        one, two = env.step(torch.tensor([1, 1])), other.step(torch.tensor([1, 1]))
        assert torch.equal(one.obs, two.obs)
        assert not one.done.any()


def test_a_state_from_before_the_first_reset() -> None:
    env = make("pong", 1)
    state = env.state_dict()
    first = env.reset()
    env.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Call reset"):
        env.step(torch.tensor([0]))
    assert torch.equal(env.reset(), first)
    with pytest.raises(ValueError, match="1 slots"):
        make("pong", 2).load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------------------
# Slots that change their game
# ---------------------------------------------------------------------------------------------------------------------


def test_any_share_of_slots_can_be_in_a_game() -> None:
    """All slots move to Pong, one after the other as their episodes end, and back: rows are made once and kept."""
    env = make(["pong", "breakout"], 4, horizon=4)
    env.reset()
    layout = env.task.clone()
    alone = make("pong", 1, horizon=4)
    for _ in range(2):
        env.assign(torch.zeros_like(layout), torch.arange(4))
        env.step(torch.tensor([2, 2, 1, 1]), truncate=torch.tensor([False, False, True, False]))
        assert env.task.tolist() == [0, 0, 0, 1]
        for _ in range(3):
            step = env.step(torch.tensor([2, 2, 2, 1]))  # the first two episodes' and the last's fourth step
        assert step.truncated.tolist() == [True, True, False, True]
        assert env.task.tolist() == [0, 0, 0, 0]
        for seed in (0, 1, 3):
            assert torch.equal(step.obs[seed], seeded(alone, seed)[0])
        move = env.step(torch.tensor([2, 3, 4, 5]))
        assert torch.equal(move.final_obs[3], alone.step(torch.tensor([5])).obs[0])
        # Slot 2 comes while both rows are in use, and when the others come, two are free for three.
        assert [[len(pool.slot) for pool in pools] for pools in env._pools] == [[2, 1, 1], [2]]
        env.assign(layout)
        env.reset()
        assert torch.equal(env.task, layout)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


class Idle:
    def initial_state(self, num: int) -> Tensor:
        return torch.zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(task), torch.zeros(len(task)), state


def test_evaluation_reports_human_normalised_scores() -> None:
    """Nobody scores in three steps. Carnival has no references, Pong's are -20.7 and 14.6."""
    settings = {"name": "atari", "games": ["pong", "carnival"], "horizon": 3}
    protocol = mtrl.envs.evaluation_protocol(settings, seed=0)
    evaluator = Evaluator(protocol, mtrl.envs.make, seed=0, episodes_per_task=2, max_episode_steps=27_000)
    result = evaluator(Idle())
    evaluator.close()
    assert [(e.task, e.goal, e.length) for e in result.episodes] == [
        (game, seed, 3) for game in ("pong", "carnival") for seed in (0, 1)
    ]
    assert result.scores == human_normalised_scores({"pong": 0.0})
    assert result.scores["human_normalised_median"] == pytest.approx(20.7 / 35.3)
    assert result.protocol["sticky actions"] == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Actions, games, and what a user may get wrong
# ---------------------------------------------------------------------------------------------------------------------

PONG, FREEWAY = {0, 1, 3, 4, 11, 12}, {0, 2, 5}
"""Minimal sets by ALE's numbers: with the button left and right; up and down."""


def test_action_sets() -> None:
    games = ["pong", "freeway"]
    spec = make(games, 2).spec
    union = sorted(PONG | FREEWAY)
    assert spec.action_dim == len(union) == 8
    assert spec.action_mask == tuple(tuple(a in own for a in union) for own in (PONG, FREEWAY))
    masked = make(games, 2, action_set="full_masked")
    assert masked.spec.action_dim == 18
    assert masked.spec.action_mask == tuple(tuple(a in own for a in range(18)) for own in (PONG, FREEWAY))
    assert make(games, 2, action_set="full").spec.action_mask == ((True,) * 18,) * 2
    masked.reset()
    with pytest.raises(ValueError, match=r"\[1\] were given actions \[3\]"):
        masked.step(torch.tensor([3, 3]))


def test_an_action_is_the_same_in_every_set() -> None:
    """Pong's RIGHTFIRE: 11 of 18, and with Freeway's UP and DOWN (2 and 5) seventh of the union."""
    frames = []
    for games, action_set, action in (
        ("pong", "minimal", 4),
        (["pong", "freeway"], "minimal", 6),
        ("pong", "full", 11),
        ("pong", "full_masked", 11),
        ("pong", "full", 0),
    ):
        env = make(games, 1 if games == "pong" else 2, action_set=action_set, repeat_action_probability=0.0)
        env.assign(env.task, torch.zeros_like(env.task))
        env.reset()
        actions = torch.zeros_like(env.task)
        actions[0] = action
        for _ in range(20):
            step = env.step(actions)
        frames.append(step.obs[0])
    *same, idle = frames
    assert all(torch.equal(same[0], other) for other in same)
    assert not torch.equal(same[0], idle)


def test_sets_of_games() -> None:
    sizes = {"atari57": 57, "atari5": 5, "atari6": 6}
    sizes |= {f"atari_mt{i}": n for i, n in enumerate((5, 6, 6, 8, 12, 12, 21), start=1)}
    assert {name: len(named_games(name)) for name in GAME_SETS} == sizes
    assert {game for games in GAME_SETS.values() for game in games} <= set(get_all_rom_ids())
    assert named_games("pong") == named_games(["pong"]) == ("pong",)


def test_render_shows_the_newest_frame() -> None:
    env = make("pong", 1)
    with pytest.raises(RuntimeError, match="Call reset"):
        env.render()
    obs = env.reset()
    image = env.render(0)
    assert image.shape == (336, 336, 3)
    assert np.array_equal(image[2::4, 1::4, 2], obs[0, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": "pongg"}, "Unknown Atari game or set of games 'pongg'. Did you mean 'pong'? Valid: atari57, "),
        ({"games": ["pong", "atari_mt8"]}, "Did you mean 'atari_mt7'"),
        ({"games": ["pong", "Breakout"]}, "Did you mean 'breakout'"),
        ({"games": ["pong", "pong"]}, "Each game may be named once, found pong, pong"),
        ({"games": []}, "at least one game"),
        ({"games": "combat"}, "Unknown Atari game"),
        ({"games": "pong", "action_set": "all"}, "action_set must be one of minimal, full, full_masked, not 'all'"),
        ({"games": "pong", "repeat_action_probability": 1.5}, "from 0 to 1, not 1.5"),
        ({"games": "pong", "noop_max": -1}, "noop_max must not be negative"),
        ({"games": "pong", "horizon": 0}, "horizon must be positive"),
        ({"games": "pong", "num_workers": -1}, "num_workers must not be negative"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        mtrl.envs.make("atari", **options)
    assert "\n" not in str(error.value)


def test_missing_rom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"A ROM cannot be read .*{tmp_path}/pong.bin"):
        make("pong", 1)
    (tmp_path / "pong.bin").write_bytes(b"not a game")
    with pytest.raises(UserError, match="does not match") as error:
        make("pong", 1)
    assert "\n" not in str(error.value)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vector", "rows"):
        monkeypatch.delitem(sys.modules, f"mtrl.envs.atari.{module}")
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    with pytest.raises(UserError, match=r'pip install -c constraints.txt -e "\.\[atari\]"'):
        make("pong", 1)
