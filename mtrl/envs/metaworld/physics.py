"""Simulations of Meta-World: registered under the kind "physics", and imported when chosen."""

from __future__ import annotations

import functools
from importlib.metadata import version

from mtrl import registry
from mtrl.envs.metaworld.goals import NUM_GOALS
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.metaworld.warp_packages import has_other_mujoco, load, loaded_mujoco
from mtrl.envs.slots import SlotVecEnv
from mtrl.types import UserError, VecEnv


@registry.register("physics", "official")
def official(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The published gymnasium environments, spread over processes.

    Use it to check the others: it is the environment of record, in which policies are evaluated.
    """
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
    if num_workers == 0 and has_other_mujoco():
        num_workers = 1  # which finds the pinned one
    return SlotVecEnv(slots, suite.spec, num_envs, NUM_GOALS, seed, device, num_workers)


@registry.register("physics", "rollout")
def rollout(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """The same trajectories from C MuJoCo in `num_workers` threads, with batched rewards: several times faster.

    Use it on a CPU.
    """
    if render:
        raise UserError("physics=rollout cannot render: use physics=official.")
    if has_other_mujoco():
        raise UserError(
            f"This process has loaded mujoco {loaded_mujoco()} for physics=warp, and physics=rollout needs "
            f"{version('mujoco')}: make this environment in a process of its own."
        )
    from mtrl.envs.metaworld.rollout_physics import RolloutVecEnv

    return RolloutVecEnv(suite, num_envs, seed, device, num_workers)


@registry.register("physics", "warp")
def warp(
    suite: Suite, num_envs: int, seed: int, device: str, num_workers: int | None = None, render: bool = False
) -> VecEnv:
    """MuJoCo Warp: thousands of slots on a GPU, close to the official simulation. Installed by `mtrl.install_warp`.

    Use it for very many slots on a GPU.
    """
    if render:
        raise UserError("physics=warp cannot render: use physics=official.")
    packages = load()
    from mtrl.envs.metaworld.warp_physics import WarpVecEnv

    return WarpVecEnv(packages, suite, num_envs, seed, device)
