"""Every batched task is the published one: observation, reward, success and info at the same poses, in float64.

The published environment is driven by its scripted policy and at random, and its poses are scrambled, so that the
branches that a short episode does not reach are compared too. No physics of ours takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.metaworld.official import official_task
from mtrl.envs.metaworld.resets import _attributes
from mtrl.envs.metaworld.tasks import TASKS, Outcome, Task, TaskState
from mtrl.envs.metaworld.tasks.base import Pose, body_pos, site_pos

Array = NDArray[np.float64]

INFO = ("near_object", "grasp_success", "grasp_reward", "in_place_reward", "obj_to_target")
TCP = (site_pos("rightEndEffector"), site_pos("leftEndEffector"))
PADS = (body_pos("leftpad"), body_pos("rightpad"))
HAND = (body_pos("hand"), body_pos("leftclaw"), body_pos("rightclaw"))
IDEAL_QUATS = np.array([[1, 0, 0, 0], [0.707, 0, 0, 0.707], [0.5, 0.5, 0.5, 0.5]])

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
    seed: int
    steps: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = ALL_V3_ENVIRONMENTS[self.name]()
        self.task: Task = TASKS[self.name]
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
        self.constants = {f"constant.{name}": value for name, value in _attributes(env).items()}
        return obs

    def step(self, action: Array) -> Array:
        self.touched = None
        obs, reward, _, _, info = self.env.step(action)
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
        for before in [[array.copy() for array in arrays] for _ in range(times)]:
            self._move()
            obs = env._get_obs()
            space = env.sawyer_observation_space
            obs = np.clip(obs, space.low, space.high)
            action, self.touched = self.rng.uniform(-1, 1, 4), bool(self.rng.integers(2))
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
        shift = None
        for pose in poses.values():
            kind, values = pose.kind, look(env, pose)
            if kind == "joint_pos":
                values[:] = rng.uniform(-2, 2) if rng.random() < 0.5 else rng.uniform(0, 0.2)
            elif kind.endswith("quat"):
                quat = rng.choice(IDEAL_QUATS) + rng.normal(0, rng.choice([0, 0.05, 1]), 4)
                values[:] = quat / np.linalg.norm(quat)
            elif kind.endswith("mat"):
                values[:] = Rotation.random(random_state=rng).as_matrix().reshape(values.shape)
            else:
                if shift is None or rng.random() < 0.3:
                    near = [env.tcp_center, env.tcp_center, target, rng.uniform(low, high), values][rng.integers(5)]
                    shift = near - values + rng.normal(0, 1, 3) * rng.choice([1e-3, 1e-2, 3e-2, 0.1])
                values += shift

    def batch(self) -> tuple[TaskState, dict[str, Tensor]]:
        """All steps as one batch: the state, and what the published environment said of it."""
        columns = {name: torch.from_numpy(np.stack([step[name] for step in self.steps])) for name in self.steps[0]}

        def group(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in columns.items() if name.startswith(prefix)}

        poses = group("pose.")
        for name, pose in self.task.poses.items():
            poses[name] = (
                poses[name].reshape(-1, *{"mat": (3, 3), "quat": (4,)}.get(pose.kind[-3:], (3,)))
                if (pose.kind != "joint_pos")
                else poses[name].reshape(-1)
            )
        names = ("obs", "action", "tcp_center", "left_pad", "right_pad", "touching")
        state = TaskState(poses=poses, constants=group("constant."), **{name: columns[name] for name in names})
        return state, columns


def objects_of(task: Task, state: TaskState) -> Tensor:
    """(N, 14): the object part of the observation."""
    part = torch.zeros(len(state.obs), 14, dtype=state.obs.dtype)
    for i, (position, quat) in enumerate(task.objects(state.poses)):
        part[:, 7 * i : 7 * i + 3] = position
        if quat is not None:
            part[:, 7 * i + 3 : 7 * i + 7] = quat
    return part


def check(oracles: Sequence[Oracle]) -> Outcome:
    """Compares all steps of environments of one task."""
    oracle = oracles[0]
    oracle.steps = list(itertools.chain.from_iterable(other.steps for other in oracles))
    task, (state, official) = oracle.task, oracle.batch()
    torch.testing.assert_close(objects_of(task, state), state.obs[:, 4:18], rtol=0, atol=1e-12)
    outcome = task.evaluate(state)
    torch.testing.assert_close(outcome.reward, official["reward"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(official["reward"], official["unscaled_reward"], rtol=0, atol=0)
    assert outcome.success.dtype == torch.bool
    assert outcome.success.tolist() == (official["success"] > 0).tolist()
    for name in INFO:
        value = torch.as_tensor(getattr(outcome, name), dtype=torch.float64).expand(len(state.obs))
        torch.testing.assert_close(value, official[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    matters = task.touching_matters(state)
    for touching in (torch.zeros_like(state.touching), torch.ones_like(state.touching)):
        other = task.evaluate(TaskState(**{**vars(state), "touching": touching}))
        torch.testing.assert_close(other.reward, outcome.reward, rtol=0, atol=0)
        differs = other.success != outcome.success
        assert not (differs if matters is None else differs & ~matters).any()
    return outcome


def test_every_task_is_there() -> None:
    assert sorted(TASKS) == sorted(MT50)
    assert all(task.name == name for name, task in TASKS.items())


@scripted
@pytest.mark.parametrize("name", MT50)
def test_a_sample_of_steps_is_the_official_one(name: str) -> None:
    oracle = Oracle(name, seed=0)
    oracle.episode(num_scripted=50, num_random=10)
    oracle.scramble(150)
    check([oracle])


@scripted
@pytest.mark.slow
@pytest.mark.parametrize("name", MT50)
def test_whole_episodes_are_the_official_ones(name: str) -> None:
    oracle = Oracle(name, seed=1)
    for num_scripted in (500, 500, 400, 200, 0):
        oracle.episode(num_scripted, 500 - num_scripted)
        oracle.scramble(1000)
    outcome = check([oracle])
    assert outcome.success[:500].any() or outcome.success[1500:2000].any()  # of the scripted policy


@scripted
def test_single_precision_stays_finite() -> None:
    """Near enough for float32 engines, and no branch that is not taken leaks a NaN."""
    oracle = Oracle("bin-picking-v3", seed=0)
    oracle.episode(num_scripted=5, num_random=5)
    oracle.scramble(50)
    state, official = oracle.batch()

    def single(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: single(value) for name, value in x.items()}
        return x.float() if x.dtype == torch.float64 else x

    outcome = oracle.task.evaluate(TaskState(**{name: single(value) for name, value in vars(state).items()}))
    assert outcome.reward.dtype == torch.float32
    assert outcome.reward.isfinite().all()
    assert ((outcome.reward - official["reward"]).abs() < 1e-3).double().mean() > 0.95
