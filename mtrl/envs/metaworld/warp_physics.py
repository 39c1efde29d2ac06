"""Physics `warp`: Meta-World in MuJoCo Warp, thousands of slots on a GPU, with the rewards of `rollout`.

Tasks whose scenes have one structure share a model and data of Warp (6 for MT10, 27 for MT50), with a world for each of
their slots. A control step is a function of tensors: it writes the state, the places that goals determine, and actions
into Warp's arrays (as torch views), takes five steps and one forward, and reads the poses, from which the functions of
`observe` make observation, reward and success. On a GPU it is one CUDA graph. A reset is a row of the reset
pool, chosen on the device: nothing settles here.

Differences from the official physics (mujoco 3.3.0): single precision, another solver and other contacts. `docs/gpu.md`
says how large they are.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtrl.envs.base import TorchVecEnv
from mtrl.envs.metaworld.goals import NUM_GOALS
from mtrl.envs.metaworld.observe import COMMON, FRAME, Constants, Gripper, Group, frames, outcomes
from mtrl.envs.metaworld.resets import TaskResets, reset_pool
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.metaworld.tasks import TASKS
from mtrl.envs.metaworld.tasks_v1 import TASKS_V1
from mtrl.envs.metaworld.warp_packages import Packages, first_on_path
from mtrl.envs.metaworld.warp_scenes import SharedScene, shared_scenes
from mtrl.types import State, UserError

FRAME_SKIP = 5
"""Physics steps per step of the environment."""
MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)
"""The official orientation of the mocap body, always."""
LARGEST = 1e10
"""Beyond this MuJoCo calls a simulation unstable, and resets it."""

LONG = 60
"""Seconds of compilation that are worth a line in the log."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How Warp simulates. The defaults are those of `env.physics=warp`; `benchmarks/warp_speed.py` compares others."""

    contacts: int = 48
    """Contacts for which there is memory, per world, shared by the worlds of a scene."""
    constraints: int = 160
    """Rows of constraints for which there is memory, per world. The weld of the hand has 6, a contact 3 to 6."""
    conditional: bool = True
    """Whether a CUDA graph ends the solver's iterations when all worlds have converged, or always takes the most."""
    forked: bool = True
    """Whether the scenes have streams of their own on a GPU, so that their kernels overlap."""


class Worlds:
    """The model and data of a scene, with a world for each of n slots.

    Args:
        packages: Of Warp.
        settings: Of Warp.
        scene: The scene.
        slots: (n,) the slots that run its tasks, in order.
        device: Of all tensors.
    """

    def __init__(
        self,
        packages: Packages,
        settings: Settings,
        scene: SharedScene,
        slots: Int[Tensor, " n"],
        device: torch.device,
    ) -> None:
        self.scene, self.slots, self._mjw = scene, slots, packages.mujoco_warp
        wp, num_worlds = packages.warp, len(slots)
        self._on_device = functools.partial(wp.ScopedDevice, wp.device_from_torch(device))
        with first_on_path(), self._on_device():
            self.model = self._mjw.put_model(scene.model)
            self.model.opt.graph_conditional = settings.conditional
            self.model.opt.warn_overflow = 0  # which would print in every step; it is counted instead
            memory = {"nconmax": settings.contacts, "njmax": settings.constraints}
            self.data = self._mjw.make_data(scene.model, nworld=num_worlds, **memory)
            self._tables = {}
            for name, rows in scene.fields.items():
                shared = getattr(self.model, name)
                per_world = wp.zeros((num_worlds, *shared.shape[1:]), dtype=shared.dtype)
                setattr(self.model, name, per_world)
                view = wp.to_torch(per_world)
                table = torch.from_numpy(rows.reshape(len(rows), *view.shape[1:])).to(device, view.dtype)
                self._tables[name] = (view, table)
        self._arrays: dict[str, Tensor] = {}
        self._to_torch = wp.to_torch
        self._static = tuple(
            torch.from_numpy(array).to(device) if array.dtype.kind == "i" else _float32(array, device)
            for array in (scene.static_geoms, scene.static_pos, scene.static_mat)
        )
        parts = (scene.qpos, scene.qvel, scene.qacc_warmstart, scene.mocap_pos)
        self.sizes = [part.shape[1] for part in parts]
        self.first = _float32(np.concatenate(parts, axis=1), device)
        """(R, W) state after the reset: qpos, qvel, warm start of the solver, position of the mocap body."""
        self.array("mocap_quat").copy_(functional.normalize(torch.tensor(MOCAP_QUAT), dim=0))
        default = (scene.model.qpos0, np.zeros(2 * scene.model.nv))
        self._default = _float32(np.concatenate(default), device)
        kinds = self._mjw.OverflowType
        self._no_memory = int(kinds.NEFC | kinds.NJMAX_NNZ | kinds.BROADPHASE | kinds.NARROWPHASE | kinds.CCD)
        self._contact_numbers = torch.arange(len(self.array("contact.worldid")), device=device)

    def array(self, name: str) -> Tensor:
        """A torch view of an array of the data, (n, ...)."""
        if name not in self._arrays:
            node = self.data
            for part in name.split("."):
                node = getattr(node, part)
            self._arrays[name] = self._to_torch(node)
        return self._arrays[name]

    def pose(self, place: tuple[str, int]) -> Tensor:
        """A view of a pose in all worlds, (n, ...)."""
        array, index = place
        return self.array(array)[:, index]

    def simulate(
        self, state: Float[Tensor, "n W"], row: Int[Tensor, " n"], mocap_pos: Float[Tensor, "n 3"], effort: Tensor
    ) -> tuple[Float[Tensor, "n W"], Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Five steps and one forward.

        Args:
            state: As in `first`.
            row: Row of the scene of each world.
            mocap_pos: Where the mocap body goes, which replaces its position in `state`.
            effort: (n,) of the gripper.

        Returns:
            The next state, which simulations were unstable (and reset), and which had no memory for a contact.
        """
        self.write(state, row, mocap_pos, effort)
        self.array("overflow").zero_()
        with self._on_device():
            # Warp's constraints read velocities (`cvel`, `cdof_dot`) that the step before has left: here those of the
            # state, so that they do not come from another episode.
            for stage in (self._mjw.kinematics, self._mjw.com_pos, self._mjw.com_vel):
                stage(self.model, self.data)
            for _ in range(FRAME_SKIP):
                self._mjw.step(self.model, self.data)
        overflow = (self.array("overflow") & self._no_memory) != 0
        unstable = self._mend()
        self.forward()  # for the poses; also the official warm start of the next step
        parts = (self.array("qpos"), self.array("qvel"), self.array("qacc"), mocap_pos)
        return torch.cat(parts, dim=1), unstable, overflow

    def touching(self, geoms: tuple[int, int, int]) -> Bool[Tensor, " n"]:
        """Whether both pads press the main geom. False if there is none.

        Args:
            geoms: Ids of the main geom, the left pad and the right pad.
        """
        main, *pads = geoms
        pair, world = self.array("contact.geom"), self.array("contact.worldid").long().clamp(0, len(self.slots) - 1)
        row, all_forces = self.array("contact.efc_address")[:, 0].long(), self.array("efc.force")
        used = (self._contact_numbers < self.array("nacon")) & (row >= 0) & (pair == main).any(1) & (main >= 0)
        force = all_forces[world, row.clamp(0, all_forces.shape[1] - 1)]
        pressed = torch.ones(len(self.slots), dtype=torch.bool, device=world.device)
        for pad in pads:
            of_pad = torch.where(used & (pair == pad).any(1), force, 0.0)
            pressed &= force.new_zeros(len(self.slots)).index_add_(0, world, of_pad) > 0
        return pressed

    def forward(self) -> None:
        """Computes poses, contacts and accelerations of what `write` has set."""
        with self._on_device():
            self._mjw.forward(self.model, self.data)

    def write(self, state: Tensor, row: Tensor, mocap_pos: Tensor, effort: Tensor) -> None:
        """Sets the state, and what depends on goal and action. See `simulate`."""
        for view, table in self._tables.values():
            view.copy_(table[row])
        geoms, pos, mat = self._static
        self.array("geom_xpos")[:, geoms] = pos[row]
        self.array("geom_xmat")[:, geoms] = mat[row]
        qpos, qvel, warmstart, _ = state[:, : sum(self.sizes)].split(self.sizes, dim=1)
        self.array("qpos").copy_(qpos)
        self.array("qvel").copy_(qvel)
        self.array("qacc_warmstart").copy_(warmstart)
        self.array("mocap_pos").copy_(mocap_pos[:, None])
        self.array("ctrl").copy_(torch.stack((effort, -effort), dim=1))

    def _mend(self) -> Bool[Tensor, " n"]:
        """Puts unstable simulations into the scene's default pose, and returns which these are."""
        state = torch.cat([self.array(name) for name in ("qpos", "qvel", "qacc_warmstart")], dim=1)
        unstable = ~(state.abs() < LARGEST).all(1)
        mended = torch.where(unstable[:, None], self._default, state)
        for name, part in zip(("qpos", "qvel", "qacc_warmstart"), mended.split(self.sizes[:3], dim=1), strict=True):
            self.array(name).copy_(part)
        return unstable


@dataclass(frozen=True)
class Inputs:
    """What a control step depends on, for B slots."""

    action: Float[Tensor, "B 4"]
    task: Int[Tensor, " B"]
    goal: Int[Tensor, " B"]
    physics: Float[Tensor, "B W"]
    frame: Float[Tensor, "B 18"]
    """Part of the last observation about its present."""


@dataclass(frozen=True)
class Outputs:
    """What a control step returns, for B slots."""

    physics: Float[Tensor, "B W"]
    frame: Float[Tensor, "B 18"]
    obs: Float[Tensor, "B 39"]
    reward: Float[Tensor, " B"]
    success: Bool[Tensor, " B"]


class OneStream:
    """Scenes one after the other."""

    def fork(self) -> None: ...

    def enter(self, number: int) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None: ...


class Streams(OneStream):
    """A CUDA stream for each scene, forked from the current one and joined with it again."""

    def __init__(self, packages: Packages, number: int, device: torch.device) -> None:
        self._wp, self._device = packages.warp, device
        self._streams = [torch.cuda.Stream(device) for _ in range(number)]
        self._of_warp = [packages.warp.stream_from_torch(stream) for stream in self._streams]

    def fork(self) -> None:
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))

    @contextmanager
    def enter(self, number: int) -> Iterator[None]:
        scoped = self._wp.ScopedStream(self._of_warp[number], sync_enter=False)
        with torch.cuda.stream(self._streams[number]), scoped:
            yield

    def join(self) -> None:
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)


class ControlStep:
    """One step of all slots: a function of its inputs, except that it counts what went wrong.

    All tasks of a scene are evaluated in all slots that simulate it, and each slot takes the result of its own, so that
    shapes are the same whatever the slots run.

    Args:
        packages: Of Warp.
        settings: Of Warp.
        suite: Tasks.
        pool: Their resets.
        task: (B,) a task of each slot, whose scene it keeps.
        device: Of all tensors.
    """

    def __init__(
        self,
        packages: Packages,
        settings: Settings,
        suite: Suite,
        pool: Sequence[TaskResets],
        task: Int[Tensor, " B"],
        device: torch.device,
    ) -> None:
        registered = {"v1": TASKS_V1, "v2": TASKS}[suite.reward_version]
        if missing := [name for name in suite.task_names if name not in registered]:
            raise UserError(f"physics=warp has no {', '.join(missing)} yet: use physics=official.")
        self._tasks = tasks = [registered[name] for name in suite.task_names]
        scenes = shared_scenes(tasks, pool, packages.mujoco_warp, lambda model: _prepare(packages, model))
        num_tasks, num_envs = len(tasks), len(task)
        self.scene_of = torch.empty(num_tasks, dtype=torch.int64)
        """(K,) number of the scene of each task."""
        for number, scene in enumerate(scenes):
            self.scene_of[list(scene.tasks)] = number
        here = self.scene_of[task.cpu()]
        self.worlds = [
            Worlds(packages, settings, scene, (here == number).nonzero().flatten().to(device), device)
            for number, scene in enumerate(scenes)
        ]
        forked = settings.forked and device.type == "cuda"
        self._streams = Streams(packages, len(scenes), device) if forked else OneStream()
        self.width = max(worlds.first.shape[1] for worlds in self.worlds)
        """W."""
        self.first_physics = torch.zeros(num_tasks, NUM_GOALS, self.width, device=device)
        """(K, G, W) state after the reset."""
        self.unstable = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        """(K,) steps in which a simulation was unstable, and reset to the scene's default pose."""
        self.overflow = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        """(K,) steps in which there was no memory for a contact."""

        # Each task of a scene in each slot of the scene: V candidates, in this order.
        self._members: list[tuple[Worlds, int, int]] = []  # worlds, number of the task among theirs, its id
        slots: list[Tensor] = []
        first_candidate = torch.zeros(num_envs, dtype=torch.int64, device=device)
        offset = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        start = 0
        for worlds in self.worlds:
            n, ids = len(worlds.slots), worlds.scene.tasks
            first_candidate[worlds.slots] = start + torch.arange(n, device=device)
            for i, k in enumerate(ids):
                self._members.append((worlds, i, k))
                slots.append(worlds.slots)
                offset[k] = i * n
                self.first_physics[k, :, : worlds.first.shape[1]] = worlds.first[i * NUM_GOALS : (i + 1) * NUM_GOALS]
            start += n * len(ids)
        self._offset, self._first_candidate, self._slot = offset, first_candidate, torch.cat(slots)
        task_of = torch.cat([torch.full((len(w.slots),), k, device=device) for w, _, k in self._members])
        self._task_of_candidate = task_of
        self._row = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        for _, i, k in self._members:
            self._row[k] = i * NUM_GOALS
        low, high = (np.stack(bounds) for bounds in zip(*[(r.obs_low, r.obs_high) for r in pool], strict=True))
        first_obs = np.stack([resets.obs for resets in pool])  # (K, G, 39)
        if not suite.goal_visible:
            for obs in (low, high, first_obs):
                obs[..., 2 * FRAME :] = 0.0
        self.first_obs = _float32(first_obs, device)
        self._low, self._high = _float32(low, device)[task_of], _float32(high, device)[task_of]
        self._mocap_low, self._mocap_high, self._scale = (
            _float32(np.stack(values), device)
            for values in zip(*[(r.mocap_low, r.mocap_high, r.action_scale) for r in pool], strict=True)
        )
        self._constants = [{name: _float32(v, device) for name, v in r.constants.items()} for r in pool]

    def __call__(self, inputs: Inputs) -> Outputs:
        return self.evaluate(inputs, self.simulate(inputs))

    def simulate(self, inputs: Inputs) -> Float[Tensor, "B W"]:
        """The physics of a step: the next state. Poses and contacts are left in Warp's arrays."""
        task, goal = inputs.task, inputs.goal
        physics = torch.zeros_like(inputs.physics)
        unstable, overflow = (torch.zeros_like(task, dtype=torch.bool) for _ in range(2))
        self._streams.fork()
        for number, worlds in enumerate(self.worlds):
            # Memory that is used on a stream is also allocated there, since the streams do not wait for each other.
            with self._streams.enter(number):
                rows, size = worlds.slots, worlds.first.shape[1]
                before, own_task, action = inputs.physics[rows], task[rows], inputs.action[rows]
                moved = before[:, size - 3 : size] + action[:, :3] * self._scale[own_task]
                mocap_pos = moved.clamp(self._mocap_low[own_task], self._mocap_high[own_task])
                row = self._row[own_task] + goal[rows]
                after, unstable[rows], overflow[rows] = worlds.simulate(before, row, mocap_pos, action[:, 3])
                physics[rows, :size] = after
        self._streams.join()
        self.unstable.index_add_(0, task, unstable.long())
        self.overflow.index_add_(0, task, overflow.long())
        return physics

    def evaluate(self, inputs: Inputs, physics: Float[Tensor, "B W"]) -> Outputs:
        """Observation, reward and success from the poses that `simulate` has left."""
        groups, poses, common, start = [], [], [], 0
        places: dict[int, tuple[Worlds, tuple[int, int, int]]] = {}
        for worlds, i, k in self._members:
            n, columns = len(worlds.slots), worlds.scene.columns[i]
            rows = slice(start, start + n)
            start += n
            constants = Constants(self._constants[k], inputs.goal[worlds.slots])
            untouched = torch.zeros(n, dtype=torch.bool, device=physics.device)
            groups.append(Group(self._tasks[k], k, worlds.slots, rows, constants, untouched))
            poses.append({name: worlds.pose(columns[pose]) for name, pose in self._tasks[k].poses.items()})
            common.append([worlds.pose(columns[pose]) for pose in COMMON])
            places[k] = (worlds, worlds.scene.contact_geoms[i])

        def touching(group: Group, matters: Tensor) -> Tensor:
            worlds, geoms = places[group.task_id]
            return worlds.touching(geoms) & matters

        gripper = Gripper(*(torch.cat(parts) for parts in zip(*common, strict=True)))
        frame = frames(gripper, groups, poses)
        goal_obs = self.first_obs[self._task_of_candidate, inputs.goal[self._slot], 2 * FRAME :]
        obs = torch.cat((frame, inputs.frame[self._slot], goal_obs), dim=1).clamp(self._low, self._high)
        results = outcomes(gripper, groups, poses, obs, inputs.action[self._slot], touching, exact_info=False)
        candidate = self._first_candidate + self._offset[inputs.task]
        return Outputs(
            physics=physics,
            frame=frame[candidate],
            obs=obs[candidate],
            reward=torch.cat([outcome.reward for outcome in results])[candidate],
            success=torch.cat([outcome.success for outcome in results])[candidate],
        )


class WarpVecEnv(TorchVecEnv):
    """A `VecEnv` of Meta-World in MuJoCo Warp, on a GPU or, slowly, on a CPU.

    Slots change their task only for one with the same scene, since a world belongs to the model of its scene. A
    simulation that becomes unstable continues from the scene's default pose, as in the official environments.

    Args:
        packages: Of Warp.
        suite: Tasks and goals.
        num_envs: B; None for one slot per task.
        seed: Seed of the drawing of goals.
        device: Device of the simulation and of all tensors.
        settings: Of Warp.

    Raises:
        UserError: There is no batched version of a task, or `num_envs` is not a multiple of the number of tasks.
    """

    def __init__(
        self,
        packages: Packages,
        suite: Suite,
        num_envs: int | None,
        seed: int,
        device: torch.device | str,
        settings: Settings = Settings(),
    ) -> None:
        super().__init__(suite.spec, num_envs, NUM_GOALS, seed, device)
        self._horizon, self._names, self._settings = suite.horizon, suite.task_names, settings
        pool = reset_pool(suite.task_names, suite.goals)
        started = time.perf_counter()
        self.control_step = ControlStep(packages, settings, suite, pool, self.task, self.device)
        self._scene_of_slot = self.control_step.scene_of[self.task.cpu()]
        self.variables |= self.begin()
        inputs = self.inputs(torch.zeros(self.num_envs, self.spec.action_dim, device=self.device))
        self._run = compiled(packages, self.control_step, inputs)
        self.seconds_to_compile = time.perf_counter() - started
        """Time for making the models, and for compiling the kernels or loading them from the cache."""
        if self.seconds_to_compile > LONG:
            log.warning("physics=warp: ready after %.0f s; kernels are kept in the cache.", self.seconds_to_compile)
        self.control_step.unstable.zero_()
        self.control_step.overflow.zero_()
        self._reported = (0, 0)

    def begin(self) -> dict[str, Tensor]:
        obs = self.control_step.first_obs[self.task, self.goal]
        physics = self.control_step.first_physics[self.task, self.goal]
        return {"obs": obs, "frame": obs[:, :FRAME], "physics": physics}

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result = self._run(self.inputs(action))
        self.variables |= {"obs": result.obs, "frame": result.frame, "physics": result.physics}
        truncated = self.variables["step"] >= self._horizon
        return result.reward, torch.zeros_like(truncated), truncated, result.success

    def observe(self) -> Tensor:
        return self.variables["obs"]

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        """See `VecEnv.assign`. Raises `UserError` if a slot would need another scene."""
        self._check_scenes(task)
        super().assign(task, goal)

    def state_dict(self) -> State:
        self._report()
        return super().state_dict()

    def load_state_dict(self, state: State) -> None:
        self._check_scenes(state["task"])
        super().load_state_dict(state)

    def close(self) -> None:
        self._report()
        super().close()

    def inputs(self, action: Tensor) -> Inputs:
        return Inputs(action, self.task, self.goal, self.variables["physics"], self.variables["frame"])

    def _check_scenes(self, task: Tensor) -> None:
        if tuple(task.shape) != (self.num_envs,) or not ((task >= 0) & (task < self.spec.num_tasks)).all():
            return  # what the base class says about it is clearer
        wrong = (self.control_step.scene_of[task.cpu()] != self._scene_of_slot).nonzero().flatten().tolist()
        if wrong:
            names = [self._names[k] for k in self.control_step.worlds[int(self._scene_of_slot[wrong[0]])].scene.tasks]
            raise UserError(
                f"physics=warp: slot {wrong[0]} simulates the scene of {', '.join(names)}, and cannot run "
                f"{self._names[int(task[wrong[0]])]}: use task_sampling=uniform, or physics=rollout."
            )

    def _report(self) -> None:
        """Logs what went wrong since the last report."""
        counts = self.control_step.unstable.tolist(), self.control_step.overflow.tolist()
        if (sums := (sum(counts[0]), sum(counts[1]))) == self._reported:
            return
        self._reported = sums
        problems = (
            "were unstable, and went on from the default pose",
            f"had more than {self._settings.contacts} contacts",
        )
        for count, problem in zip(counts, problems, strict=True):
            if worst := {name: n for name, n in zip(self._names, count, strict=True) if n}:
                steps = ", ".join(f"{name} {n}" for name, n in worst.items())
                log.warning("physics=warp: simulations %s, in so many steps of these tasks: %s.", problem, steps)


def _prepare(packages: Packages, model: Any) -> None:
    """Sets the options of a compiled model: as near to mujoco 3.3.0 as Warp can come, and nothing that is not read."""
    bits = packages.mujoco.mjtDisableBit
    model.opt.disableflags |= bits.mjDSBL_MULTICCD | bits.mjDSBL_NATIVECCD | bits.mjDSBL_SENSOR


def compiled(packages: Packages, function: Callable[[Inputs], Any], example: Inputs) -> Callable[[Inputs], Any]:
    """A function of the inputs of a control step, after its first run, which compiles its kernels.

    On a GPU it becomes one CUDA graph. It must return tensors, alone or in a dataclass.
    """
    if example.action.device.type == "cuda":
        return CudaGraph(packages, function, example)
    function(example)
    return function


class CudaGraph:
    """A function as one CUDA graph of Torch's and Warp's kernels. See `compiled`."""

    def __init__(self, packages: Packages, function: Callable[[Inputs], Any], example: Inputs) -> None:
        wp, device = packages.warp, example.action.device
        self._inputs = _each(torch.clone, example)
        self._graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        of_warp = wp.stream_from_torch(stream)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), wp.ScopedStream(of_warp, sync_enter=False):
            for _ in range(3):  # as torch recommends: libraries allocate in their first calls
                function(self._inputs)
        torch.cuda.synchronize(device)
        # Both in the mode that Warp expects.
        capture = torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
        with capture, wp.ScopedStream(of_warp, sync_enter=False):
            wp.capture_begin(stream=of_warp, external=True)  # Warp is told of a capture that Torch has begun
            self._outputs = function(self._inputs)
            self._held = wp.capture_end(stream=of_warp)  # what Warp has allocated in it

    def __call__(self, inputs: Inputs) -> Any:
        for field in fields(Inputs):
            getattr(self._inputs, field.name).copy_(getattr(inputs, field.name))
        self._graph.replay()
        return _each(torch.clone, self._outputs)


def _each(function: Callable[[Tensor], Tensor], tensors: Any) -> Any:
    """Applies a function to a tensor, or to each of a dataclass."""
    if isinstance(tensors, Tensor):
        return function(tensors)
    return replace(tensors, **{field.name: function(getattr(tensors, field.name)) for field in fields(tensors)})


def _float32(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32)
