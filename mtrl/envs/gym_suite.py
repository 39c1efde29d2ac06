"""`gym`: any list of gymnasium environments as one multi-task environment."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mtrl.envs.slots import SlotVecEnv
from mtrl.registry import register, unknown
from mtrl.types import EnvSpec, Step, UserError

NUM_SEEDS = 2**31 - 1
"""Goals are the seeds of episodes."""
TRIAL_STEPS = 1000
"""Of a trial episode that has no time limit."""

log = logging.getLogger(__name__)


@register("env", "gym")
def gym(
    ids: Sequence[str],
    num_envs: int | None,
    seed: int,
    device: str,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
    reports_success: bool | list[Any] | None = None,
) -> GymTasks:
    """Gymnasium environments, one task per id, spread over processes.

    Observations are flattened (discrete ones become one-hot) and padded with zeros to the longest; arrays of two or
    more dimensions stay as they are if all tasks have the same. Actions are all continuous, rescaled from [-1, 1] to
    the task's bounds and padded, or all discrete; `spec.action_mask` says which exist. Success is what `info` reports
    under "is_success" or "success". A task reports it (`spec.reports_success`) if either is in the info of any step of
    a trial episode: random actions, the same every time, to its end or for 1,000 steps where it has no time limit.

    Args:
        ids: Of registered environments, for example `["Pendulum-v1", "MountainCarContinuous-v0"]`.
        num_envs: Slots of all tasks together; None for `slots_per_task` times the tasks.
        seed: Of the episodes' seeds.
        device: Of the tensors in a step.
        num_workers: Processes; None for one per core.
        render: Whether `SlotVecEnv.render` is wanted.
        reports_success: Of all tasks, or of each; None for a trial. An environment that mentions success only where
            there is some needs to have it said.

    Raises:
        UserError: An environment that does not exist or cannot be made, or spaces that do not go together.
    """
    from mtrl.envs.gym_slot import make_slots

    if isinstance(ids, str) or not len(ids):
        raise UserError(f"ids must be a list of gymnasium environments, not {ids!r}: for example [Pendulum-v1].")
    ids = tuple(ids)
    if len(set(ids)) < len(ids):
        raise UserError(f"Each id may be named once, found {', '.join(ids)}.")
    said = reports_success if isinstance(reports_success, list) else [reports_success] * len(ids)
    if len(said) != len(ids) or any(answer not in (True, False, None) for answer in said):
        raise UserError(f"reports_success must be true, false or null, or a list of {len(ids)} of these, not {said}.")
    spec = _spec(ids, said)
    slots = functools.partial(make_slots, ids=ids, obs_shape=spec.obs_shape, render=render)
    tried = torch.tensor([answer is None for answer in said])
    return GymTasks(tried, slots, spec, num_envs, NUM_SEEDS, seed, device, num_workers, slots_per_task)


class GymTasks(SlotVecEnv):
    """Says so, once in a process, when a task that its trial took for silent reports a success.

    Args:
        tried: (K,) of which tasks a trial decided whether they report success.
        others: Of `SlotVecEnv`.
    """

    def __init__(self, tried: Bool[Tensor, " K"], *others: Any) -> None:
        super().__init__(*others)
        self._silent = (tried & ~torch.tensor(self.spec.reports_success)).to(self.task.device)

    def step(self, action: Tensor, cut: Tensor | None = None) -> Step:
        step = super().step(action, cut)
        found = step.success & self._silent[step.task]
        for task in step.task[found].unique().tolist():
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


def _spec(ids: Sequence[str], said: Sequence[bool | None]) -> EnvSpec:
    """Makes each environment once to learn its spaces, its time limit, and if it is not `said`, who reports success."""
    import gymnasium

    from mtrl.envs.gym_slot import make_env

    observations, actions, horizons, reports_success = [], [], set(), []
    for env_id, answer in zip(ids, said, strict=True):
        try:
            env = make_env(env_id)
        except gymnasium.error.UnregisteredEnv:
            raise UserError(_unregistered(env_id)) from None
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"gymnasium cannot make {env_id!r}: {error}") from error
        observations.append(env.observation_space)
        actions.append(env.action_space)
        horizon = env.spec.max_episode_steps if env.spec else None
        horizons.add(horizon)
        reports_success.append(_trial(env, horizon or TRIAL_STEPS) if answer is None else answer)
        env.close()

    for env_id, space in zip(ids, observations, strict=True):
        if not space.is_np_flattenable:
            raise UserError(f"The observations of {env_id!r} cannot be flattened to an array: {space}.")
    obs_shape, obs_dtype = _common_observation(observations)
    kind, sizes = _actions(ids, actions)
    action_dim = max(sizes)
    return EnvSpec(
        task_names=tuple(ids),
        obs_shape=obs_shape,
        obs_dtype=obs_dtype,
        action_kind=kind,
        action_dim=action_dim,
        action_mask=tuple(tuple(i < size for i in range(action_dim)) for size in sizes),
        horizon=horizons.pop() if len(horizons) == 1 else None,
        reports_success=tuple(reports_success),
        comparable_returns=len(ids) == 1,
    )


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

    registered = list(gymnasium.registry)
    name = env_id.split("-v")[0]
    same = [other for other in registered if other.split("-v")[0] == name]
    return unknown("gymnasium environment", env_id, same or registered)


def _common_observation(observations: Sequence[Any]) -> tuple[tuple[int, ...], torch.dtype]:
    from gymnasium import spaces

    first = observations[0]
    arrays = all(isinstance(space, spaces.Box) and len(space.shape) > 1 for space in observations)
    if arrays and all(space.shape == first.shape and space.dtype == first.dtype for space in observations):
        return first.shape, torch.uint8 if first.dtype == np.uint8 else torch.float32
    return (max(spaces.flatdim(space) for space in observations),), torch.float32


def _actions(ids: Sequence[str], actions: Sequence[Any]) -> tuple[Literal["continuous", "discrete"], list[int]]:
    """Kind of the actions, and their size in each task."""
    from gymnasium import spaces

    if all(isinstance(space, spaces.Discrete) for space in actions):
        return "discrete", [int(space.n) for space in actions]
    if all(isinstance(space, spaces.Box) for space in actions):
        for env_id, space in zip(ids, actions, strict=True):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise UserError(f"The actions of {env_id!r} have no bounds to rescale to: {space}.")
        return "continuous", [int(np.prod(space.shape)) for space in actions]
    found = ", ".join(f"{env_id}: {type(space).__name__}" for env_id, space in zip(ids, actions, strict=True))
    raise UserError(f"Actions must be all Box (continuous) or all Discrete, found {found}.")
