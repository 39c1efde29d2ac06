"""Scenes: compiled models with sensors for the poses that tasks read, and simulations of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mujoco

from mtrl.envs.metaworld.observe import COMMON
from mtrl.envs.metaworld.resets import STATE, TaskResets, scene_path
from mtrl.envs.metaworld.tasks import Task
from mtrl.envs.metaworld.tasks.base import Pose
from mtrl.envs.metaworld.tasks.ops import Array

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
    """A compiled scene and its idle simulations.

    Args:
        path: XML file.
        poses: Poses that its tasks read, besides `COMMON`.
        edited: Fields of the model that the goals of its tasks edit.
    """

    def __init__(self, path: str, poses: Sequence[Pose], edited: set[str]) -> None:
        self.edited = edited
        spec = mujoco.MjSpec.from_file(path)
        # Textures and visual meshes make up five sixths of a model's 21 MB.
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
        self.model = spec.compile()
        """The compiled model; never simulated."""
        self._idle: list[Simulation] = []
        self.num_sensors = int(self.model.nsensordata)
        self.state_size = mujoco.mj_stateSize(self.model, STATE)

    def take(self) -> Simulation:
        """An idle simulation, or a new one."""
        if self._idle:
            return self._idle.pop()
        model = copy.copy(self.model)
        return Simulation(self, model, mujoco.MjData(model))

    def give(self, simulation: Simulation) -> None:
        """Returns a simulation to the idle ones."""
        self._idle.append(simulation)

    def read(self, sensors: Array, poses: Mapping[str, Pose]) -> Mapping[str, Array]:
        """Poses (N, ...) by name from the sensor data (N, W)."""
        return {name: self._read(sensors[:, self.columns[pose]], pose) for name, pose in poses.items()}

    def _read(self, values: Array, pose: Pose) -> Array:
        if pose.kind == "joint_pos":
            return values[:, 0]
        if pose.kind.endswith("mat"):
            return values.reshape(-1, 3, 3).swapaxes(1, 2)  # the sensors are the columns of the matrix
        return values


@dataclass(frozen=True)
class Simulation:
    """The simulation of one slot."""

    scene: Scene
    model: mujoco.MjModel
    data: mujoco.MjData

    def reset(self, resets: TaskResets, goal: int) -> None:
        """Begins an episode."""
        for field in self.scene.edited:
            values = resets.model.get(field)
            getattr(self.model, field)[:] = getattr(self.scene.model, field) if values is None else values[goal]
        mujoco.mj_setState(self.model, self.data, resets.state[goal], STATE)

    def touching(self, geom: str) -> bool:
        """Whether both pads press the geom, like `SawyerXYZEnv.touching_object`; False if there is no such geom."""
        if mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, geom) < 0:
            return False
        contact, target = self.data.contact, self.model.geom(geom).id
        pairs = contact.geom  # (contacts, 2)
        with_target = (pairs == target).any(axis=1)
        for pad in ("leftpad_geom", "rightpad_geom"):
            of_pad = with_target & (pairs == self.model.geom(pad).id).any(axis=1)
            if not self.data.efc_force[contact.efc_address[of_pad]].sum() > 0:
                return False
        return True


def scenes(tasks: Sequence[Task], pool: Sequence[TaskResets]) -> list[Scene]:
    """The scene of each task; tasks with the same file share it."""
    poses: dict[str, list[Pose]] = {}
    edited: dict[str, set[str]] = {}
    for task, resets in zip(tasks, pool, strict=True):
        poses.setdefault(resets.scene, []).extend(task.poses.values())
        edited.setdefault(resets.scene, set()).update(resets.model)
    compiled = {file: Scene(str(scene_path(file)), poses[file], edited[file]) for file in poses}
    return [compiled[resets.scene] for resets in pool]
