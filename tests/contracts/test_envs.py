"""Every registered environment keeps the `VecEnv` contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrl.envs
from mtrl import registry
from mtrl.types import State, Step, UserError, VecEnv

METAWORLD: dict[str, Any] = {"horizon": 4, "num_workers": 0, "physics": "official"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "counting": ("counting", {"stagger": 1}),
    "counting-discrete": ("counting", {"action_kind": "discrete", "num_tasks": 2}),
    "toy_reach": ("toy_reach", {"horizon": 5}),
    "toy_scale": ("toy_scale", {"horizon": 5}),
    "toy_grid": ("toy_grid", {"horizon": 5}),
    "gym-continuous": ("gym", {"ids": ["Pendulum-v1", "MountainCarContinuous-v0"], "num_workers": 2}),
    "gym-discrete": ("gym", {"ids": ["CartPole-v1", "FrozenLake-v1"], "num_workers": 0}),
    "gym-success": (
        "gym",
        {"ids": [f"tests.system.success_envs:{i}-v0" for i in ("AtEnd", "Silent")], "num_workers": 2},
    ),
    "atari": ("atari", {"games": ["pong", "breakout"], "horizon": 5}),
    "mt1": ("mt1", {"task": "reach-v3", **METAWORLD}),
    "metaworld": ("metaworld", {"tasks": ["reach-v3", "push-v3"], **METAWORLD, "num_workers": 2}),
    "rollout": ("metaworld", {"tasks": ["reach-v3", "push-v3"], **METAWORLD, "physics": "rollout"}),
    "mt10": ("mt10", METAWORLD),
    "mt25": ("mt25", METAWORLD),
    "mt50": ("mt50", METAWORLD),
    "ml1": ("ml1", {"task": "push-v3", "split": "test", **METAWORLD, "physics": "rollout"}),
    "ml10": ("ml10", METAWORLD),
    "ml25": ("ml25", METAWORLD),
    "ml45": ("ml45", METAWORLD),
}
BIG = ("mt10", "mt25", "mt50", "ml10", "ml25", "ml45")
"""Built of the same parts as `metaworld`: too slow to run through everything."""
SMALL = [name for name in CASES if name not in BIG]


@pytest.fixture(params=SMALL)
def env(request: pytest.FixtureRequest) -> Iterator[VecEnv]:
    env = make(request.param)
    yield env
    env.close()


def make(case: str, **options: Any) -> VecEnv:
    """The environment with two slots per task."""
    name, settings = CASES[case]
    num_tasks = {"counting": 3, "mt1": 1, "ml1": 1}.get(case, 4 if name.startswith("toy") else 2)
    return mtrl.envs.make(name, num_envs=2 * num_tasks, seed=3, **{**settings, **options})


def random_action(env: VecEnv, generator: torch.Generator) -> Tensor:
    """Uniform over the actions that exist in each slot's task."""
    if env.spec.action_kind == "continuous":
        return torch.rand(env.num_envs, env.spec.action_dim, generator=generator) * 2 - 1
    mask = torch.tensor(env.spec.action_mask)[env.task].float()
    return torch.multinomial(mask, 1, generator=generator).squeeze(1)


def run(env: VecEnv, steps: int, seed: int = 0) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, generator)) for _ in range(steps)]


def assert_same(one: list[Step], two: list[Step]) -> None:
    for t, (a, b) in enumerate(zip(one, two, strict=True)):
        for field in vars(a):
            one, two = getattr(a, field), getattr(b, field)
            assert one is two is None or torch.equal(one, two), f"{field} differs at step {t}"


def first_done(env: VecEnv, most: int = 600) -> tuple[Step, Tensor]:
    """Steps until a slot is done; returns that step and which slots are."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(most):
        step = env.step(random_action(env, generator))
        if step.done.any():
            return step, step.done
    raise AssertionError(f"no episode ended in {most} steps")


def test_every_registered_env_is_here() -> None:
    mtrl.envs.register_all()
    assert {name for name, _ in CASES.values()} == set(registry.names("env"))


def test_shapes_and_types(env: VecEnv) -> None:
    spec, B = env.spec, env.num_envs
    assert 2 * spec.num_tasks == B
    assert env.task.bincount(minlength=spec.num_tasks).tolist() == [2] * spec.num_tasks
    obs = env.reset()
    for step in run(env, 3):
        assert obs.shape == step.obs.shape == step.final_obs.shape == (B, *spec.obs_shape)
        assert obs.dtype == step.obs.dtype == step.final_obs.dtype == spec.obs_dtype
        assert step.reward.shape == (B,)
        assert step.reward.dtype == torch.float32
        for flag in (step.terminated, step.truncated, step.success, step.continuation.bool()):
            assert flag.shape == (B,)
            assert flag.dtype == torch.bool
        assert not (step.continuation.bool() & step.terminated).any()
        assert step.task.shape == env.task.shape == env.goal.shape == (B,)
        assert step.task.dtype == env.task.dtype == env.goal.dtype == torch.int64
    assert len(spec.action_mask) == spec.num_tasks
    assert all(len(row) == spec.action_dim and any(row) for row in spec.action_mask)
    assert spec.task_descriptions is None or len(spec.task_descriptions) == spec.num_tasks
    assert len(spec.reports_success) == spec.num_tasks
    assert spec.comparable_returns or spec.num_tasks > 1


def test_success_is_where_the_spec_says(env: VecEnv) -> None:
    """No success where none is reported, and some in the tasks in which random actions must come to it."""
    env.reset()
    succeeded = torch.zeros(env.spec.num_tasks, dtype=torch.bool)
    for step in run(env, 60):
        succeeded |= torch.bincount(step.task[step.success], minlength=env.spec.num_tasks) > 0
    reports = torch.tensor(env.spec.reports_success)
    assert not (succeeded & ~reports).any()
    if env.spec.task_names[0].startswith(("count", "tests.system.success_envs")):
        assert torch.equal(succeeded, reports)


@pytest.mark.parametrize(
    ("case", "options", "comparable"),
    [
        ("metaworld", {}, True),
        ("metaworld", {"reward_version": "v1"}, False),
        ("mt1", {"reward_version": "v1"}, True),
        ("atari", {}, False),
        ("atari", {"games": "pong"}, True),
        ("gym-continuous", {}, False),
        ("gym-continuous", {"ids": ["Pendulum-v1"]}, True),
        ("toy_reach", {}, True),
        ("toy_scale", {}, False),
    ],
)
def test_returns_are_comparable_where_rewards_mean_the_same(
    case: str, options: dict[str, Any], comparable: bool
) -> None:
    env = make(case, **options)
    assert env.spec.comparable_returns == comparable
    env.close()


def test_autoreset_in_the_same_step(env: VecEnv) -> None:
    env.reset()
    step, done = first_done(env)
    assert torch.equal(step.obs[~done], step.final_obs[~done])
    assert not torch.equal(step.obs[done], step.final_obs[done])
    assert not (step.terminated & step.truncated).any()


def test_first_observation_after_autoreset_is_that_of_a_reset(env: VecEnv) -> None:
    """A slot's new episode depends on its task and goal, not on what ran before."""
    if env.spec.task_names[0].startswith("count"):
        pytest.skip("tells episodes apart on purpose")
    env.reset()
    if env.spec.task_names[0] == "pong":
        env.assign(env.task, torch.arange(env.num_envs))  # only then is Atari's next episode seeded
    step, done = first_done(env)
    task, goal = env.task.clone(), env.goal.clone()
    env.assign(task, goal)
    obs = env.reset()
    assert torch.equal(obs[done], step.obs[done])


def test_cut_truncates_these_slots_and_no_others(env: VecEnv) -> None:
    env.reset()
    action = random_action(env, torch.Generator().manual_seed(0))
    cut = torch.arange(env.num_envs) == 1
    step = env.step(action, truncate=cut)
    assert torch.equal(step.truncated, cut & ~step.terminated)
    assert torch.equal(step.obs[~step.done], step.final_obs[~step.done])
    assert not torch.equal(step.obs[1], step.final_obs[1])
    with pytest.raises(ValueError, match="truncate must be bool"):
        env.step(action, truncate=torch.ones(env.num_envs))


def test_assign_takes_effect_at_the_next_episode(env: VecEnv) -> None:
    env.reset()
    before = env.task.clone()
    wanted = before.flip(0)
    goal = torch.arange(env.num_envs) % 5
    env.assign(wanted, goal)
    assert torch.equal(env.task, before)
    step, done = first_done(env)
    assert torch.equal(step.task, before)
    assert torch.equal(env.task, torch.where(done, wanted, before))
    assert torch.equal(env.goal[done], goal[done])
    env.reset()
    assert torch.equal(env.task, wanted)
    assert torch.equal(env.goal, goal)
    env.reset()  # an assigned goal stays
    assert torch.equal(env.goal, goal)
    env.assign(before)  # and goes with the next assignment
    env.reset()
    goals = env.goal
    env.reset()
    assert not torch.equal(env.goal, goals)


def test_seed_decides(env: VecEnv) -> None:
    def goals(seed: int) -> list[Tensor]:
        env.reset(seed)
        return [env.goal] + [(env.reset(), env.goal)[1] for _ in range(3)]

    first, second, other = goals(1), goals(1), goals(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("case", SMALL)
def test_same_seed_same_trajectory_whatever_the_workers(case: str) -> None:
    steps = []
    options = [{}, {}] if not {"num_workers"} & CASES[case][1].keys() else [{"num_workers": 0}, {"num_workers": 3}]
    for option in options:
        env = make(case, **option)
        env.reset()
        steps.append(run(env, 12))
        env.close()
    assert_same(*steps)


@pytest.mark.parametrize("case", [case for case in SMALL if case != "atari"])  # which begins new episodes
def test_saved_in_mid_episode_goes_on_bit_for_bit(case: str) -> None:
    env = make(case)
    env.reset()
    env.assign(env.task.flip(0), torch.where(torch.arange(env.num_envs) % 2 == 0, 1, -1))
    run(env, 6)
    state = plain(env.state_dict())
    obs_task, obs_goal = env.task.clone(), env.goal.clone()
    expected = run(env, 12, seed=1)
    env.close()

    other = make(case)
    other.reset(seed=99)
    run(other, 2)
    other.load_state_dict(state)
    assert torch.equal(other.task, obs_task)
    assert torch.equal(other.goal, obs_goal)
    assert_same(run(other, 12, seed=1), expected)
    other.close()


def plain(state: State) -> State:
    """The state after a round trip through what checkpoints hold: tensors and JSON scalars."""
    for key, value in state.items():
        assert isinstance(key, str)
        assert isinstance(value, (Tensor, bool, int, float, str, dict))
        if isinstance(value, dict):
            plain(value)
    return state


def test_state_is_a_copy(env: VecEnv) -> None:
    env.reset()
    run(env, 1)

    def flat(state: State) -> list[Tensor]:
        return [leaf for v in state.values() for leaf in (flat(v) if isinstance(v, dict) else [torch.as_tensor(v)])]

    state = env.state_dict()
    before = [leaf.clone() for leaf in flat(state)]
    run(env, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(state), strict=True))


def test_nan_action_names_the_slot(env: VecEnv) -> None:
    env.reset()
    if env.spec.action_kind == "discrete":
        with pytest.raises(ValueError, match=r"\[1\].*do not exist"):
            env.step(torch.tensor([0, 99] + [0] * (env.num_envs - 2)))
        return
    action = torch.zeros(env.num_envs, env.spec.action_dim)
    action[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN in the actions of slots \[1\]"):
        env.step(action)


def test_wrong_action_shape(env: VecEnv) -> None:
    env.reset()
    with pytest.raises(ValueError, match="shape"):
        env.step(torch.zeros(env.num_envs + 1, env.spec.action_dim))


def test_continuous_actions_are_clipped() -> None:
    for case in ("toy_reach", "metaworld", "rollout", "gym-continuous"):
        results = []
        for size in (1.0, 7.0):
            env = make(case)
            env.reset()
            results.append([env.step(torch.full((env.num_envs, env.spec.action_dim), size)) for _ in range(2)])
            env.close()
        assert_same(*results)


def test_bad_assignments(env: VecEnv) -> None:
    with pytest.raises(ValueError, match="task must be from 0"):
        env.assign(torch.full((env.num_envs,), env.spec.num_tasks))
    with pytest.raises(ValueError, match="shape"):
        env.assign(torch.zeros(env.num_envs + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="goal must be from -1"):
        env.assign(env.task, torch.full((env.num_envs,), -2))


def test_closed_twice_and_then_stepped(env: VecEnv) -> None:
    env.reset()
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(env, 1)


def test_step_before_reset(env: VecEnv) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        run(env, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_envs", [0, -10, 1_000_001])
def test_bad_num_envs(case: str, num_envs: int) -> None:
    name, settings = CASES[case]
    if case in ("mt1", "ml1") and num_envs > 0:
        pytest.skip("every number is a multiple of one task")
    with pytest.raises(UserError, match=r"multiple of the number of tasks .* use for example"):
        mtrl.envs.make(name, num_envs=num_envs, **settings)


@pytest.mark.parametrize("case", CASES)
def test_unknown_option(case: str) -> None:
    name, settings = CASES[case]
    with pytest.raises(UserError, match="num_workerz"):
        mtrl.envs.make(name, **settings, num_workerz=1)


def test_seed_is_an_integer() -> None:
    """The same words from all of them, whatever they do with it. In a process whose annotations are not checked."""
    code = f"""
import mtrl.envs
for name, settings in {[CASES[case] for case in SMALL]!r}:
    try:
        mtrl.envs.make(name, **settings, seed=None)
    except mtrl.types.UserError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message = "env: seed must be an integer, not None: goals and episodes are drawn from it."
    assert done.stdout.splitlines() == [message] * len(SMALL)


def test_unknown_env() -> None:
    with pytest.raises(UserError, match="Did you mean 'mt10'"):
        mtrl.envs.make("mt-10")
