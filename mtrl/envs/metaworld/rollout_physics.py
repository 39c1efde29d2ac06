"""Physics `rollout`: the official simulation, bit for bit, on C threads; observation, reward and success in batches.

Each slot has its own `MjModel` (goals move bodies and sites in the model) and `MjData`. A step does in each slot what
the official step does (mocap, control, five `mj_step`, one `mj_forward`), in threads: MuJoCo runs without Python's
lock. `mujoco.rollout` would need fewer calls, but it does not return the solver's warm start, so that every step would
begin with another one than the official step, and contacts would soon part ways. Python adds about 5 µs to the 75 µs of
a step of physics.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.envs.base import Assignments, check_action, check_num_envs, check_num_slots
from mtrl.envs.metaworld.resets import STATE, TaskResets, reset_pool, scene_path
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.metaworld.tasks import TASKS, Outcome, Task, TaskState
from mtrl.envs.metaworld.tasks.base import Pose, body_pos, norm, site_pos
from mtrl.types import State, Step, UserError

FRAME_SKIP = 5
"""Physics steps in a step of the environment."""
FRAME = 18
"""Numbers in a frame; an observation is this frame, the previous one and the goal."""
CONTROL = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
"""What an action sets: 2 controls, position and quaternion of the mocap body."""
MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)

COMMON = (
    body_pos("hand"),
    body_pos("rightclaw"),
    body_pos("leftclaw"),
    site_pos("rightEndEffector"),
    site_pos("leftEndEffector"),
    body_pos("rightpad"),
    body_pos("leftpad"),
)
"""Poses that every task needs. They lead the sensors of every scene, after the clock."""


# --- Scenes: models with sensors for what the tasks read --------------------------------------------------------------

_FRAME_OBJECTS = {"body": mujoco.mjtObj.mjOBJ_XBODY, "geom": mujoco.mjtObj.mjOBJ_GEOM, "site": mujoco.mjtObj.mjOBJ_SITE}
_FRAME_SENSORS = {
    "pos": (mujoco.mjtSensor.mjSENS_FRAMEPOS,),
    "quat": (mujoco.mjtSensor.mjSENS_FRAMEQUAT,),
    "mat": (
        mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
        mujoco.mjtSensor.mjSENS_FRAMEYAXIS,
        mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
    ),
}
_SIZES = {"pos": 3, "quat": 4, "mat": 9}


class Scene:
    """A compiled scene, and the simulations of it that no slot uses.

    Args:
        path: XML file.
        poses: What its tasks read, besides `COMMON`.
    """

    def __init__(self, path: str, poses: Sequence[Pose]) -> None:
        spec = mujoco.MjSpec.from_file(path)
        # Textures and the meshes of what cannot collide are five sixths of a model's 21 MB.
        spec.compiler.discardvisual = True
        spec.add_sensor(type=mujoco.mjtSensor.mjSENS_CLOCK)
        self.columns: dict[Pose, slice] = {}
        """Columns of each pose in the sensor data."""
        start = 1
        for pose in dict.fromkeys((*COMMON, *poses)):
            what, kind = pose.kind.split("_")
            if what == "joint":
                joint = mujoco.mjtObj.mjOBJ_JOINT
                spec.add_sensor(type=mujoco.mjtSensor.mjSENS_JOINTPOS, objtype=joint, objname=pose.name)
                size = 1
            else:
                for sensor in _FRAME_SENSORS[kind]:
                    spec.add_sensor(type=sensor, objtype=_FRAME_OBJECTS[what], objname=pose.name)
                size = _SIZES[kind]
            self.columns[pose] = slice(start, start + size)
            start += size
        self._model = spec.compile()
        self._idle: list[Simulation] = []
        self.num_sensors = int(self._model.nsensordata)
        self.state_size = mujoco.mj_stateSize(self._model, STATE)

    def take(self) -> Simulation:
        """An idle simulation, or a new one."""
        if self._idle:
            return self._idle.pop()
        model = copy.copy(self._model)
        return Simulation(self, model, mujoco.MjData(model))

    def give(self, simulation: Simulation) -> None:
        """Takes back a simulation."""
        self._idle.append(simulation)

    def read(self, sensors: Tensor, pose: Pose) -> Tensor:
        """A pose (N, ...) out of the sensor data (N, W)."""
        values = sensors[:, self.columns[pose]]
        if pose.kind == "joint_pos":
            return values[:, 0]
        if pose.kind.endswith("mat"):
            return values.unflatten(1, (3, 3)).mT  # the sensors are the columns of the matrix
        return values


@dataclass(frozen=True)
class Simulation:
    """What one slot simulates."""

    scene: Scene
    model: mujoco.MjModel
    data: mujoco.MjData

    def reset(self, resets: TaskResets, goal: int) -> None:
        """Begins an episode."""
        for field, values in resets.model.items():
            getattr(self.model, field)[:] = values[goal]
        mujoco.mj_setState(self.model, self.data, resets.state[goal], STATE)


class Constants(Mapping[str, Tensor]):
    """Constants of the slots of one task, gathered when first read."""

    def __init__(self, by_goal: Mapping[str, Tensor], goal: Tensor) -> None:
        self._by_goal, self._goal = by_goal, goal
        self._gathered: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._gathered:
            self._gathered[name] = self._by_goal[name][self._goal]
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_goal)

    def __len__(self) -> int:
        return len(self._by_goal)


@dataclass(frozen=True)
class _Group:
    """The slots that run one task."""

    task: Task
    scene: Scene
    rows: Tensor | slice
    """Slots: a slice where they are neighbours, so that indexing copies nothing."""
    constants: Constants
    untouched: Tensor


# --- The environment --------------------------------------------------------------------------------------------------


class RolloutVecEnv:
    """A `VecEnv` of Meta-World on C MuJoCo in threads. Trajectories are the official ones, whatever the threads.

    A simulation that becomes unstable is put back to the scene's default pose by MuJoCo and goes on, as officially.

    Args:
        suite: Tasks and goals.
        num_envs: B; None for one slot per task.
        seed: Of the goals drawn.
        device: Of the tensors in a step.
        num_workers: Threads; None for one per core, 0 and 1 to stay in the calling thread.

    Raises:
        UserError: There is no batched version of a task; reward v1; or `num_envs` is no multiple of the tasks.
    """

    def __init__(
        self, suite: Suite, num_envs: int | None, seed: int, device: torch.device | str, num_workers: int | None = None
    ) -> None:
        missing = [name for name in suite.task_names if name not in TASKS]
        if missing:
            raise UserError(f"physics=rollout has no {', '.join(missing)} yet: use physics=official.")
        if suite.reward_version != "v2":
            raise UserError("physics=rollout has reward v2 only: use physics=official for v1.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must not be negative, but is {num_workers}.")
        self.spec = suite.spec
        self.num_envs = check_num_envs(num_envs, self.spec.num_tasks)
        self.num_goals = len(suite.goals[0])
        self._device = torch.device(device)
        self._horizon = suite.horizon
        self._num_threads = min(max(1, (os.cpu_count() or 1) if num_workers is None else num_workers), self.num_envs)
        self._executor = ThreadPoolExecutor(self._num_threads - 1) if self._num_threads > 1 else None

        self._pool = reset_pool(suite.task_names, suite.goals, self._num_threads)
        self._tasks = [TASKS[name] for name in suite.task_names]
        self._scenes = _scenes(self._tasks, self._pool)
        tensors = torch.from_numpy
        self._constants = [{name: tensors(v) for name, v in resets.constants.items()} for resets in self._pool]
        self._first_obs = torch.stack([tensors(resets.obs) for resets in self._pool])  # (K, G, 39)
        self._obs_low, self._obs_high = (
            torch.stack([tensors(bound) for bound in bounds])
            for bounds in ([r.obs_low for r in self._pool], [r.obs_high for r in self._pool])
        )
        self._mocap_low, self._mocap_high = (
            np.stack(bounds) for bounds in ([r.mocap_low for r in self._pool], [r.mocap_high for r in self._pool])
        )
        (self._action_scale,) = {resets.action_scale for resets in self._pool}

        num_envs = self.num_envs
        self._simulations: list[Simulation | None] = [None] * num_envs
        self._control = np.zeros((num_envs, 9))
        self._control[:, 5:] = MOCAP_QUAT
        self._sensors = np.zeros((num_envs, max(scene.num_sensors for scene in self._scenes)))
        self._previous = torch.zeros(num_envs, FRAME, dtype=torch.float64)
        self._steps = torch.zeros(num_envs, dtype=torch.int64)
        self._assignments = Assignments(num_envs, self.spec.num_tasks, self.num_goals, seed, torch.device("cpu"))
        self._task, self._goal = self._assignments.task, self._assignments.goal
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        self._groups: list[_Group] = []
        self._outcomes: list[Outcome] = []
        self._running, self._closed = False, False

    # --- The interface of `VecEnv` ---

    def reset(self, seed: int | None = None) -> Tensor:
        self._check_open()
        if seed is not None:
            self._assignments.reseed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool))
        self._running = True
        return self._first_obs[self._task, self._goal].to(self._device, torch.float32)

    def step(self, action: Tensor) -> Step:
        self._check_open()
        if not self._running:
            raise RuntimeError("Call reset before the first step.")
        moves = check_action(action, self.spec, self.task).cpu()
        self._simulate(moves.numpy())
        final_obs, reward, success = self._evaluate(moves)
        self._steps += 1
        done = self._steps >= self._horizon
        task, obs = self.task, final_obs.to(self._device, torch.float32)
        next_obs = obs
        if done.any():
            self._begin(done)
            first = self._first_obs[self._task, self._goal]
            next_obs = torch.where(done[:, None], first, final_obs).to(self._device, torch.float32)
        return Step(
            obs=next_obs,
            reward=reward.to(self._device, torch.float32),
            terminated=torch.zeros(self.num_envs, dtype=torch.bool, device=self._device),
            truncated=done.to(self._device),
            success=success.to(self._device),
            task=task,
            final_obs=obs,
        )

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        self._assignments.assign(task, goal)

    def state_dict(self) -> State:
        physics = np.zeros((self.num_envs, max(scene.state_size for scene in self._scenes)))
        for row, simulation in zip(physics, self._simulations, strict=True):
            if simulation is not None:
                state = row[: simulation.scene.state_size]
                mujoco.mj_getState(simulation.model, simulation.data, state, STATE)
        return {
            "task": self._task.clone(),
            "goal": self._goal.clone(),
            "running": self._running,
            "physics": torch.from_numpy(physics),
            "previous": self._previous.clone(),
            "steps": self._steps.clone(),
            "assignments": self._assignments.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if the state has another number of slots."""
        check_num_slots(state, self.num_envs)
        self._assignments.load_state_dict(state["assignments"])
        self._task, self._goal = state["task"].cpu().clone(), state["goal"].cpu().clone()
        self._running = state["running"]
        if self._running:
            self._place(range(self.num_envs))
            for slot, row in enumerate(state["physics"].cpu().numpy()):
                simulation = self._simulations[slot]
                assert simulation is not None
                mujoco.mj_setState(simulation.model, simulation.data, row[: simulation.scene.state_size], STATE)
                self._control[slot, 2:5] = simulation.data.mocap_pos[0]
        self._previous, self._steps = state["previous"].cpu().clone(), state["steps"].cpu().clone()
        self._regroup()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        self._closed = True
        self._simulations = [None] * self.num_envs

    def info(self) -> dict[str, Tensor]:
        """The official info of the last step, each (B,) float32.

        `grasp_success` is a lower bound in the tasks where it depends on contact forces.
        """
        info = {}
        for field in Outcome._fields[2:]:
            info[field] = torch.zeros(self.num_envs)
            for group, outcome in zip(self._groups, self._outcomes, strict=True):
                info[field][group.rows] = torch.as_tensor(getattr(outcome, field), dtype=torch.float32)
        return {name: value.to(self._device) for name, value in info.items()}

    # --- Episodes ---

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("The environment is closed.")

    def _begin(self, done: Tensor) -> None:
        """Begins the next episode in the slots that are done."""
        self._task = torch.where(done, self._assignments.task, self._task)
        self._goal = torch.where(done, self._assignments.goal, self._goal)
        self._assignments.advance(done)
        self._place(done.nonzero().flatten().tolist())
        self._previous = torch.where(done[:, None], self._first_obs[self._task, self._goal, :FRAME], self._previous)
        self._steps = torch.where(done, 0, self._steps)
        self._regroup()

    def _place(self, slots: Sequence[int]) -> None:
        """Puts the slots into the state after the reset to their task and goal."""
        for slot in slots:
            task, goal = int(self._task[slot]), int(self._goal[slot])
            simulation, scene = self._simulations[slot], self._scenes[task]
            if simulation is None or simulation.scene is not scene:
                if simulation is not None:
                    simulation.scene.give(simulation)
                simulation = self._simulations[slot] = scene.take()
            simulation.reset(self._pool[task], goal)
            self._control[slot, 2:5] = simulation.data.mocap_pos[0]

    def _regroup(self) -> None:
        """Follows changes of the slots' tasks and goals."""
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        self._groups, self._outcomes = [], []
        for task in self._task.unique().tolist():
            slots = (self._task == task).nonzero().flatten()
            first, last = int(slots[0]), int(slots[-1])
            rows = slice(first, last + 1) if last - first + 1 == len(slots) else slots
            constants = Constants(self._constants[task], self._goal[slots])
            untouched = torch.zeros(len(slots), dtype=torch.bool)
            self._groups.append(_Group(self._tasks[task], self._scenes[task], rows, constants, untouched))

    # --- A step ---

    def _simulate(self, action: NDArray[np.float32]) -> None:
        """Five steps of physics in every slot, then the sensors of where they led."""
        control, task = self._control, self._task.numpy()
        control[:, 0], control[:, 1] = action[:, 3], -action[:, 3]
        # In the precision of the official code: the displacement is float32, the position float64.
        moved = control[:, 2:5] + action[:, :3] * np.float32(self._action_scale)
        control[:, 2:5] = np.clip(moved, self._mocap_low[task], self._mocap_high[task])
        clock = self._sensors[:, 0].copy()
        slots = itertools.count()  # shared: each thread takes the next slot that no other has taken
        futures = (
            [self._executor.submit(self._work, slots) for _ in range(self._num_threads - 1)]
            if (self._executor is not None)
            else []
        )
        self._work(slots)
        for future in futures:
            future.result()
        for slot in np.flatnonzero(self._sensors[:, 0] <= clock * (self._steps.numpy() > 0)):
            # MuJoCo has found an unstable state and gone back to the scene's default pose, with its mocap body.
            simulation = self._simulations[slot]
            assert simulation is not None
            control[slot, 2:5] = simulation.data.mocap_pos[0]

    def _work(self, slots: Iterator[int]) -> None:
        """Simulates slots until none is left."""
        simulations, control, sensors, num_envs = self._simulations, self._control, self._sensors, self.num_envs
        set_state, step, forward, spec = mujoco.mj_setState, mujoco.mj_step, mujoco.mj_forward, int(CONTROL)
        for slot in slots:
            if slot >= num_envs:
                return
            simulation = simulations[slot]
            assert simulation is not None
            model, data = simulation.model, simulation.data
            set_state(model, data, control[slot], spec)
            step(model, data, nstep=FRAME_SKIP)
            forward(model, data)  # for the poses; it also warm-starts the next step, so that it cannot be less
            sensors[slot, : simulation.scene.num_sensors] = data.sensordata

    def _evaluate(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observation (B, 39), reward (B,) and success (B,) of the sensors."""
        reward = torch.zeros(self.num_envs, dtype=torch.float64)
        success = torch.zeros(self.num_envs, dtype=torch.bool)
        with torch.no_grad():
            sensors, action = torch.from_numpy(self._sensors), action.double()
            hand, right_claw, left_claw, right_finger, left_finger, right_pad, left_pad = sensors[:, 1:22].split(3, 1)
            tcp_center = (right_finger + left_finger) / 2
            frame = torch.zeros(self.num_envs, FRAME, dtype=torch.float64)
            frame[:, :3] = hand
            frame[:, 3] = (norm(right_claw - left_claw) / 0.1).clamp(0.0, 1.0)
            poses = []
            for group in self._groups:
                rows = sensors[group.rows]
                poses.append({name: group.scene.read(rows, pose) for name, pose in group.task.poses.items()})
                column = 4
                for position, quat in group.task.objects(poses[-1]):
                    frame[group.rows, column : column + 3] = position
                    if quat is not None:
                        frame[group.rows, column + 3 : column + 7] = quat
                    column += 7
            goal = self._first_obs[self._task, self._goal, 2 * FRAME :]
            obs = torch.cat((frame, self._previous, goal), dim=1)
            obs = obs.clamp(self._obs_low[self._task], self._obs_high[self._task])
            self._previous = frame
            self._outcomes = []
            for group, group_poses in zip(self._groups, poses, strict=True):
                rows = group.rows
                state = TaskState(
                    obs=obs[rows],
                    action=action[rows],
                    tcp_center=tcp_center[rows],
                    left_pad=left_pad[rows],
                    right_pad=right_pad[rows],
                    poses=group_poses,
                    constants=group.constants,
                    touching=group.untouched,
                )
                outcome = group.task.evaluate(state)
                reward[rows], success[rows] = outcome.reward, outcome.success
                self._outcomes.append(outcome)
        return obs, reward, success


def _scenes(tasks: Sequence[Task], pool: Sequence[TaskResets]) -> list[Scene]:
    """The scene of each task; tasks with the same file share it."""
    poses: dict[str, list[Pose]] = {}
    for task, resets in zip(tasks, pool, strict=True):
        poses.setdefault(resets.scene, []).extend(task.poses.values())
    compiled = {file: Scene(str(scene_path(file)), wanted) for file, wanted in poses.items()}
    return [compiled[resets.scene] for resets in pool]
