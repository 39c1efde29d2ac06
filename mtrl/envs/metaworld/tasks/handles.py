"""Handles to press down and to pull up, from the front and from the side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    gripper_caging_reward,
    hamacher_product,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm


class Handle(Task):
    """A handle that slides up and down."""

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["handle"], None)]


class HandleToPress(Handle):
    """A handle to press: success within 2 cm of the height where it is down."""

    poses: ClassVar = {"handle": site_pos("handleStart")}

    def evaluate(self, state: TaskState) -> Outcome:
        obj, radius, handle_radius = state.obj, 0.02, 0.02
        target_z, handle_init = state.target_pos[:, 2], state.constant("_handle_init_pos")
        target_to_obj = abs(obj[:, 2] - target_z)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, radius),
            margin=abs(abs(handle_init[:, 2] - target_z) - radius),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        reach = tolerance(
            tcp_to_obj,
            bounds=(0.0, handle_radius),
            margin=abs(norm(handle_init - state.init_tcp) - handle_radius),
            sigmoid="long_tail",
        )
        success = target_to_obj <= radius
        return Outcome(
            reward=10 * ops.where(success, 1.0, hamacher_product(reach, in_place)),
            success=success,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=1.0,
            grasp_reward=reach,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("handle-press-v3")
class HandlePress(HandleToPress):
    """Press a handle down."""


@task("handle-press-side-v3")
class HandlePressSide(HandleToPress):
    """Press a handle down, coming from the side."""


@task("handle-pull-v3")
class HandlePull(Handle):
    """Pull a handle up: success within 5 cm of the height where it is up."""

    poses: ClassVar = {"handle": site_pos("handleRight")}

    def evaluate(self, state: TaskState) -> Outcome:
        obj, init_z, target_z = state.obj, state.obj_init_pos[:, 2], state.target_pos[:, 2]
        target_to_obj = abs(target_z - obj[:, 2])
        in_place = tolerance(target_to_obj, bounds=(0.0, 0.05), margin=abs(target_z - init_z), sigmoid="long_tail")
        object_grasped = gripper_caging_reward(
            state,
            obj,
            pad_success_thresh=0.05,
            obj_radius=0.022,
            object_reach_radius=0.01,
            xz_thresh=0.01,
            high_density=True,
        )
        # The official condition compares y with an initial z, so that it holds anywhere in reach.
        return pull_outcome(state, target_to_obj, object_grasped, in_place, obj[:, 1] - 0.01 > init_z, radius=0.05)


@task("handle-pull-side-v3")
class HandlePullSide(Handle):
    """Pull a handle up, coming from the side: success within 8 cm of where it is up."""

    poses: ClassVar = {"handle": site_pos("handleCenter")}

    def evaluate(self, state: TaskState) -> Outcome:
        obj, obj_init, target = state.obj, state.obj_init_pos, state.target_pos
        target_to_obj = norm(obj - target)
        in_place = tolerance(target_to_obj, bounds=(0.0, 0.05), margin=norm(obj_init - target), sigmoid="long_tail")
        object_grasped = gripper_caging_reward(
            state,
            obj,
            pad_success_thresh=0.06,
            obj_radius=0.032,
            object_reach_radius=0.01,
            xz_thresh=0.01,
            high_density=True,
        )
        lifted = obj[:, 2] - 0.01 > obj_init[:, 2]
        return pull_outcome(state, target_to_obj, object_grasped, in_place, lifted, radius=0.08)


def pull_outcome(
    state: TaskState, target_to_obj: Array, object_grasped: Array, in_place: Array, lifted: Array, radius: float
) -> Outcome:
    """What both pulls do with their distances; `radius` is that of success, m."""
    obj, opened = state.obj, state.opened
    tcp_to_obj = norm(obj - state.tcp_center)
    reward = hamacher_product(object_grasped, in_place)
    pulling = (tcp_to_obj < 0.035) & (opened > 0) & lifted
    reward = ops.where(pulling, reward + 1.0 + 5.0 * in_place, reward)
    return Outcome(
        reward=ops.where(target_to_obj < 0.05, 10.0, reward),
        success=target_to_obj <= radius,
        near_object=tcp_to_obj <= 0.05,
        grasp_success=(opened > 0) & (obj[:, 2] - 0.03 > state.obj_init_pos[:, 2]),
        grasp_reward=object_grasped,
        in_place_reward=in_place,
        obj_to_target=target_to_obj,
    )
