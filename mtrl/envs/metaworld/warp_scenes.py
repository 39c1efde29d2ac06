"""Scenes for MuJoCo Warp: models that tasks share, and the numbers in which their scenes and goals differ.

A model of Warp holds one value of a field for all worlds, or one for each. So tasks whose scenes have the same bodies,
joints and geoms share a model, and whatever differs between their scenes or goals becomes a field with a value for each
world. Importing this module loads mujoco: `warp_packages.load` comes first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.observe import COMMON
from mtrl.envs.metaworld.resets import TaskResets
from mtrl.envs.metaworld.scenes import scenes
from mtrl.envs.metaworld.tasks import Task
from mtrl.envs.metaworld.tasks.base import Pose

Array = NDArray[Any]

NO_PHYSICS = ("cam", "light", "mat", "tex", "sensor", "taxel", "name")
"""Beginnings of the names of fields that do not act on the simulation."""
_ARRAYS = {
    "body_pos": ("xpos", mujoco.mjtObj.mjOBJ_BODY),
    "body_quat": ("xquat", mujoco.mjtObj.mjOBJ_BODY),
    "body_mat": ("xmat", mujoco.mjtObj.mjOBJ_BODY),
    "geom_pos": ("geom_xpos", mujoco.mjtObj.mjOBJ_GEOM),
    "geom_mat": ("geom_xmat", mujoco.mjtObj.mjOBJ_GEOM),
    "site_pos": ("site_xpos", mujoco.mjtObj.mjOBJ_SITE),
    "site_mat": ("site_xmat", mujoco.mjtObj.mjOBJ_SITE),
    "joint_pos": ("qpos", mujoco.mjtObj.mjOBJ_JOINT),
}
"""The array of the data, and the kind of object, of each kind of pose."""


@dataclass(frozen=True)
class SharedScene:
    """The model of some tasks. R rows: `row = i * G + g` is goal g of `tasks[i]`."""

    tasks: tuple[int, ...]
    """Task ids."""
    model: Any
    """`MjModel` with what all rows share."""
    fields: dict[str, Array]
    """(R, *shape): the fields of the model that differ between rows."""
    static_geoms: Array
    """(S,) ids of the geoms that never move and whose places differ between rows."""
    static_pos: Array
    """(R, S, 3)."""
    static_mat: Array
    """(R, S, 3, 3)."""
    qpos: Array
    """(R, nq) after the reset, like the next three."""
    qvel: Array
    """(R, nv)."""
    qacc_warmstart: Array
    """(R, nv)."""
    mocap_pos: Array
    """(R, 3)."""
    columns: tuple[dict[Pose, tuple[str, int]], ...]
    """For each task: the array of the data, and the index in it, of `COMMON` and of its own poses."""
    contact_geoms: tuple[tuple[int, int, int], ...]
    """For each task: ids of its main geom (-1: none) and of the pads, for `TaskState.touching`."""


def shared_scenes(
    tasks: Sequence[Task], pool: Sequence[TaskResets], mujoco_warp: ModuleType, prepare: Callable[[Any], None]
) -> list[SharedScene]:
    """The scenes of all tasks, those with one structure together.

    Args:
        tasks: By task id.
        pool: Their resets.
        mujoco_warp: The package, whose `Model` says which fields can differ between worlds.
        prepare: Sets the options of a compiled `MjModel` in place.
    """
    models = [scene.model for scene in scenes(tasks, pool)]
    for model in {id(model): model for model in models}.values():
        prepare(model)
    specs = {field.name: field.type for field in dataclasses.fields(mujoco_warp.Model)}
    per_world = [name for name, spec in specs.items() if _is_batched(spec) and hasattr(models[0], name)]
    fixed = [name for name in specs if name not in per_world and not name.startswith(NO_PHYSICS)]
    members: dict[str, list[int]] = {}
    for task, model in enumerate(models):
        members.setdefault(_structure(model, fixed), []).append(task)
    return [_shared(ids, tasks, models, pool, per_world) for ids in members.values()]


def _is_batched(spec: Any) -> bool:
    shape = getattr(spec, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and shape[0] == "*"


def _structure(model: Any, fields: Sequence[str]) -> str:
    """Digest of the fields that cannot differ between worlds."""
    digest = hashlib.sha256()
    for name in fields:
        value = getattr(model, name, None)
        if isinstance(value, (int, np.ndarray)):
            digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()


def _shared(
    ids: Sequence[int], tasks: Sequence[Task], models: Sequence[Any], pool: Sequence[TaskResets], names: Sequence[str]
) -> SharedScene:
    model = models[ids[0]]
    edited = {name for task in ids for name in pool[task].model}
    if unknown := edited - set(names):
        raise ValueError(f"Goals edit {', '.join(sorted(unknown))}, which worlds of Warp share.")
    fields: dict[str, Array] = {}
    for name in names:
        rows = np.concatenate([_rows(name, models[task], pool[task]) for task in ids])
        if (rows == rows[0]).all():
            getattr(model, name)[...] = rows[0]
        elif not name.startswith(NO_PHYSICS):
            fields[name] = rows
    static_geoms, static_pos, static_mat = _static_geoms(model, fields)
    state = np.concatenate([pool[task].state for task in ids])
    qpos, qvel, warmstart, mocap_pos = state_parts(model, state)
    return SharedScene(
        tasks=tuple(ids),
        model=model,
        fields=fields,
        static_geoms=static_geoms,
        static_pos=static_pos,
        static_mat=static_mat,
        qpos=qpos,
        qvel=qvel,
        qacc_warmstart=warmstart,
        mocap_pos=mocap_pos,
        columns=tuple(_columns(models[task], tasks[task]) for task in ids),
        contact_geoms=tuple(_contact_geoms(models[task], tasks[task]) for task in ids),
    )


def _rows(name: str, model: Any, resets: TaskResets) -> Array:
    """(G, *shape): a field of a task's model after the reset to each goal."""
    compiled = getattr(model, name)
    rows = np.repeat(compiled[None], len(resets.state), axis=0)
    if name in resets.model:
        edited = resets.model[name]
        rows[..., : edited.shape[-1]] = edited  # constraints have a number more in later versions of mujoco
    what, _, part = name.partition("_")
    if what in ("geom", "site") and part in ("pos", "quat"):
        # MuJoCo reads no pose, edited or not, of what coincides with its body; Warp adds it to the body's.
        frame, same = getattr(model, f"{what}_sameframe"), mujoco.mjtSameFrame
        as_body = (same.mjSAMEFRAME_BODY, same.mjSAMEFRAME_INERTIA)
        turned = (*as_body, same.mjSAMEFRAME_BODYROT, same.mjSAMEFRAME_INERTIAROT)
        fixed = np.isin(frame, as_body if part == "pos" else turned)
        rows[:, fixed] = compiled[fixed]
    return rows


def state_parts(model: Any, state: Array) -> tuple[Array, Array, Array, Array]:
    """qpos, qvel, qacc_warmstart and mocap_pos of `mjSTATE_INTEGRATION` as mujoco 3.3.0 orders it."""
    sizes = [1, model.nq, model.nv, model.na, model.nv, model.nu, model.nv, 6 * model.nbody, model.neq]
    sizes += [3 * model.nmocap, 4 * model.nmocap, model.nuserdata]
    _, qpos, qvel, _, warmstart, _, _, _, _, mocap_pos, _, _, plugin = np.split(state, np.cumsum(sizes), axis=1)
    if plugin.shape[1] or model.nmocap != 1 or model.na:
        raise ValueError("A scene has another state than those of Meta-World.")
    return qpos, qvel, warmstart, mocap_pos


def _static_geoms(model: Any, fields: dict[str, Array]) -> tuple[Array, Array, Array]:
    """The geoms of the world's bodies that differ between rows, and their poses.

    Warp computes the poses of such geoms once, when the data is made.
    """
    static = np.flatnonzero(model.body_weldid[model.geom_bodyid] == 0)
    before = {name: getattr(model, name).copy() for name in fields}
    data = mujoco.MjData(model)
    num_rows = len(next(iter(fields.values()))) if fields else 1
    pos, mat = np.empty((num_rows, len(static), 3)), np.empty((num_rows, len(static), 3, 3))
    for row in range(num_rows):
        for name, values in fields.items():
            getattr(model, name)[...] = values[row]
        mujoco.mj_kinematics(model, data)
        pos[row], mat[row] = data.geom_xpos[static], data.geom_xmat[static].reshape(-1, 3, 3)
    for name, value in before.items():
        getattr(model, name)[...] = value
    differ = (pos != pos[0]).any(axis=(0, 2)) | (mat != mat[0]).any(axis=(0, 2, 3))
    return static[differ], pos[:, differ], mat[:, differ]


def _columns(model: Any, task: Task) -> dict[Pose, tuple[str, int]]:
    places = {}
    for pose in (*COMMON, *task.poses.values()):
        array, kind = _ARRAYS[pose.kind]
        index = mujoco.mj_name2id(model, kind, pose.name)
        if index < 0:
            raise ValueError(f"The scene of {task.name} has no {pose.kind} of {pose.name!r}.")
        places[pose] = (array, int(model.jnt_qposadr[index]) if array == "qpos" else index)
    return places


def _contact_geoms(model: Any, task: Task) -> tuple[int, int, int]:
    names = (task.main_geom, "leftpad_geom", "rightpad_geom")
    main, left, right = (mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in names)
    return main, left, right
