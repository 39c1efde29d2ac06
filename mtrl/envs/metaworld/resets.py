"""The reset pool: the state of the official environments after the reset to each (task, goal).

An official reset settles the hand in 500 physics steps, and its result depends only on the task and the goal. So it is
computed once, with the official package, and cached on disk; a reset is then a copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.cache import cache_path, read_arrays, write_arrays
from mtrl.envs.metaworld.official import SharedCompilation, make_env, official_task
from mtrl.envs.metaworld.pinned import with_pinned_mujoco
from mtrl.system.cores import available_cores

Array = NDArray[np.float64]

STATE = 8191
"""`mujoco.mjtState.mjSTATE_INTEGRATION`: everything that the future of a simulation depends on, including the solver's
warm start."""
FORMAT = 3
"""Part of the file name; increase it when the content changes."""
LONGEST_CONSTANT = 14
"""Longer attributes are not stored."""

log = logging.getLogger(__name__)
_compiling = threading.Lock()


@dataclass(frozen=True)
class TaskResets:
    """One task after the reset to each of its G goals."""

    scene: str
    """XML file of its scene, relative to the package."""
    state: Array
    """(G, size) `mjSTATE_INTEGRATION`."""
    obs: Array
    """(G, 39) first observation, goal visible; the official environment does not clip it."""
    model: dict[str, Array]
    """Fields of the model that differ from the compiled scene: (G, *shape)."""
    constants: dict[str, Array]
    """Attributes of the environment that stay the same through an episode: (G,) or (G, size)."""
    obs_low: Array
    """(39,) bounds to which `step` clips the observation."""
    obs_high: Array
    mocap_low: Array
    """(3,) box in which actions move the hand's mocap body."""
    mocap_high: Array
    action_scale: Array
    """(1,) displacement of the mocap body in metres for an action of 1."""


def scene_path(scene: str) -> Path:
    """The file of a scene."""
    spec = importlib.util.find_spec("metaworld")  # imports nothing
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / scene


def reset_pool(task_names: Sequence[str], goals: Sequence[Array], num_threads: int | None = None) -> list[TaskResets]:
    """The resets of every task, from the cache or made in `num_threads` threads (half a second per task and core).

    Args:
        task_names: Official names.
        goals: Random vectors of each task, (G, size) each.
        num_threads: None for one per core.
    """
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(vectors).tobytes() for vectors in goals)).hexdigest()
    path = cache_path("resets", {"format": FORMAT, "tasks": list(task_names), "goals": digest})
    arrays = read_arrays(path)
    pool = None if arrays is None else _unpack(path, arrays, task_names, goals)
    if pool is None:
        made: list[TaskResets] = with_pinned_mujoco(_make_all, task_names, goals, num_threads or available_cores())
        write_arrays(path, _pack(task_names, made))
        return made
    return pool


def _make_all(task_names: Sequence[str], goals: Sequence[Array], num_threads: int) -> list[TaskResets]:
    with ThreadPoolExecutor(num_threads) as executor:
        return list(executor.map(_make, task_names, goals))


def _make(name: str, goals: Array) -> TaskResets:
    """Resets one official environment to each goal."""
    import mujoco

    with _compiling:
        env: Any = make_env(name)
    compiled = _fields(SharedCompilation.compiled[env.fullpath])
    rows: list[dict[str, Array]] = []
    constant_names: set[str] | None = None
    for vector in goals:
        env.set_task(official_task(name, vector))
        env.reward_function_version = "v1"  # assembly sets some attributes for v1 only
        obs, _ = env.reset()
        env.reward_function_version = "v2"
        state = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(env.model, env.data, state, STATE)
        edited = {
            f"model.{field}": value.copy()
            for field, value in _fields(env.model).items()
            if not np.array_equal(value, compiled[field])
        }
        attributes = {f"constant.{attribute}": value for attribute, value in _attributes(env).items()}
        # bin-picking sets a distance in its first step, independent of the action, and keeps it.
        env.step(np.zeros(4, np.float32))
        for attribute, value in _attributes(env).items():
            attributes.setdefault(f"constant.{attribute}", value)
        rows.append({"state": state, "obs": obs, **edited, **attributes})
        if constant_names is None:
            for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
                env.step(action)
            after = _attributes(env)
            constant_names = {
                name for name, value in attributes.items() if np.array_equal(value, after[name.split(".")[1]])
            }
    assert constant_names is not None
    names = {name for row in rows for name in row if not name.startswith("constant.")} | constant_names
    # Goals that do not edit a field keep its compiled value.
    default = {f"model.{field}": value for field, value in compiled.items()}
    columns = {key: np.stack([row[key] if key in row else default[key] for row in rows]) for key in sorted(names)}
    space = env.sawyer_observation_space
    scene = Path(env.fullpath).relative_to(scene_path("")).as_posix()
    env.close()
    bounds = (space.low, space.high, env.mocap_low, env.mocap_high, np.array([env.action_scale]))
    return _record(scene, columns, [np.asarray(bound, np.float64) for bound in bounds])


def _record(scene: str, columns: dict[str, Array], bounds: Sequence[Array]) -> TaskResets:
    def group(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): value for name, value in columns.items() if name.startswith(prefix)}

    return TaskResets(scene, columns["state"], columns["obs"], group("model."), group("constant."), *bounds)


def _fields(model: Any) -> dict[str, NDArray[Any]]:
    """Arrays of the model that physics depends on and that goals may change."""
    names = [name for name in dir(model) if name.split("_")[0] in ("body", "jnt", "dof", "geom", "site", "eq")]
    return {name: value for name in names if isinstance(value := getattr(model, name), np.ndarray)}


def _attributes(env: Any) -> dict[str, Array]:
    """Numbers and short vectors among the environment's attributes, except views of live data."""
    data = env.data
    live = [data.xpos, data.xquat, data.xmat, data.geom_xpos, data.geom_xmat, data.site_xpos, data.site_xmat]
    live += [data.qpos, data.qvel, data.mocap_pos, data.mocap_quat, data.ctrl]
    attributes = {}
    for name, value in vars(env).items():
        if isinstance(value, (list, tuple)) and all(isinstance(number, (float, np.floating)) for number in value):
            value = np.array(value)
        elif isinstance(value, (float, np.floating)):
            value = np.array(value, np.float64)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        if value.ndim > 1 or not 0 < value.size <= LONGEST_CONSTANT:
            continue
        if not any(np.may_share_memory(value, array) for array in live):
            attributes[name] = value.astype(np.float64)
    return attributes


def _pack(task_names: Sequence[str], pool: Sequence[TaskResets]) -> dict[str, NDArray[Any]]:
    """One matrix per task with one row per goal, and the layout of its columns as JSON: few arrays are fast to read."""
    layouts, arrays = {}, {}
    for name, task in zip(task_names, pool, strict=True):
        columns = {
            "state": task.state,
            "obs": task.obs,
            **{f"model.{field}": value for field, value in task.model.items()},
            **{f"constant.{attribute}": value for attribute, value in task.constants.items()},
        }
        layouts[name] = {"scene": task.scene, "columns": {key: value.shape[1:] for key, value in columns.items()}}
        arrays[name] = np.concatenate([value.reshape(len(value), -1) for value in columns.values()], axis=1)
        bounds = (task.obs_low, task.obs_high, task.mocap_low, task.mocap_high, task.action_scale)
        arrays[f"{name}.bounds"] = np.concatenate(bounds)
    return {"layouts": np.frombuffer(json.dumps(layouts).encode(), np.uint8), **arrays}


def _unpack(
    path: Path | None, arrays: dict[str, NDArray[Any]], task_names: Sequence[str], goals: Sequence[Array]
) -> list[TaskResets] | None:
    """The inverse of `_pack`; None if the content is invalid."""
    try:
        layouts = json.loads(arrays["layouts"].tobytes())
        pool = []
        for name, vectors in zip(task_names, goals, strict=True):
            matrix, columns, start = arrays[name], {}, 0
            for key, shape in layouts[name]["columns"].items():
                size = int(np.prod(shape))
                columns[key] = np.ascontiguousarray(matrix[:, start : start + size]).reshape(len(matrix), *shape)
                start += size
            bounds = np.split(arrays[f"{name}.bounds"], [39, 78, 81, 84])
            record = _record(layouts[name]["scene"], columns, bounds)
            if len(matrix) != len(vectors) or not (np.isfinite(record.state).all() and np.isfinite(record.obs).all()):
                raise ValueError(f"{name} is incomplete")
            pool.append(record)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        log.warning("%s is damaged (%s) and will be made again.", path, error)
        return None
    return pool
