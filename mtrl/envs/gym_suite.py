"""`gym`: any list of gymnasium environments as one multi-task environment."""

from __future__ import annotations

import difflib
import functools
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.slots import SlotVecEnv
from mtrl.registry import construct, register, unknown
from mtrl.types import EnvSpec, Step, UserError

if TYPE_CHECKING:
    import gymnasium

    from mtrl.envs.gym_slot import GymTask, Layout

NUM_SEEDS = 2**31 - 1
"""Goals are the seeds of episodes."""
TRIAL_STEPS = 1000
"""Length of a trial episode without a time limit."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A task, as written in `ids`."""

    id: str
    """Id for `gymnasium.make`: `module:id` imports the module that registers it."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `gymnasium.make`."""
    name: str | None = None
    """Name of the task; by default the id, followed by the arguments."""

    @property
    def task_name(self) -> str:
        arguments = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return self.name or self.id + (f"[{arguments}]" if arguments else "")


@register("env", "gym")
def gym(
    ids: Sequence[Any],
    num_envs: int | None,
    seed: int,
    device: str,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
    reports_success: bool | list[Any] | None = None,
    channels: Literal["first", "last"] | None = None,
) -> GymTasks:
    """Gymnasium environments, a list of tasks, spread over processes.

    Observations are flattened (discrete ones become one-hot) and padded with zeros to the longest. Images, which are
    uint8 with two or three axes, are arranged as (channels, height, width), the same in all tasks. Actions are all
    continuous, rescaled from [-1, 1] to the task's bounds and padded, or all discrete; `spec.action_mask` marks those
    that exist. Success is read from `info` under "is_success" or "success". A task reports it
    (`spec.reports_success`) if either key is in the info of any step of a trial episode with random actions, the same
    every time, which lasts until its end, or 1,000 steps if there is no time limit.

    Use it for environments of your own and of other packages (docs/environments.md).

    Args:
        ids: Ids of registered environments, for example `["Pendulum-v1", "MountainCarContinuous-v0"]`, or the fields
            of `Entry`: `{"id": "Pendulum-v1", "kwargs": {"g": 9.0}, "name": "heavy"}`.
        num_envs: Total number of slots; None for `slots_per_task` for each task.
        seed: Seed of the generator that draws the episodes' seeds.
        device: Device of the tensors in a step.
        num_workers: Processes; None for one per core.
        render: Whether `SlotVecEnv.render` will be used.
        reports_success: For all tasks, or for each; None to try. Must be given for an environment whose info mentions
            success only when there is one.
        channels: Position of the channel axis of images; None to infer it from the sizes, if the first or the last axis
            is at most half as long as the others.

    Raises:
        UserError: An environment does not exist or cannot be made, or the spaces are incompatible.
    """
    from mtrl.envs.gym_slot import make_slots

    if not isinstance(ids, list | tuple) or not ids:
        raise UserError(f"ids must be a list of gymnasium environments, not {ids!r}: for example [Pendulum-v1].")
    entries = [_entry(given) for given in ids]
    names = [entry.task_name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} tasks are called {name!r}: give them names, {{id: ..., name: ...}}.")
    said = reports_success if isinstance(reports_success, list) else [reports_success] * len(ids)
    if len(said) != len(ids) or any(answer not in (True, False, None) for answer in said):
        raise UserError(f"reports_success must be true, false or null, or a list of {len(ids)} of these, not {said}.")
    spec, tasks = _examine(entries, said, channels, render)
    if num_workers != 0:
        for entry, task in zip(entries, tasks, strict=True):
            _check_workers_can_make(entry, task)
    slots = functools.partial(make_slots, tasks=tasks, obs_shape=spec.obs_shape, render=render)
    tried = torch.tensor([answer is None for answer in said])
    return GymTasks(tried, slots, spec, num_envs, NUM_SEEDS, seed, device, num_workers, slots_per_task)


class GymTasks(SlotVecEnv):
    """Warns once per process if a task whose trial reported no success reports one later.

    Args:
        tried: (K,) tasks for which a trial decided whether they report success.
        arguments: Arguments of `SlotVecEnv`.
    """

    def __init__(self, tried: Bool[Tensor, " K"], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._silent = (tried & ~torch.tensor(self.spec.reports_success)).to(self.task.device)

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        step = super().step(action, truncate)
        unexpected = step.success & self._silent[step.task]
        for task in step.task[unexpected].unique().tolist():
            _warn_of_success(self.spec.task_names, self.spec.reports_success, task)
        return step


@functools.cache
def _warn_of_success(names: tuple[str, ...], reports_success: tuple[bool, ...], task: int) -> None:
    say = ",".join(str(reports or k == task).lower() for k, reports in enumerate(reports_success))
    log.warning(
        "WARNING: %s has reported a success, which is left out, because its trial episode reported none: to count it, "
        "say 'env.reports_success=[%s]'.",
        names[task],
        say,
    )


def _entry(given: Any) -> Entry:
    if isinstance(given, str):
        return Entry(given)
    if not isinstance(given, Mapping):
        raise UserError(f"Each of ids must be an id or {{id: ..., kwargs: ..., name: ...}}, not {given!r}.")
    return construct("an entry of ids", Entry, given)


def _examine(
    entries: Sequence[Entry],
    said: Sequence[bool | None],
    channels: Literal["first", "last"] | None,
    render: bool,
) -> tuple[EnvSpec, list[GymTask]]:
    """Makes each environment once to find its spaces, its time limit and, if not `said`, whether it reports success."""
    import gymnasium

    from mtrl.envs.gym_slot import GymTask

    tasks, observations, actions, horizons, reports_success = [], [], [], set(), []
    for entry, answer in zip(entries, said, strict=True):
        env = _make(entry, render)
        layout = _layout(entry.task_name, env.observation_space, channels)
        assert env.unwrapped.spec is not None
        tasks.append(GymTask(gymnasium.spec(env.unwrapped.spec.id), entry.kwargs, layout))
        observations.append(env.observation_space)
        actions.append(env.action_space)
        horizon = env.spec.max_episode_steps if env.spec else None
        horizons.add(horizon)
        reports_success.append(_trial(env, horizon or TRIAL_STEPS) if answer is None else answer)
        env.close()

    names = [entry.task_name for entry in entries]
    obs_shape, obs_dtype = _common_observation(names, observations, [task.layout for task in tasks])
    kind, sizes = _actions(names, actions)
    action_dim = max(sizes)
    spec = EnvSpec(
        task_names=tuple(names),
        obs_shape=obs_shape,
        obs_dtype=obs_dtype,
        action_kind=kind,
        action_dim=action_dim,
        action_mask=tuple(tuple(i < size for i in range(action_dim)) for size in sizes),
        horizon=horizons.pop() if len(horizons) == 1 else None,
        reports_success=tuple(reports_success),
        comparable_returns=len(entries) == 1,
    )
    return spec, tasks


def _make(entry: Entry, render: bool) -> gymnasium.Env[Any, Any]:
    """Makes the environment of a task, and checks that it renders if it should.

    Raises:
        UserError: It does not exist, cannot be made or cannot render.
    """
    import gymnasium

    from mtrl.envs.gym_slot import make_env
    from mtrl.envs.rendering import check_mujoco_draws, image

    try:
        env = make_env(entry.id, entry.kwargs, render)
    except gymnasium.error.UnregisteredEnv:
        raise UserError(_unregistered(entry.id)) from None
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        vector_only = entry.id in gymnasium.registry and gymnasium.spec(entry.id).entry_point is None
        reason = "it makes batches only (gymnasium.make_vec)" if vector_only else str(error).rstrip(".")
        raise UserError(f"gymnasium cannot make {entry.id!r}: {reason}.{_of_metaworld(entry.id)}") from error
    if render:
        if hasattr(env.unwrapped, "mujoco_renderer"):
            check_mujoco_draws()
        try:
            env.reset(seed=0)
            image(env)
        except (RuntimeError, NotImplementedError, gymnasium.error.Error) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise UserError(f"{entry.task_name!r} cannot be drawn: {reason}.") from error
    return env


def _trial(env: Any, steps: int) -> bool:
    """Whether any step of a trial episode reports success."""
    from mtrl.envs.gym_slot import SUCCESS_KEYS

    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        if any(key in info for key in SUCCESS_KEYS):
            return True
        if terminated or truncated:
            return False
    return False


def _unregistered(env_id: str) -> str:
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if of_metaworld := _of_metaworld(name):
        return f"Unknown gymnasium environment {env_id!r}.{of_metaworld}"
    registered = [known for known, spec in gymnasium.registry.items() if spec.entry_point is not None]
    same_name = [known for known in registered if known.split("-v")[0] == name.split("-v")[0]]
    same_namespace = [known for known in registered if known.rpartition("/")[0] == name.rpartition("/")[0]]
    message = unknown("gymnasium environment", env_id, same_name or same_namespace or registered)
    return message if module else f"{message} If a module of yours registers it, write module:id: my_envs:{name}."


def _of_metaworld(env_id: str) -> str:
    """A hint, if the id resembles that of a Meta-World task."""
    near = difflib.get_close_matches(env_id.rpartition("/")[2], MT50, n=1, cutoff=0.8)
    return f" Meta-World's tasks are in env=metaworld 'env.tasks=[{near[0]}]'." if near else ""


def _check_workers_can_make(entry: Entry, task: GymTask) -> None:
    """Raises `UserError` if another process could not import what the environment is made from."""
    try:
        importable = b"__main__" not in pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError):
        importable = False
    if not importable:
        raise UserError(
            f"{entry.id!r} is made by something that worker processes cannot import ({task.registered.entry_point}): "
            "put it into a module that registers it and write module:id, or use num_workers=0."
        )


def _layout(name: str, space: Any, channels: Literal["first", "last"] | None) -> Layout:
    """The layout of a task's observations. Raises `UserError` if it cannot be inferred."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        if images := [part for part in _parts(space) if _is_image(part)]:
            raise UserError(
                f"The observations of {name!r} are a {type(space).__name__} with an image {images[0].shape} in it: "
                "wrap the environment so that the observation is only the image, or does not include it."
            )
        if not space.is_np_flattenable:
            raise UserError(f"The observations of {name!r} cannot be flattened to an array: {space}.")
        return "flat"
    if not _is_image(space):
        return "flat"
    if len(space.shape) > 3 or space.dtype != np.uint8:
        raise UserError(
            f"The observations of {name!r} are {space.dtype} of shape {space.shape}: images must be uint8, from 0 to "
            "255, with at most three axes. Wrap the environment, for example in gymnasium's RescaleObservation and "
            "DtypeObservation."
        )
    if len(space.shape) == 2:
        return "grey"
    first, height, last = space.shape
    if channels is not None:
        return channels
    if 2 * first <= min(height, last):
        return "first"
    if 2 * last <= min(first, height):
        return "last"
    raise UserError(
        f"The sizes of the images {space.shape} of {name!r} do not tell which axis has the channels: "
        "use env.channels=first or env.channels=last."
    )


def _is_image(space: Any) -> bool:
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) >= (2 if space.dtype == np.uint8 else 3)


def _parts(space: Any) -> Iterator[Any]:
    """A space and, recursively, the spaces inside it."""
    yield space
    inside = getattr(space, "spaces", ())
    for part in inside.values() if isinstance(inside, Mapping) else inside:
        yield from _parts(part)


def _common_observation(
    names: Sequence[str], observations: Sequence[Any], layouts: Sequence[Layout]
) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of all observations. Raises `UserError` for images of different shapes."""
    from gymnasium import spaces

    from mtrl.envs.gym_slot import arrange

    if set(layouts) == {"flat"}:
        return (max(spaces.flatdim(space) for space in observations),), torch.float32
    shapes = [
        (spaces.flatdim(space),) if layout == "flat" else arrange(np.empty(space.shape), layout).shape
        for space, layout in zip(observations, layouts, strict=True)
    ]
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{name}: {shape}" for name, shape in zip(names, shapes, strict=True))
        raise UserError(f"Images must have the same shape (channels, height, width) in all tasks, found {listed}.")
    return shapes[0], torch.uint8


def _actions(names: Sequence[str], actions: Sequence[Any]) -> tuple[Literal["continuous", "discrete"], list[int]]:
    """Kind of the actions, and their size in each task."""
    from gymnasium import spaces

    if all(isinstance(space, spaces.Discrete) for space in actions):
        return "discrete", [int(space.n) for space in actions]
    if all(isinstance(space, spaces.Box) for space in actions):
        for name, space in zip(names, actions, strict=True):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise UserError(f"The actions of {name!r} have no bounds to rescale to: {space}.")
        return "continuous", [int(np.prod(space.shape)) for space in actions]
    listed = ", ".join(f"{name}: {type(space).__name__}" for name, space in zip(names, actions, strict=True))
    raise UserError(f"Actions must be all Box (continuous) or all Discrete, found {listed}.")
