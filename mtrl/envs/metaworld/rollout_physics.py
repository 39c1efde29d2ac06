"""Physics `rollout`: the official simulation, bit for bit, in threads, with batched observations, rewards and success.

Each slot has its own `MjModel` (goals move bodies and sites in the model) and `MjData`. A step repeats the official one
in each slot (mocap, control, five `mj_step`, one `mj_forward`), in threads, since MuJoCo releases Python's lock.
`mujoco.rollout` would need fewer calls, but does not return the solver's warm start, so that every step would begin
with another one than the official step, and contacts would soon diverge. Python adds about 5 µs to the 75 µs of a
physics step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.envs.base import Assignments, check_action, check_num_envs, check_truncate
from mtrl.envs.metaworld.observe import FRAME, Constants, Gripper, Group, frames, outcomes
from mtrl.envs.metaworld.resets import STATE, reset_pool
from mtrl.envs.metaworld.scenes import Simulation, scenes
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.metaworld.tasks import TASKS, Outcome
from mtrl.envs.metaworld.tasks.ops import Array
from mtrl.envs.metaworld.tasks_v1 import TASKS_V1
from mtrl.system.cores import available_cores
from mtrl.types import State, Step, UserError

FRAME_SKIP = 5
"""Physics steps per step of the environment."""
CONTROL = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
"""What an action sets: 2 controls, position and quaternion of the mocap body."""
MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)


class RolloutVecEnv:
    """A `VecEnv` of Meta-World with MuJoCo in threads. Trajectories are the official ones for any number of threads.

    MuJoCo resets an unstable simulation to the scene's default pose and continues, as in the official environments.

    Args:
        suite: Tasks and goals.
        num_envs: B; None for one slot per task.
        seed: Seed of the drawing of goals.
        device: Device of the tensors in a step.
        num_workers: Threads; None for one per core, 0 and 1 for the calling thread only.
        exact_info: Checks the contacts at every step, for `grasp_success` in `info`. Otherwise it may be false while
            the gripper holds the object. Nothing else depends on it.

    Raises:
        UserError: There is no batched version of a task, or `num_envs` is not a multiple of the number of tasks.
    """

    def __init__(
        self,
        suite: Suite,
        num_envs: int | None,
        seed: int,
        device: torch.device | str,
        num_workers: int | None = None,
        exact_info: bool = False,
    ) -> None:
        tasks = {"v1": TASKS_V1, "v2": TASKS}[suite.reward_version]
        missing = [name for name in suite.task_names if name not in tasks]
        if missing:
            raise UserError(f"physics=rollout has no {', '.join(missing)} yet: use physics=official.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must not be negative, but is {num_workers}.")
        self.spec = suite.spec
        self.num_envs = check_num_envs(num_envs, self.spec.num_tasks)
        self.num_goals = len(suite.goals[0])
        self._device = torch.device(device)
        self._horizon = suite.horizon
        self._num_threads = min(max(1, available_cores() if num_workers is None else num_workers), self.num_envs)
        self._executor = ThreadPoolExecutor(self._num_threads - 1) if self._num_threads > 1 else None

        self._pool = reset_pool(suite.task_names, suite.goals, self._num_threads)
        self._tasks = [tasks[name] for name in suite.task_names]
        self._scenes = scenes(self._tasks, self._pool)
        self._first_obs = np.stack([resets.obs for resets in self._pool])  # (K, G, 39)
        self._obs_low, self._obs_high = (
            np.stack(bounds) for bounds in ([r.obs_low for r in self._pool], [r.obs_high for r in self._pool])
        )
        if not suite.goal_visible:
            for obs in (self._first_obs, self._obs_low, self._obs_high):
                obs[..., 2 * FRAME :] = 0.0
        self._mocap_low, self._mocap_high = (
            np.stack(bounds) for bounds in ([r.mocap_low for r in self._pool], [r.mocap_high for r in self._pool])
        )
        self._action_scale = np.stack([resets.action_scale for resets in self._pool]).astype(np.float32)  # (K, 1)

        num_envs = self.num_envs
        self._simulations: list[Simulation | None] = [None] * num_envs
        self._control = np.zeros((num_envs, 9))
        self._control[:, 5:] = MOCAP_QUAT
        self._clock = np.zeros(num_envs)
        self._sensors = np.zeros((num_envs, max(scene.num_sensors for scene in self._scenes)))
        self._previous = np.zeros((num_envs, FRAME))
        self._steps = torch.zeros(num_envs, dtype=torch.int64)
        self._assignments = Assignments(num_envs, self.spec.num_tasks, self.num_goals, seed, torch.device("cpu"))
        self._task, self._goal = self._assignments.task, self._assignments.goal
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        self._groups: list[Group] = []
        self._outcomes: list[tuple[Array | slice, Outcome]] = []
        self._exact_info = exact_info
        self._running, self._closed = False, False

    # --- The interface of `VecEnv` ---

    def reset(self, seed: int | None = None) -> Tensor:
        self._check_open()
        if seed is not None:
            self._assignments.reseed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool))
        self._running = True
        return self._tensor(self._first())

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        self._check_open()
        if not self._running:
            raise RuntimeError("Call reset before the first step.")
        moves = check_action(action, self.spec, self.task)
        self._simulate(moves.numpy())
        final_obs, reward, success = self._evaluate(moves.numpy())
        self._steps += 1
        done = (self._steps >= self._horizon) | check_truncate(truncate, self.num_envs).cpu()
        task, last = self.task, self._tensor(final_obs)
        obs = last
        if done.any():
            self._begin(done)
            obs = self._tensor(np.where(done.numpy()[:, None], self._first(), final_obs))
        return Step(
            obs=obs,
            reward=self._tensor(reward),
            terminated=torch.zeros(self.num_envs, dtype=torch.bool, device=self._device),
            truncated=done.to(self._device),
            success=torch.from_numpy(success).to(self._device),
            task=task,
            final_obs=last,
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
            "previous": torch.from_numpy(self._previous.copy()),
            "steps": self._steps.clone(),
            "assignments": self._assignments.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` if the state has a different number of slots."""
        self._assignments.check_running(state)
        self._assignments.load_state_dict(state["assignments"])
        self._task, self._goal = state["task"].cpu().clone(), state["goal"].cpu().clone()
        self._running = state["running"]
        if self._running:
            self._place(range(self.num_envs))
            for slot, row in enumerate(state["physics"].cpu().numpy()):
                simulation = self._simulation(slot)
                mujoco.mj_setState(simulation.model, simulation.data, row[: simulation.scene.state_size], STATE)
                self._follow(slot)
        self._previous, self._steps = state["previous"].cpu().numpy().copy(), state["steps"].cpu().clone()
        self._regroup()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        self._closed = True
        self._simulations = [None] * self.num_envs

    def info(self) -> dict[str, Tensor]:
        """The official info of the last step, each (B,) float32. See `exact_info` about `grasp_success`."""
        info = {}
        for field in Outcome._fields[2:]:
            values = np.zeros(self.num_envs, np.float32)
            for rows, outcome in self._outcomes:
                values[rows] = getattr(outcome, field)
            info[field] = torch.from_numpy(values).to(self._device)
        return info

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
        self._previous = np.where(done.numpy()[:, None], self._first()[:, :FRAME], self._previous)
        self._steps = torch.where(done, 0, self._steps)
        self._regroup()

    def _place(self, slots: Sequence[int]) -> None:
        """Resets the simulations of the slots to their task and goal."""
        for slot in slots:
            task, goal = int(self._task[slot]), int(self._goal[slot])
            simulation, scene = self._simulations[slot], self._scenes[task]
            if simulation is None or simulation.scene is not scene:
                if simulation is not None:
                    simulation.scene.give(simulation)
                simulation = self._simulations[slot] = scene.take()
            simulation.reset(self._pool[task], goal)
            self._follow(slot)

    def _follow(self, slot: int) -> None:
        """Reads the mocap position and the clock of a simulation after its state was set."""
        data = self._simulation(slot).data
        self._control[slot, 2:5], self._clock[slot] = data.mocap_pos[0], data.time

    def _regroup(self) -> None:
        """Updates everything that depends on the slots' tasks and goals."""
        self.task, self.goal = self._task.to(self._device), self._goal.to(self._device)
        self._groups = []
        for task in self._task.unique().tolist():
            slots = (self._task == task).nonzero().flatten().numpy()
            rows = slice(slots[0], slots[-1] + 1) if slots[-1] - slots[0] + 1 == len(slots) else slots
            constants = Constants(self._pool[task].constants, self._goal.numpy()[slots])
            untouched = np.zeros(len(slots), bool)
            self._groups.append(Group(self._tasks[task], task, slots, rows, constants, untouched))
        indices = self._task.numpy(), self._goal.numpy()
        self._goal_obs = self._first_obs[indices][:, 2 * FRAME :]
        self._low, self._high = self._obs_low[indices[0]], self._obs_high[indices[0]]

    def _first(self) -> Array:
        """First observation (B, 39) of each slot's task and goal."""
        return self._first_obs[self._task.numpy(), self._goal.numpy()]

    def _tensor(self, values: Array) -> Tensor:
        """A float32 copy on the device."""
        return torch.from_numpy(values.astype(np.float32)).to(self._device)

    # --- A step ---

    def _simulate(self, action: NDArray[np.float32]) -> None:
        """Takes five physics steps in every slot, and reads the sensors."""
        control, task = self._control, self._task.numpy()
        control[:, 0], control[:, 1] = action[:, 3], -action[:, 3]
        # The precision of the official code: the displacement is float32, the position float64.
        moved = control[:, 2:5] + action[:, :3] * self._action_scale[task]
        control[:, 2:5] = np.clip(moved, self._mocap_low[task], self._mocap_high[task])
        slots = itertools.count()  # shared by the threads, each of which takes the next slot
        helpers = range(self._num_threads - 1)
        futures = [self._executor.submit(self._work, slots) for _ in helpers] if self._executor is not None else []
        try:
            self._work(slots)
        finally:
            wait(futures)  # also when interrupted: a running simulation must not be read
        for future in futures:
            future.result()
        clock = self._sensors[:, 0]
        for slot in np.flatnonzero(clock <= self._clock).tolist():
            # MuJoCo found an unstable state and went back to the scene's default pose, including the mocap body.
            control[slot, 2:5] = self._simulation(slot).data.mocap_pos[0]
        self._clock = clock.copy()

    def _simulation(self, slot: int) -> Simulation:
        simulation = self._simulations[slot]
        assert simulation is not None
        return simulation

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
            forward(model, data)  # for the poses; also the official warm start of the next step
            sensors[slot, : simulation.scene.num_sensors] = data.sensordata

    def _evaluate(self, action: NDArray[np.float32]) -> tuple[Array, Array, Array]:
        """Observation (B, 39), reward (B,) and success (B,) from the sensors, in float64 and bool."""
        sensors, moves = self._sensors, action.astype(np.float64)
        gripper = Gripper(*(sensors[:, column : column + 3] for column in range(1, 22, 3)))
        poses = [self._scenes[group.task_id].read(sensors[group.rows], group.task.poses) for group in self._groups]
        frame = frames(gripper, self._groups, poses)
        obs = np.concatenate((frame, self._previous, self._goal_obs), axis=1).clip(self._low, self._high)
        self._previous = frame
        by_group = outcomes(gripper, self._groups, poses, obs, moves, self._touching, self._exact_info)
        self._outcomes = [(group.rows, outcome) for group, outcome in zip(self._groups, by_group, strict=True)]
        reward, success = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        for rows, outcome in self._outcomes:
            reward[rows], success[rows] = outcome.reward, outcome.success
        return obs, reward, success

    def _touching(self, group: Group, matters: Array) -> Array:
        """(N,) bool: `TaskState.touching` for the slots in the mask `matters`."""
        touching = np.zeros_like(matters)
        for i in np.flatnonzero(matters):
            touching[i] = self._simulation(int(group.slots[i])).touching(group.task.main_geom)
        return touching
