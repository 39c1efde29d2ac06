"""`gym`: any list of gymnasium environments as one multi-task environment."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from mtrl.envs.slots import SlotVecEnv
from mtrl.registry import register, unknown
from mtrl.types import EnvSpec, UserError

NUM_SEEDS = 2**31 - 1
"""Goals are the seeds of episodes."""


@register("env", "gym")
def gym(
    ids: Sequence[str],
    num_envs: int | None,
    seed: int,
    device: str,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
) -> SlotVecEnv:
    """Gymnasium environments, one task per id, spread over processes.

    Observations are flattened (discrete ones become one-hot) and padded with zeros to the longest; arrays of two or
    more dimensions stay as they are if all tasks have the same. Actions are all continuous, rescaled from [-1, 1] to
    the task's bounds and padded, or all discrete; `spec.action_mask` says which exist. Success is what `info` reports
    under "is_success" or "success"; if a first trial step shows neither in any task, `spec.has_success` is false.

    Args:
        ids: Of registered environments, for example `["Pendulum-v1", "MountainCarContinuous-v0"]`.
        num_envs: Slots of all tasks together; None for `slots_per_task` times the tasks.
        seed: Of the episodes' seeds.
        device: Of the tensors in a step.
        num_workers: Processes; None for one per core.
        render: Whether `SlotVecEnv.render` is wanted.

    Raises:
        UserError: An environment that does not exist or cannot be made, or spaces that do not go together.
    """
    from mtrl.envs.gym_slot import make_slots

    if isinstance(ids, str) or not len(ids):
        raise UserError(f"ids must be a list of gymnasium environments, not {ids!r}: for example [Pendulum-v1].")
    ids = tuple(ids)
    if len(set(ids)) < len(ids):
        raise UserError(f"Each id may be named once, found {', '.join(ids)}.")
    spec = _spec(ids)
    slots = functools.partial(make_slots, ids=ids, obs_shape=spec.obs_shape, render=render)
    return SlotVecEnv(slots, spec, num_envs, NUM_SEEDS, seed, device, num_workers, slots_per_task)


def _spec(ids: Sequence[str]) -> EnvSpec:
    """Makes each environment once to learn its spaces, its time limit, and whether it reports success."""
    import gymnasium

    from mtrl.envs.gym_slot import SUCCESS_KEYS, make_env

    observations, actions, horizons, has_success = [], [], set(), False
    for env_id in ids:
        try:
            env = make_env(env_id)
        except gymnasium.error.UnregisteredEnv:
            raise UserError(_unregistered(env_id)) from None
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"gymnasium cannot make {env_id!r}: {error}") from error
        observations.append(env.observation_space)
        actions.append(env.action_space)
        horizons.add(env.spec.max_episode_steps if env.spec else None)
        env.action_space.seed(0)
        env.reset(seed=0)
        info = env.step(env.action_space.sample())[-1]
        has_success |= any(key in info for key in SUCCESS_KEYS)
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
        has_success=has_success,
    )


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
