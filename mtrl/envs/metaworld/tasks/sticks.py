"""A stick with which a thermos is pushed, and pulled by its handle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    body_mat,
    body_pos,
    gripper_caging_reward,
    hamacher_product,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


@task("stick-push-v3")
class StickPush(Task):
    """Pick up a stick and push a thermos with it: success within 12 cm of the goal with the stick still in the grip."""

    poses: ClassVar = {"stick": body_pos("stick"), "stick_mat": body_mat("stick"), "handle": site_pos("insertion")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        container = poses["handle"] + vector(poses["handle"], 0.0, 0.09, 0.0)
        return [(poses["stick"], poses["stick_mat"]), (container, None)]

    def touching_matters(self, state: TaskState) -> Array | None:
        return self._lifted(state) & (self._container_to_target(state) <= 0.12)

    def evaluate(self, state: TaskState) -> Outcome:
        target, stick_init, radius = state.target_pos, state.constant("stick_init_pos"), 0.12
        stick = state.obj + vector(state.obj, 0.015, 0.0, 0.0)
        tcp_to_stick = norm(stick - state.tcp_center)
        stick_in_place = tolerance(
            norm(stick - target), bounds=(0.0, radius), margin=norm(stick_init - target) - radius, sigmoid="long_tail"
        )
        container_to_target = self._container_to_target(state)
        container_in_place = tolerance(
            container_to_target,
            bounds=(0.0, radius),
            margin=norm(state.obj_init_pos - target) - radius,
            sigmoid="long_tail",
        )
        object_grasped = gripper_caging_reward(
            state,
            stick,
            obj_radius=0.04,
            pad_success_thresh=0.05,
            object_reach_radius=0.01,
            xz_thresh=0.01,
            high_density=True,
            obj_init_pos=stick_init,
        )
        lifted = self._lifted(state)
        holding = (tcp_to_stick < 0.02) & lifted
        pushing = 2.0 + 5.0 * stick_in_place + 3.0 * container_in_place
        reward = ops.where(holding, ops.where(container_to_target <= radius, 10.0, pushing), object_grasped)
        grasp_success = state.touching & lifted
        return Outcome(
            reward=reward,
            success=grasp_success & (container_to_target <= 0.12),
            near_object=tcp_to_stick <= 0.03,
            grasp_success=grasp_success,
            grasp_reward=ops.where(holding, 1.0, object_grasped),
            in_place_reward=stick_in_place,
            obj_to_target=container_to_target,
        )

    @staticmethod
    def _lifted(state: TaskState) -> Array:
        return (state.opened > 0) & (state.obj[:, 2] - 0.01 > state.constant("stick_init_pos")[:, 2])

    @staticmethod
    def _container_to_target(state: TaskState) -> Array:
        return norm(state.obs[:, 11:14] - state.target_pos)


@task("stick-pull-v3")
class StickPull(Task):
    """Pull a thermos with a stick through its handle: success within 12 cm of the goal with the stick in the handle."""

    poses: ClassVar = {
        "stick": body_pos("stick"),
        "stick_mat": body_mat("stick"),
        "handle": site_pos("insertion"),
        "stick_end": site_pos("stick_end"),
    }

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["stick"], poses["stick_mat"]), (poses["handle"], None)]

    def evaluate(self, state: TaskState) -> Outcome:
        stick, target, stick_init, radius = state.obj, state.target_pos, state.constant("stick_init_pos"), 0.05
        opened, handle, end_of_stick = state.opened, state.obs[:, 11:14], state.poses["stick_end"]
        offset, scale = vector(stick, 0.05, 0.0, 0.0), vector(stick, 1.0, 1.0, 2.0)
        container, container_init = handle + offset, state.obj_init_pos + offset
        tcp_to_stick = norm(stick - state.tcp_center)
        handle_to_target = norm(handle - target)

        # The stick to the handle, then stick and container to the goal.
        stick_in_place = tolerance(
            norm((stick - container) * scale),
            bounds=(0.0, radius),
            margin=norm((stick_init - container_init) * scale),
            sigmoid="long_tail",
        )
        stick_in_place_2 = tolerance(
            norm(stick - target), bounds=(0.0, radius), margin=norm(stick_init - target), sigmoid="long_tail"
        )
        container_in_place = tolerance(
            norm(container - target),
            bounds=(0.0, radius),
            margin=norm(state.obj_init_pos - target),
            sigmoid="long_tail",
        )
        object_grasped = gripper_caging_reward(
            state,
            stick,
            obj_radius=0.014,
            pad_success_thresh=0.05,
            object_reach_radius=0.01,
            xz_thresh=0.01,
            high_density=True,
        )
        holding = (tcp_to_stick < 0.02) & (opened > 0) & (stick[:, 2] - 0.01 > stick_init[:, 2])
        object_grasped = ops.where(holding, 1.0, object_grasped)
        in_place_and_object_grasped = hamacher_product(object_grasped, stick_in_place)
        to_handle = end_of_stick - handle
        inserted = (to_handle[:, 0] >= 0) & (abs(to_handle[:, 1]) <= 0.04) & (abs(to_handle[:, 2]) <= 0.06)

        carrying = 1.0 + in_place_and_object_grasped + 5.0 * stick_in_place
        pulling = 1.0 + in_place_and_object_grasped + 5.0 + 2.0 * stick_in_place_2 + container_in_place
        reward = ops.where(holding, ops.where(inserted, pulling, carrying), in_place_and_object_grasped)
        reward = ops.where(holding & inserted & (handle_to_target <= 0.12), 10.0, reward)
        return Outcome(
            reward=reward,
            success=(handle_to_target <= 0.12) & inserted,
            near_object=tcp_to_stick <= 0.03,
            grasp_success=state.touching & (opened > 0) & (stick[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=stick_in_place,
            obj_to_target=handle_to_target,
        )
