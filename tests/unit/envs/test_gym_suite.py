"""Lists of gymnasium environments: padding, masks, scaling, success, and lists that do not go together."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import mtrl.envs
from mtrl.types import UserError, VecEnv
from tests.system.success_envs import LENGTH


def make(*ids: str, **options: Any) -> VecEnv:
    return mtrl.envs.make("gym", ids=list(ids), num_workers=0, **options)


class Picture(gymnasium.Env):
    """Shows what it was told: the observation is filled with the last action."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 3, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros((2, 3, 3), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return np.full((2, 3, 3), action, np.uint8), 1.0, False, False, {"is_success": action == 7}


class Lever(gymnasium.Env):
    """The observation is the action."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Box(np.array([-4, 0], np.float32), np.array([2, 8], np.float32))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return action, 0.0, False, False, {}


class Free(Lever):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    for cls, steps in ((Picture, 9), (Lever, None), (Free, None)):
        gymnasium.register(f"{cls.__name__}-v0", cls, max_episode_steps=steps)


def test_observations_and_actions_are_padded_and_masked() -> None:
    env = make("Pendulum-v1", "MountainCarContinuous-v0", "Lever-v0")
    assert env.spec.obs_shape == (3,)
    assert env.spec.action_mask == ((True, False), (True, False), (True, True))
    assert env.spec.horizon is None  # 200, 999, none
    assert not env.spec.has_success
    obs = env.reset()
    assert obs[1, 2] == obs[2, 2] == 0


def test_actions_are_rescaled_to_the_bounds() -> None:
    env = make("Lever-v0", num_envs=3)
    env.reset()
    step = env.step(torch.tensor([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0]]))
    # Bounds -4 to 2 and 0 to 8: the middle of the first is -1, three quarters of the second 6.
    assert step.obs.tolist() == [[-4, 0], [-1, 6], [2, 8]]


def test_discrete_observations_become_one_hot() -> None:
    env = make("FrozenLake-v1", "CartPole-v1")
    assert env.spec.obs_shape == (16,)
    assert env.spec.action_mask == ((True,) * 4, (True, True, False, False))
    assert env.reset()[0].tolist() == [1.0] + [0.0] * 15
    with pytest.raises(ValueError, match=r"\[1\] were given actions \[2\]"):
        env.step(torch.tensor([2, 2]))


def test_pictures_keep_their_shape_and_success_is_reported() -> None:
    env = make("Picture-v0", num_envs=2)
    assert env.spec.obs_shape == (2, 3, 3)
    assert env.spec.obs_dtype == torch.uint8
    assert env.spec.horizon == 9
    assert env.spec.has_success
    env.reset()
    step = env.step(torch.tensor([0, 2]))  # the actions are 5, 6 and 7
    assert step.obs[:, 0, 0, 0].tolist() == [5, 7]
    assert step.success.tolist() == [False, True]


def test_episodes_are_those_of_gymnasium() -> None:
    """The goal is the seed; truncation is the registered time limit."""
    env, reference = make("Pendulum-v1", num_envs=2), gymnasium.make("Pendulum-v1")
    env.assign(torch.zeros(2, dtype=torch.int64), torch.tensor([17, 18]))
    obs = env.reset()
    expected, _ = reference.reset(seed=17)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        assert np.array_equal(obs[0], expected)
        action = torch.rand(2, 1, generator=generator) * 2 - 1
        step = env.step(action)
        expected, reward, terminated, truncated, _ = reference.step(2 * action[0].numpy())
        assert step.reward[0].item() == pytest.approx(reward, rel=1e-5)
        assert (step.terminated[0].item(), step.truncated[0].item()) == (terminated, truncated)
        obs = step.final_obs
    assert truncated


NEVER_ENDS = "Lever-v0"
SUCCESS = {"Silent": False, "Always": True, "AtEnd": True, "OnSuccess": False}
"""Of `tests.system.success_envs`: who shows in a trial episode that success is reported."""


def success_ids(*names: str) -> list[str]:
    return [f"tests.system.success_envs:{name}-v0" for name in names]


@pytest.mark.parametrize(
    "names", [*[(name,) for name in SUCCESS], tuple(SUCCESS), tuple(reversed(SUCCESS)), ("AtEnd", "Silent")]
)
def test_each_task_reports_success_whatever_it_shares_the_list_with(names: tuple[str, ...]) -> None:
    spec = make(*success_ids(*names)).spec
    assert spec.reports_success == tuple(SUCCESS[name] for name in names)
    assert spec.silent_tasks == tuple(success_ids(*[name for name in names if not SUCCESS[name]]))
    assert spec.has_success == any(spec.reports_success)


def test_what_is_said_of_success_needs_no_trial() -> None:
    ids = success_ids("AtEnd", "OnSuccess", "Silent")
    assert make(*ids, reports_success=True).spec.reports_success == (True, True, True)
    assert make(*ids, reports_success=False).spec.reports_success == (False, False, False)
    assert make(*ids, reports_success=[False, True, None]).spec.reports_success == (False, True, False)
    assert make(NEVER_ENDS).spec.reports_success == (False,)
    for wrong in ([True], [True, False, "no"]):
        with pytest.raises(UserError, match="reports_success must be true, false or null, or a list of 3 of these"):
            mtrl.envs.make("gym", ids=ids, num_workers=0, reports_success=wrong)


@pytest.mark.parametrize(("num_workers", "names"), [(0, ("OnSuccess", "AtEnd")), (2, ("OnSuccess", "Always"))])
def test_success_of_a_task_taken_for_silent_is_told_once(
    num_workers: int, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """In a process, for a list of tasks. The episodes of odd seeds succeed, and the trial's seed is 0."""
    ids = success_ids(*names)
    for said in ([False, None], [True, None]):
        assert_succeeds(ids, num_workers, said)
    assert not caplog.messages
    for _ in range(2):
        assert_succeeds(ids, num_workers, None)
    (line,) = caplog.messages
    assert ids[0] in line
    assert "env.reports_success=[true,true]" in line


def assert_succeeds(ids: list[str], num_workers: int, said: list[bool | None] | None) -> None:
    env = mtrl.envs.make("gym", ids=ids, num_envs=4, num_workers=num_workers, reports_success=said)
    env.assign(env.task, torch.tensor([1, 3, 1, 3]))
    env.reset()
    steps = [env.step(torch.zeros(4, 2)) for _ in range(3 * LENGTH)]
    assert all(step.success.all() for step in steps if step.done.any())
    env.close()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["Pendulum-v1", "CartPole-v1"], "all Box .* or all Discrete"),
        (["Pendulum-v1", "Pendulum-v1"], "named once"),
        (["Pendulum-v7"], "Pendulum-v7"),
        (["Pendulom-v1"], "Did you mean 'Pendulum-v1'"),
        (["Free-v0"], "no bounds"),
        ([], "must be a list"),
        ("Pendulum-v1", "must be a list"),
    ],
)
def test_lists_that_do_not_go_together(ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mtrl.envs.make("gym", ids=ids)
