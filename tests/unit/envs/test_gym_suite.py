"""Lists of gymnasium environments: padding, masks, scaling, images, entries, and lists that do not go together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mtrl.envs
from mtrl.envs.gym_slot import rescale
from mtrl.types import UserError, VecEnv
from tests.system.success_envs import LENGTH

ROOT = Path(__file__).parents[3]


def make(*ids: Any, **options: Any) -> VecEnv:
    return mtrl.envs.make("gym", ids=list(ids), num_workers=0, **options)


def byte_box(*shape: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, 255, shape, np.uint8)


class Image(gymnasium.Env):
    """Shows what it was told: the observation is filled with the last action."""

    observation_space: gymnasium.Space = byte_box(2, 4, 4)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros((2, 4, 4), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return np.full((2, 4, 4), action, np.uint8), 1.0, False, False, {"is_success": action == 7}


class Seen(gymnasium.Env):
    """An observation space of one's choice, and observations that count: 0, 1, 2, ... in the order of memory."""

    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, space: str) -> None:
        self.observation_space = SPACES[space]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        space = self.observation_space
        if isinstance(space, gymnasium.spaces.Box):
            return np.arange(np.prod(space.shape)).reshape(space.shape).astype(space.dtype), {}
        return space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        return self.reset()[0], 0.0, False, False, {}


SPACES: dict[str, gymnasium.Space] = {
    "colour": byte_box(6, 8, 3),
    "stack": byte_box(3, 6, 8),
    "grey": byte_box(6, 8),
    "cube": byte_box(8, 8, 8),
    "board": byte_box(8, 8, 119),
    "stacked colour": byte_box(4, 6, 8, 3),
    "float image": gymnasium.spaces.Box(0, 1, (6, 8, 3)),
    "matrix": gymnasium.spaces.Box(-1, 1, (3, 3)),
    "numbers": gymnasium.spaces.Box(-1, 1, (5,)),
    "dict": gymnasium.spaces.Dict(image=byte_box(6, 8, 3), speed=gymnasium.spaces.Box(-1, 1, (3,))),
    "nested": gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(2), gymnasium.spaces.Dict(image=byte_box(6, 8)))),
    "small dict": gymnasium.spaces.Dict(
        pose=gymnasium.spaces.Box(-1, 1, (3, 3)), speed=gymnasium.spaces.Box(-1, 1, (3,))
    ),
}


def seen(space: str) -> dict[str, Any]:
    """The entry of a task with that observation space."""
    return {"id": "Seen-v0", "kwargs": {"space": space}, "name": space}


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


class Uneven(Lever):
    action_space = gymnasium.spaces.Box(-0.4, 0.3, (2,), np.float32)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    for cls, steps in ((Image, 9), (Lever, None), (Free, None), (Uneven, None), (Seen, 9)):
        gymnasium.register(f"{cls.__name__}-v0", cls, max_episode_steps=steps)
    gymnasium.register("Batch-v0", vector_entry_point="tests:nothing")


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


def test_images_keep_their_shape_and_success_is_reported() -> None:
    env = make("Image-v0", num_envs=2)
    assert env.spec.obs_shape == (2, 4, 4)
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
        (["Pendulum-v1", "Pendulum-v1"], "2 tasks are called 'Pendulum-v1': give them names"),
        (["Pendulum-v7"], "Pendulum-v7"),
        (["Pendulom-v1"], "Did you mean 'Pendulum-v1'"),
        (["Free-v0"], "no bounds"),
        ([], "must be a list"),
        ("Pendulum-v1", "must be a list"),
        ([3], "an id or {id: ..., kwargs: ..., name: ...}, not 3"),
        ([{"kwargs": {"g": 9}}], "needs a value for: id"),
        ([{"id": "Pendulum-v1", "kwarg": {}}], "Unknown option of an entry of ids: 'kwarg'. Did you mean 'kwargs'"),
        ([{"id": "Pendulum-v1", "kwargs": 9}], "kwargs must be settings, not 9"),
        ([{"id": "Pendulum-v1", "name": 9}], "name must be text or null, not 9"),
        ([{"id": "Pendulum-v1", "kwargs": {"h": 9}}], "unexpected keyword argument 'h'"),
        ([seen("dict")], r"'dict' are a Dict with an image \(6, 8, 3\) in it"),
        ([seen("nested")], r"'nested' are a Tuple with an image \(6, 8\) in it"),
        ([seen("cube")], r"\(8, 8, 8\) of 'cube' do not tell .*: use env.channels=first or env.channels=last"),
        ([seen("board")], r"\(8, 8, 119\) of 'board' do not tell"),
        ([seen("stacked colour")], r"uint8 of shape \(4, 6, 8, 3\): images must be uint8, .* at most three axes"),
        ([seen("float image")], r"float32 of shape \(6, 8, 3\): images must be uint8"),
        ([seen("colour"), seen("grey")], r"same shape .*, found colour: \(3, 6, 8\), grey: \(1, 6, 8\)"),
        ([seen("colour"), seen("numbers")], r"same shape .*, found colour: \(3, 6, 8\), numbers: \(5,\)"),
        (["nowhere:Mine-v0"], "No module named 'nowhere'"),
        (["Mine-v0"], "If a module of yours registers it, write module:id: my_envs:Mine-v0"),
        (["Batch-v0"], r"'Batch-v0': it makes batches only \(gymnasium.make_vec\)"),
        (["reach-v3"], "'reach-v3'. Meta-World's tasks are in env=metaworld 'env.tasks=\\[reach-v3\\]'"),
        (["mtrl/reech-v3"], "'mtrl/reech-v3'. Meta-World's tasks are in env=metaworld 'env.tasks=\\[reach-v3\\]'"),
    ],
)
def test_lists_that_do_not_go_together(ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mtrl.envs.make("gym", ids=ids)


# --- entries --------------------------------------------------------------------------------------------------------


def test_variants_of_one_id_side_by_side() -> None:
    heavy = {"id": "Pendulum-v1", "kwargs": {"g": 20.0}, "name": "heavy"}
    env = make("Pendulum-v1", heavy, {"id": "Pendulum-v1", "kwargs": {"g": 1.0, "max_episode_steps": 7}}, num_envs=3)
    assert env.spec.task_names == ("Pendulum-v1", "heavy", "Pendulum-v1[g=1.0,max_episode_steps=7]")
    assert env.spec.horizon is None  # 200, 200, 7
    env.assign(env.task, torch.full((3,), 5))
    first = env.reset()
    assert torch.equal(first[0], first[1]), "the same seed, before gravity has done anything"
    for t in range(7):
        step = env.step(torch.zeros(3, 1))
        assert step.truncated.tolist() == [False, False, t == 6]
    for task, gravity in enumerate((10.0, 20.0, 1.0)):
        reference = gymnasium.make("Pendulum-v1", g=gravity)
        reference.reset(seed=5)
        for _ in range(7):
            expected = reference.step(np.zeros(1, np.float32))[0]
        assert np.array_equal(step.final_obs[task], expected), gravity


def test_ids_that_this_process_alone_has_registered() -> None:
    """Workers are told what an id stands for, where they can import it."""
    gymnasium.register("mine/Sick-v0", "tests.system.broken_env:NotFinite", max_episode_steps=9)
    env = mtrl.envs.make("gym", ids=[{"id": "mine/Sick-v0", "kwargs": {"what": "nothing"}}], num_envs=2, num_workers=2)
    assert env.reset().shape == (2, 2)
    assert env.spec.horizon == 9
    env.close()


def test_environments_of_the_script_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import gymnasium, mtrl.envs
from gymnasium.envs.classic_control import PendulumEnv

class Mine(PendulumEnv):
    pass

gymnasium.register("Mine-v0", Mine, max_episode_steps=9)
gymnasium.register("Made-v0", lambda **options: Mine(**options), max_episode_steps=9)
for name in ("Mine-v0", "Made-v0"):
    print(mtrl.envs.make("gym", ids=[name], num_workers=0).reset().shape)
    try:
        mtrl.envs.make("gym", ids=[name], num_workers=1)
    except mtrl.types.UserError as error:
        print(error)
"""
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[2] == "torch.Size([1, 3])"
    for name, line in (("Mine-v0", lines[1]), ("Made-v0", lines[3])):
        assert line.startswith(f"{name!r} is made by something that worker processes cannot import (<")
        assert line.endswith("put it into a module that registers it and write module:id, or use num_workers=0.")


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "channels", "shape", "strides"),
    [
        ("colour", None, (3, 6, 8), (1, 24, 3)),
        ("stack", None, (3, 6, 8), (48, 8, 1)),
        ("grey", None, (1, 6, 8), (0, 8, 1)),
        ("cube", "first", (8, 8, 8), (64, 8, 1)),
        ("cube", "last", (8, 8, 8), (1, 64, 8)),
        ("board", "last", (119, 8, 8), (1, 952, 119)),
    ],
)
def test_channels_come_first(
    space: str, channels: str | None, shape: tuple[int, ...], strides: tuple[int, int, int]
) -> None:
    """Pixel (c, h, w) is the one that the environment numbered by its strides."""
    env = make(seen(space), channels=channels)
    assert (env.spec.obs_shape, env.spec.obs_dtype) == (shape, torch.uint8)
    c, h, w = np.indices(shape)
    expected = (c * strides[0] + h * strides[1] + w * strides[2]).astype(np.uint8)
    assert np.array_equal(env.reset()[0], expected)
    assert np.array_equal(env.step(torch.zeros(1, dtype=torch.int64)).final_obs[0], expected)


def test_images_of_either_kind_in_one_list() -> None:
    assert make(seen("colour"), seen("stack")).spec.obs_shape == (3, 6, 8)


def test_small_arrays_are_numbers() -> None:
    assert make(seen("matrix"), seen("small dict"), seen("numbers")).spec.obs_shape == (12,)


def test_channels_is_a_choice() -> None:
    with pytest.raises(UserError, match="channels must be one of first, last or null, not 'middle'"):
        make(seen("cube"), channels="middle")


# --- bounds of actions ----------------------------------------------------------------------------------------------


@st.composite
def boxes(draw: st.DrawFn) -> gymnasium.spaces.Box:
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int32, np.uint8]))
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        numbers: Any = st.integers(int(limits.min), int(limits.max))
    else:
        width = np.finfo(dtype).bits
        largest = float(np.finfo(dtype).max)
        numbers = st.floats(-largest, largest, width=width)  # type: ignore[arg-type]
    ends = draw(arrays(dtype, (2, 3), elements=numbers))
    return gymnasium.spaces.Box(ends.min(0), ends.max(0), dtype=dtype)


@example(
    gymnasium.spaces.Box(np.int8(-3), np.array([-2, -3, -3], np.int8), dtype=np.int8),
    np.full(3, -(2.0**-52), np.float32),  # -2.5 in float64, a little less in truth
)
@given(boxes(), arrays(np.float32, 3, elements=st.floats(-1, 1, width=32)))
def test_actions_lie_inside_and_ends_are_exact(space: gymnasium.spaces.Box, action: np.ndarray) -> None:
    point = rescale(action, space)
    assert space.contains(point)
    assert np.array_equal(rescale(-np.ones(3, np.float32), space), space.low)
    assert np.array_equal(rescale(np.ones(3, np.float32), space), space.high)
    low, high = space.low.astype(np.longdouble), space.high.astype(np.longdouble)
    exact = (low * (1 - action.astype(np.longdouble)) + high * (1 + action.astype(np.longdouble))) / 2
    if np.issubdtype(space.dtype, np.integer):
        assert (np.abs(point - exact) <= 0.5).all(), "the nearest"
    else:
        last_place = np.finfo(space.dtype).eps * np.maximum(abs(low), abs(high))
        assert (np.abs(point - exact) <= last_place + np.finfo(space.dtype).smallest_subnormal).all()


def test_an_environment_that_asserts_its_bounds() -> None:
    """In float32, -0.4 + (0.3 - -0.4) is 0.30000001, outside."""
    env = make("Uneven-v0", num_envs=2)
    env.reset()
    step = env.step(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    assert torch.equal(step.obs, torch.tensor([[0.3, 0.3], [-0.4, -0.4]]))
