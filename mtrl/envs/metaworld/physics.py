"""Simulations of Meta-World: registered under the kind "physics", and imported when chosen."""

from __future__ import annotations

import functools

from mtrl import registry
from mtrl.envs.metaworld.goals import NUM_GOALS
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.slots import SlotVecEnv
from mtrl.types import UserError, VecEnv


@registry.register("physics", "official")
def official(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The published gymnasium environments, spread over processes."""
    from mtrl.envs.metaworld.official import make_slots
    from mtrl.envs.rendering import check_mujoco_draws

    if render:
        check_mujoco_draws()
    slots = functools.partial(
        make_slots,
        task_names=suite.task_names,
        goals=suite.goals,
        goal_visible=suite.goal_visible,
        reward_version=suite.reward_version,
        horizon=suite.horizon,
        render=render,
    )
    return SlotVecEnv(slots, suite.spec, num_envs, NUM_GOALS, seed, device, num_workers)


@registry.register("physics", "rollout")
def rollout(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The same trajectories from C MuJoCo in `num_workers` threads, with batched rewards: several times faster."""
    from mtrl.envs.metaworld.rollout_physics import RolloutVecEnv

    if render:
        raise UserError("physics=rollout cannot render: use physics=official.")
    return RolloutVecEnv(suite, num_envs, seed, device, num_workers)
