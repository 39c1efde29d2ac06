"""Physics `rollout` gives the trajectories of physics `official`: same tasks, goals and actions, step for step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from torch import Tensor

import mtrl.envs
from mtrl.envs.metaworld import resets, rollout_physics
from mtrl.envs.metaworld.catalog import MT10, MT50
from mtrl.envs.metaworld.goals import Benchmark, official_goals
from mtrl.envs.metaworld.official import official_task
from mtrl.envs.metaworld.suite import Suite
from mtrl.types import UserError, VecEnv

SAMPLE = ("push-v3", "door-open-v3", "pick-place-v3", "stick-push-v3", "window-close-v3")
"""Used together throughout, so that goals are drawn and resets are made once."""
SAMPLE_V1 = ("assembly-v3", "button-press-v3", "bin-picking-v3", "stick-pull-v3")
"""The same for reward v1: constants that only v1 has, the left finger, and what it says of a release and of a stick."""
SEED = 5

scripted = pytest.mark.filterwarnings("ignore:Constant")  # of the scripted policies, whose actions exceed [-1, 1]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MTRL_CACHE", str(folder))
        yield folder


def pair(tasks: Sequence[str], num_envs: int, **options: Any) -> tuple[VecEnv, VecEnv]:
    """Official and rollout."""
    official, rollout = (
        mtrl.envs.make("metaworld", tasks=list(tasks), num_envs=num_envs, seed=SEED, physics=physics, **options)
        for physics in ("official", "rollout")
    )
    return official, rollout


def assert_parity(
    tasks: Sequence[str], goals: Sequence[int], steps: int, horizon: int, reward_version: str
) -> tuple[float, Tensor]:
    """Runs each task with each goal, driven by its scripted policy and noise, and once more at random.

    Returns the largest difference of rewards, and which scripted slots (tasks, goals) succeeded.
    """
    slots = len(goals) * 2
    official, rollout = pair(tasks, len(tasks) * slots, horizon=horizon, reward_version=reward_version)
    goal = torch.tensor([*goals, *goals]).repeat(len(tasks))
    for env in (official, rollout):
        env.assign(env.task, goal)
    obs = official.reset()
    assert torch.equal(rollout.reset(), obs)
    policies = [ENV_POLICY_MAP[tasks[k]]() for k in official.task.tolist()]
    random = (torch.arange(len(policies)) % slots) >= len(goals)
    rng = np.random.default_rng(0)
    worst, succeeded = 0.0, torch.zeros(len(policies), dtype=torch.bool)
    for t in range(steps):
        noisy = [policy.get_action(row) for policy, row in zip(policies, obs.double().numpy(), strict=True)]
        noisy = np.array(noisy) + rng.normal(0, 0.2, (len(policies), 4))
        action = torch.from_numpy(np.where(random[:, None], rng.uniform(-1, 1, noisy.shape), noisy)).float()
        expected, found = official.step(action), rollout.step(action)
        for field in ("obs", "final_obs"):
            difference = (getattr(found, field) - getattr(expected, field)).abs().max()
            assert difference <= 1e-6, f"{field} differs by {difference} at step {t}"
        for field in ("terminated", "truncated", "success", "task"):
            assert torch.equal(getattr(found, field), getattr(expected, field)), f"{field} differs at step {t}"
        difference = (found.reward - expected.reward).abs()
        assert (difference <= 1e-4 + 1e-6 * expected.reward.abs()).all(), f"reward differs by {difference} at step {t}"
        worst = max(worst, float(difference.max()))
        succeeded |= expected.success
        obs = expected.obs
    official.close()
    rollout.close()
    return worst, succeeded.reshape(len(tasks), slots)[:, : len(goals)]


@scripted
@pytest.mark.parametrize(("tasks", "reward_version"), [(SAMPLE, "v2"), (SAMPLE_V1, "v1")])
def test_episodes_are_the_official_ones(tasks: Sequence[str], reward_version: str) -> None:
    assert_parity(tasks, goals=(3, 17), steps=130, horizon=60, reward_version=reward_version)


@scripted
def test_hidden_goals_are_the_official_ones() -> None:
    """ML1: same states and rewards, the goal's place in the observation empty, also where `step` clips."""
    official, rollout = (
        mtrl.envs.make("ml1", task="push-v3", split="test", num_envs=3, seed=SEED, physics=physics, horizon=6)
        for physics in ("official", "rollout")
    )
    obs = official.reset()
    assert torch.equal(rollout.reset(), obs)
    assert (obs[:, 36:] == 0).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(14):
        action = torch.rand(3, 4, generator=generator) * 2 - 1
        expected, found = official.step(action), rollout.step(action)
        assert (expected.final_obs[:, 36:] == 0).all()
        for field in ("obs", "final_obs", "success", "truncated"):
            assert torch.equal(getattr(found, field), getattr(expected, field))
        assert torch.allclose(found.reward, expected.reward, rtol=0, atol=1e-6)


@scripted
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reward_version", ["v1", "v2"])
@pytest.mark.parametrize("task", MT50)
def test_whole_episodes_are_the_official_ones(task: str, reward_version: str) -> None:
    """With the autoreset at 500 steps and the episode that follows."""
    worst, succeeded = assert_parity([task], (0, 11, 22, 33, 44), 520, horizon=500, reward_version=reward_version)
    done = f"{int(succeeded.sum())} of 5 scripted episodes succeeded, officially and here"
    print(f"{task}, reward {reward_version}: rewards differ by at most {worst:.1e}; {done}")


@scripted
def test_tasks_change_at_the_next_episode() -> None:
    """A slot that goes on to a task with another scene is as good as one that began with it."""
    official, rollout = pair(SAMPLE, 5, horizon=7)
    for env in (official, rollout):
        env.reset()
        env.assign(torch.tensor([1, 0, 4, 0, 2]), torch.tensor([4, 5, -1, -1, 6]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        action = torch.rand(5, 4, generator=generator) * 2 - 1
        expected, found = official.step(action), rollout.step(action)
        assert torch.equal(found.task, expected.task)
        assert torch.equal(rollout.goal, official.goal)
        assert torch.allclose(found.obs, expected.obs, rtol=0, atol=1e-6)
        assert torch.allclose(found.reward, expected.reward, rtol=0, atol=1e-4)


def test_unstable_simulation_goes_on_as_officially(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo puts an unstable simulation back to the default pose; nothing becomes NaN, other slots are not touched."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning into a file
    official, rollout = pair(SAMPLE, 5, horizon=20, num_workers=0)
    official.reset(seed=1)
    rollout.reset(seed=1)
    official_slot: Any = official._workers[0]._group._slots[0]  # type: ignore[attr-defined]
    official_slot._env.data.qvel[:] = 1e12
    rollout._simulations[0].data.qvel[:] = 1e12  # type: ignore[attr-defined]
    for _ in range(25):
        action = torch.full((5, 4), 0.3)
        expected, found = official.step(action), rollout.step(action)
        assert found.obs.isfinite().all()
        assert torch.allclose(found.obs, expected.obs, rtol=0, atol=1e-6)
        assert torch.allclose(found.reward, expected.reward, rtol=0, atol=1e-4)


def test_rewards_v1_go_on_from_a_saved_state() -> None:
    """In mid-episode, in another environment, over the end of the episode."""
    one, other = (
        mtrl.envs.make("metaworld", tasks=list(SAMPLE_V1), num_envs=8, seed=SEED, horizon=20, reward_version="v1")
        for _ in range(2)
    )
    one.reset()
    actions = torch.rand(30, 8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions[:12]:
        one.step(action)
    other.load_state_dict(one.state_dict())
    for action in actions[12:]:
        expected, found = one.step(action), other.step(action)
        assert torch.equal(found.reward, expected.reward)
        assert torch.equal(found.success, expected.success)


@scripted
def test_exact_info() -> None:
    """The scripted policy grasps: contacts are looked at where the info needs them."""
    task, goals = SAMPLE.index("pick-place-v3"), official_goals(Benchmark("", SAMPLE), SEED)
    env = rollout_physics.RolloutVecEnv(Suite(SAMPLE, goals, True, "v2", 500), 5, SEED, "cpu", exact_info=True)
    env.assign(torch.full((5,), task), torch.full((5,), 2))
    reference = ALL_V3_ENVIRONMENTS["pick-place-v3"]()
    reference.set_task(official_task("pick-place-v3", goals[task][2]))
    obs, _ = reference.reset()
    env.reset()
    policy, grasps = ENV_POLICY_MAP["pick-place-v3"](), 0
    for _ in range(80):
        action = np.clip(policy.get_action(obs), -1, 1).astype(np.float32)
        obs, _, _, _, info = reference.step(action)
        env.step(torch.from_numpy(action).expand(5, 4))
        for name, value in env.info().items():
            assert value[0].item() == pytest.approx(float(info[name]), abs=1e-6), name
        grasps += info["grasp_success"]
    assert grasps > 5


def test_pool_is_kept_on_disk_and_mended(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = [vectors[:3] for vectors in official_goals(Benchmark("", SAMPLE), SEED)[:1]]
    before = set(cache.iterdir())
    made = resets.reset_pool(("push-v3",), goals)
    (path,) = set(cache.iterdir()) - before
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(resets, "_make", None)  # would raise
        (found,) = resets.reset_pool(("push-v3",), goals)
    assert found.scene == made[0].scene
    for name in ("state", "obs", "obs_low", "obs_high", "mocap_low", "mocap_high", "action_scale"):
        assert np.array_equal(getattr(found, name), getattr(made[0], name))
    for name in ("model", "constants"):
        one, other = getattr(found, name), getattr(made[0], name)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    monkeypatch.setattr(resets, "_make", lambda *_: made[0])
    for damaged in (b"", whole[: len(whole) // 2], whole[:-5000] + bytes(5000)):
        path.write_bytes(damaged)
        (mended,) = resets.reset_pool(("push-v3",), goals)
        assert np.array_equal(mended.state, made[0].state)
        assert path.stat().st_size == len(whole)


def test_it_cannot_render() -> None:
    with pytest.raises(UserError, match="cannot render"):
        mtrl.envs.make("metaworld", tasks=list(SAMPLE), seed=SEED, physics="rollout", render=True)


def test_every_task_of_mt10_is_there() -> None:
    assert set(MT10) <= rollout_physics.TASKS.keys()
