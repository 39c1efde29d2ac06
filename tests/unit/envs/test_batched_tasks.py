"""Every batched task is the published one: observation, reward, success and info at the same poses, in float64.

The published environment is driven by its scripted policy and at random, and its poses are scrambled, so that the
branches that a short episode does not reach are compared too. No physics of ours takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.metaworld.official import official_task
from mtrl.envs.metaworld.resets import _attributes
from mtrl.envs.metaworld.tasks import TASKS, Task, TaskState
from mtrl.envs.metaworld.tasks.base import Pose, body_pos, scipy_quat, site_pos, tolerance
from mtrl.envs.metaworld.tasks_v1 import TASKS_V1

Array = NDArray[np.float64]

INFO = ("near_object", "grasp_success", "grasp_reward", "in_place_reward", "obj_to_target")
TCP = (site_pos("rightEndEffector"), site_pos("leftEndEffector"))
PADS = (body_pos("leftpad"), body_pos("rightpad"))
HAND = (body_pos("hand"), body_pos("leftclaw"), body_pos("rightclaw"))
IDEAL_QUATS = np.array([[1, 0, 0, 0], [0.707, 0, 0, 0.707], [0.5, 0.5, 0.5, 0.5]])

VERSIONS = {"v1": TASKS_V1, "v2": TASKS}
NEVER = {("v1", "hand-insert-v3"), ("v1", "stick-push-v3")}
"""What is never a success."""
FLAGS = ("pickCompleted", "placeCompleted", "reachCompleted")
"""Attributes of v1. They are no memory: a step does not depend on them."""

scripted = pytest.mark.filterwarnings("ignore:Constant")  # of the scripted policies, whose actions exceed [-1, 1]


def look(env: Any, pose: Pose) -> Array:
    """A view of where the simulation keeps a pose."""
    kind, what = pose.kind.split("_")
    entity = getattr(env.data, kind)(pose.name)
    return getattr(entity, {"pos": "qpos" if kind == "joint" else "xpos", "quat": "xquat", "mat": "xmat"}[what])


@dataclass
class Oracle:
    """A published environment, and what it gave at every step or scrambled pose."""

    name: str
    version: str
    seed: int
    steps: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = ALL_V3_ENVIRONMENTS[self.name](reward_function_version=self.version)
        self.task: Task = VERSIONS[self.version][self.name]
        self.rng = np.random.default_rng(self.seed)
        self.touched: bool | None = None
        touching = self.env.touching_object

        def spy(geom: int) -> bool:
            assert geom == self.env.model.geom(self.task.main_geom).id
            self.touched = touching(geom) if self.touched is None else self.touched
            return self.touched

        self.env.touching_object = spy

    def reset(self) -> Array:
        """Resets to a random goal, which the environment draws: some vectors are not allowed."""
        env = self.env
        env.set_task(official_task(self.name, np.zeros(0)))
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        env.seed(int(self.rng.integers(2**31)))
        obs, _ = env.reset()
        env._freeze_rand_vec = True  # as in the benchmarks
        obs, _ = env.reset()
        self.constants: dict[str, Array] = {}
        self.note_constants()
        return obs

    def note_constants(self) -> None:
        for name, value in _attributes(self.env).items():
            self.constants.setdefault(f"constant.{name}", value)

    def step(self, action: Array) -> Array:
        self.touched = None
        obs, reward, _, _, info = self.env.step(action)
        self.note_constants()  # the first step adds one in bin-picking
        self.keep(obs, action, float(reward), info)
        return obs

    def keep(self, obs: Array, action: Array, reward: float, info: dict[str, Any]) -> None:
        env = self.env
        poses = {f"pose.{name}": look(env, pose).copy() for name, pose in self.task.poses.items()}
        numbers = {name: np.float64(info[name]) for name in ("success", "unscaled_reward", *INFO)}
        self.steps.append(
            {
                "obs": obs.copy(),
                "action": action,
                "reward": np.float64(reward),
                "tcp_center": np.mean([look(env, pose) for pose in TCP], axis=0),
                "left_pad": look(env, PADS[0]).copy(),
                "right_pad": look(env, PADS[1]).copy(),
                "touching": np.array(bool(self.touched)),
                **poses,
                **numbers,
                **self.constants,
            }
        )

    def episode(self, num_scripted: int, num_random: int) -> None:
        """The scripted policy with noise, which stays in [-1, 1], then random actions."""
        obs, policy = self.reset(), ENV_POLICY_MAP[self.name]()
        noise = self.rng.uniform(0, 0.3)
        for _ in range(num_scripted):
            obs = self.step((policy.get_action(obs) + self.rng.normal(0, noise, 4)).clip(-1, 1))
        for _ in range(num_random):
            self.step(self.rng.uniform(-1, 1, 4))

    def scramble(self, times: int) -> None:
        """Evaluates at made-up poses: objects near the gripper, near the target and anywhere; arrays are put back."""
        env, data = self.env, self.env.data
        arrays = [data.qpos, data.xpos, data.xquat, data.xmat, data.geom_xpos, data.geom_xmat]
        arrays += [data.site_xpos, data.site_xmat]
        before = [array.copy() for array in arrays]
        for _ in range(times):
            self._move()
            obs = env._get_obs()
            space = env.sawyer_observation_space
            obs = np.clip(obs, space.low, space.high)
            action, self.touched = self.rng.uniform(-1, 1, 4), bool(self.rng.integers(2))
            for flag in FLAGS:
                setattr(env, flag, bool(self.rng.integers(2)))
            reward, info = env.evaluate_state(obs, action)
            self.keep(obs, action, float(reward), info)
            for array, values in zip(arrays, before, strict=True):
                array[:] = values

    def _move(self) -> None:
        env, rng, poses = self.env, self.rng, self.task.poses
        low, high = env._HAND_SPACE.low, env._HAND_SPACE.high
        constants = [value for value in self.constants.values() if value.shape == (3,)]
        target = rng.choice([env._target_pos, *constants]) if rng.random() < 0.5 else env._target_pos
        anywhere = rng.uniform(low, high)
        hand = [target.copy(), target + rng.normal(0, 0.05, 3), anywhere, env.tcp_center][rng.integers(4)]
        shift = hand - env.tcp_center
        for pose in HAND + TCP + PADS:
            look(env, pose)[:] += shift + rng.normal(0, rng.choice([0, 1e-3, 1e-2]), 3)
        for pose, side in zip(PADS, (1, -1), strict=True):  # round an object or not
            look(env, pose)[1] = env.tcp_center[1] + side * rng.uniform(0, 0.06) * rng.choice([1, 1, 1, -1])
        shift, last = None, target
        for pose in poses.values():
            kind, values = pose.kind, look(env, pose)
            if np.may_share_memory(values, env._target_pos):
                continue  # rests in an episode, and the official code may have read it
            if kind == "joint_pos":
                values[:] = rng.uniform(-2, 2) if rng.random() < 0.5 else rng.uniform(0, 0.2)
            elif kind.endswith("quat"):
                quat = rng.choice(IDEAL_QUATS) + rng.normal(0, rng.choice([0, 0.05, 1]), 4)
                values[:] = quat / np.linalg.norm(quat)
            elif kind.endswith("mat"):
                values[:] = Rotation.random(random_state=rng).as_matrix().reshape(values.shape)
            else:
                if shift is None or rng.random() < 0.3:
                    near = [env.tcp_center, env.tcp_center, target, last, rng.uniform(low, high), values]
                    shift = near[rng.integers(6)] - values + rng.normal(0, 1, 3) * rng.choice([1e-3, 1e-2, 3e-2, 0.1])
                values += shift
                last = values

    def batch(self) -> tuple[TaskState, dict[str, Array]]:
        """All steps as one batch of numpy arrays: the state, and what the published environment said of it."""
        columns = {name: np.stack([step[name] for step in self.steps]) for name in self.steps[0]}

        def group(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): value for name, value in columns.items() if name.startswith(prefix)}

        poses, shapes = group("pose."), {"pos": (-1, 3), "quat": (-1, 4), "mat": (-1, 3, 3)}
        for name, pose in self.task.poses.items():
            kind, what = pose.kind.split("_")
            poses[name] = poses[name].reshape(-1 if kind == "joint" else shapes[what])
        names = ("obs", "action", "tcp_center", "left_pad", "right_pad", "touching")
        state = TaskState(poses=poses, constants=group("constant."), **{name: columns[name] for name in names})
        return state, columns


def as_torch(state: TaskState, dtype: torch.dtype = torch.float64) -> TaskState:
    def convert(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: convert(value) for name, value in x.items()}
        tensor = torch.from_numpy(x)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return TaskState(**{name: convert(value) for name, value in vars(state).items()})


def objects_of(task: Task, state: TaskState) -> Array:
    """(N, 14): the object part of the observation."""
    part = np.zeros((len(state.obs), 14))
    for i, (position, orientation) in enumerate(task.objects(state.poses)):
        part[:, 7 * i : 7 * i + 3] = position
        if orientation is not None:
            quat = scipy_quat(orientation) if orientation.ndim == 3 else orientation
            part[:, 7 * i + 3 : 7 * i + 7] = quat
    return part


def compare(task: Task, state: TaskState, official: dict[str, Array]) -> None:
    """Compares a batch, of either kind of arrays, with what the published environment gave."""
    np.testing.assert_allclose(objects_of(task, state), official["obs"][:, 4:18], rtol=0, atol=1e-12)
    outcome = task.evaluate(state)
    np.testing.assert_allclose(outcome.reward, official["reward"], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(official["reward"], official["unscaled_reward"])
    np.testing.assert_array_equal(outcome.success, official["success"] > 0)
    for name in INFO:
        value = np.broadcast_to(np.asarray(getattr(outcome, name)), len(state.obs))
        np.testing.assert_allclose(value, official[name], rtol=1e-9, atol=1e-9, err_msg=name)


def check_touching(task: Task, state: TaskState) -> None:
    """It changes success only where the task says so, and reward never."""
    matters = task.touching_matters(state)
    without = task.evaluate(replace(state, touching=np.zeros_like(state.touching)))
    touched = task.evaluate(replace(state, touching=np.ones_like(state.touching)))
    np.testing.assert_array_equal(touched.reward, without.reward)
    np.testing.assert_array_equal(touched.success != without.success, False if matters is None else matters)


def check(oracle: Oracle) -> dict[str, Array]:
    """Compares all steps of an environment."""
    state, official = oracle.batch()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # in branches that are not taken
        compare(oracle.task, state, official)
        check_touching(oracle.task, state)
    compare(oracle.task, as_torch(state), official)
    return official


def test_every_task_is_there() -> None:
    for tasks in VERSIONS.values():
        assert sorted(tasks) == sorted(MT50)
        assert all(task.name == name for name, task in tasks.items())


@scripted
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MT50)
def test_a_sample_of_steps_is_the_official_one(name: str, version: str) -> None:
    oracle = Oracle(name, version, seed=0)
    oracle.episode(num_scripted=50, num_random=10)
    oracle.scramble(100)
    check(oracle)


@scripted
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MT50)
def test_whole_episodes_are_the_official_ones(name: str, version: str) -> None:
    oracle = Oracle(name, version, seed=1)
    for num_scripted in (500, 500, 500, 250, 0):
        oracle.episode(num_scripted, 500 - num_scripted)
        oracle.scramble(200)
    official = check(oracle)
    succeeded = official["success"].reshape(5, 700)[:3, :500].any()  # of the scripted policy
    assert succeeded or (version, name) in NEVER


@pytest.mark.parametrize("name", ["stick-pull-v3", "stick-push-v3"])
def test_where_v1_looks_for_the_thermos(name: str) -> None:
    """In the stick's height and quaternion. So it is near a stick at (x, y, x) whose quaternion begins with y and x."""
    oracle = Oracle(name, "v1", seed=0)
    oracle.reset()

    def move() -> None:
        x, y = oracle.env._target_pos[:2] + oracle.rng.normal(0, 0.02, 2)
        stick = np.array([x, y, x]) + oracle.rng.normal(0, 0.02, 3)
        shift = stick - oracle.env.tcp_center
        look(oracle.env, oracle.task.poses["stick"])[:] = stick
        rest = np.sqrt((1 - x**2 - y**2) / 2)
        matrix = Rotation.from_quat([y, x, rest, rest]).as_matrix()
        look(oracle.env, oracle.task.poses["stick_mat"])[:] = matrix.ravel()
        for pose in TCP:
            look(oracle.env, pose)[:] += shift

    oracle._move = move  # type: ignore[method-assign]
    oracle.scramble(100)
    assert (check(oracle)["reward"] > 2000).any()


@scripted
def test_single_precision_is_near() -> None:
    """For engines in float32: no branch that is not taken leaks a NaN."""
    oracle = Oracle("bin-picking-v3", "v2", seed=0)
    oracle.episode(num_scripted=50, num_random=10)
    state, official = oracle.batch()
    outcome = oracle.task.evaluate(as_torch(state, torch.float32))
    assert outcome.reward.dtype == torch.float32
    np.testing.assert_allclose(outcome.reward, official["reward"], rtol=0, atol=1e-3)


def test_margins_of_zero() -> None:
    """`tolerance` with a margin of 0 is 0 outside of the bounds, also for a tensor of margins."""
    x, margin = torch.tensor([0.5, 1.5, 1.5]), torch.tensor([0.0, 0.0, 1.0])
    value = tolerance(x, bounds=(0.0, 1.0), margin=margin, sigmoid="long_tail")
    assert value[:2].tolist() == [1.0, 0.0]
    assert 0 < value[2] < 1
