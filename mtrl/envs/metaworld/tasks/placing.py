"""Things to pick up and carry to a place: a bin, a hole, a shelf, a basket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    above_floor,
    body_pos,
    body_quat,
    funnel_floor,
    geom_mat,
    gripper_caging_reward,
    hamacher_product,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


@task("basketball-v3")
class Basketball(Task):
    """Pick up the ball and drop it through the basket: success within 8 cm of its middle (z counts double)."""

    poses: ClassVar = {"ball": body_pos("bsktball"), "ball_quat": body_quat("bsktball"), "goal": site_pos("goal")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["ball"], poses["ball_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, radius = state.obj, state.opened, 0.08
        # The official `_target_pos` is a view of the site; its height is replaced.
        basket, scale = state.poses["goal"], vector(obj, 1.0, 1.0, 2.0)
        target = ops.cat((basket[:, :2], ops.full_like(basket[:, 2:], 0.3)))
        target_to_obj = norm((obj - target) * scale)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, radius),
            margin=norm((state.obj_init_pos - target) * scale),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.01,
            obj_radius=0.025,
            pad_success_thresh=0.06,
            xz_thresh=0.005,
            high_density=True,
        )
        holding = (tcp_to_obj < 0.035) & (opened > 0) & (obj[:, 2] - 0.01 > state.obj_init_pos[:, 2])
        object_grasped = ops.where(holding, 1.0, object_grasped)
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where(holding, reward + 1.0 + 5.0 * in_place, reward)
        return Outcome(
            reward=ops.where(target_to_obj < radius, 10.0, reward),
            success=target_to_obj <= radius,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=(opened > 0) & (obj[:, 2] - 0.03 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("bin-picking-v3")
class BinPicking(Task):
    """Take the block out of one bin and put it into the other: success within 5 cm of its middle."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_quat": body_quat("obj"), "bin": body_pos("bin_goal")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        hand, obj, obj_init = state.hand, state.obj, state.obj_init_pos
        target = state.poses["bin"]  # the official `_target_pos` is a view of it
        target_to_obj = norm(obj - target)
        # The margin is noted in the first step, in which a block that touches a wall of the bin is pushed off it.
        in_place = tolerance(
            target_to_obj, bounds=(0.0, 0.05), margin=state.constant("_target_to_obj_init"), sigmoid="long_tail"
        )
        object_grasped = gripper_caging_reward(
            state,
            obj,
            obj_radius=0.015,
            pad_success_thresh=0.05,
            object_reach_radius=0.01,
            xz_thresh=0.01,
            desired_gripper_effort=0.7,
            high_density=True,
        )
        # Between the bins the hand is to be high, over a funnel at each.
        floor = ops.minimum(
            funnel_floor(norm((hand - obj_init)[:, :2]), threshold=0.03, slope=0.02, height=0.2),
            funnel_floor(norm((hand - target)[:, :2]), threshold=0.03, slope=0.02, height=0.2),
        )
        carried = hamacher_product(above_floor(hand[:, 2], floor, margin=0.05), in_place)
        near_object = norm(obj - hand) < 0.04
        pinched_without_obj = state.opened < 0.43
        lifted = obj[:, 2] - 0.02 > obj_init[:, 2]
        grasp_success = near_object & lifted & ~pinched_without_obj
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where(grasp_success, reward + 1.0 + 5.0 * carried, reward)
        return Outcome(
            reward=ops.where(target_to_obj < 0.05, 10.0, reward),
            success=target_to_obj <= 0.05,
            near_object=near_object,
            grasp_success=grasp_success,
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("hand-insert-v3")
class HandInsert(Task):
    """Put a block into a hole with the gripper reaching in: success within 5 cm of the goal."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_quat": body_quat("obj")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        target_to_obj = norm(obj - target)
        in_place = tolerance(
            target_to_obj, bounds=(0.0, 0.05), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.01,
            obj_radius=0.015,
            pad_success_thresh=0.05,
            xz_thresh=0.005,
            high_density=True,
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where((tcp_to_obj < 0.02) & (opened > 0), reward + 1.0 + 7.0 * in_place, reward)
        return Outcome(
            reward=ops.where(target_to_obj < 0.05, 10.0, reward),
            success=target_to_obj <= 0.05,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0) & (obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("pick-out-of-hole-v3")
class PickOutOfHole(Task):
    """Pick a puck out of a hole and carry it to a goal: success within 7 cm."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_quat": body_quat("obj")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, obj_init, target, tcp = state.obj, state.obj_init_pos, state.target_pos, state.tcp_center
        obj_to_target, tcp_to_obj = norm(obj - target), norm(obj - tcp)
        # Into the hole from above, over a funnel.
        floor = funnel_floor(norm((tcp - obj_init)[:, :2]), threshold=0.03, slope=0.015, height=0.15)
        in_place = tolerance(obj_to_target, bounds=(0.0, 0.02), margin=norm(obj_init - target), sigmoid="long_tail")
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.01,
            obj_radius=0.015,
            pad_success_thresh=0.02,
            xz_thresh=0.03,
            desired_gripper_effort=0.1,
            high_density=True,
        )
        carried = hamacher_product(in_place, above_floor(tcp[:, 2], floor, margin=0.02))
        pinched_without_obj = state.opened < 0.33
        lifted = obj[:, 2] - 0.02 > obj_init[:, 2]
        grasp_success = (tcp_to_obj < 0.04) & lifted & ~pinched_without_obj
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where(grasp_success, reward + 1.0 + 5.0 * carried, reward)
        return Outcome(
            reward=ops.where(obj_to_target < 0.05, 10.0, reward),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=grasp_success,
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )


@task("shelf-place-v3")
class ShelfPlace(Task):
    """Pick up a block and place it on a shelf: success within 7 cm of the goal."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        obj_to_target, tcp_to_obj = norm(obj - target), norm(obj - state.tcp_center)
        in_place = tolerance(
            obj_to_target, bounds=(0.0, 0.05), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        object_grasped = gripper_caging_reward(
            state, obj, obj_radius=0.02, pad_success_thresh=0.05, object_reach_radius=0.01, xz_thresh=0.01
        )
        reward = hamacher_product(object_grasped, in_place)
        in_place = self._outside_of_shelf(obj, target, in_place)
        holding = (tcp_to_obj < 0.025) & (opened > 0) & (obj[:, 2] - 0.01 > state.obj_init_pos[:, 2])
        reward = ops.where(holding, reward + 1.0 + 5.0 * in_place, reward)
        return Outcome(
            reward=ops.where(obj_to_target < 0.05, 10.0, reward),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0) & (obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )

    @staticmethod
    def _outside_of_shelf(obj: Array, target: Array, in_place: Array) -> Array:
        """`in_place`, less in front of the shelf's lower part and nothing inside of it."""
        depth, shelf_height = 0.15, 0.24
        x, y, z = obj[:, 0], obj[:, 1], obj[:, 2]
        front = target[:, 1] - depth
        low = (z > 0.0) & (z < shelf_height) & (x > target[:, 0] - 0.15) & (x < target[:, 0] + 0.15)
        bound_loss = hamacher_product((y - front) / depth, (shelf_height - z) / shelf_height)
        in_front = low & (y > front) & (y < target[:, 1])
        in_place = ops.where(in_front, (in_place - bound_loss).clip(0.0, 1.0), in_place)
        return ops.where(low & (y > target[:, 1]), 0.0, in_place)


@task("peg-unplug-side-v3")
class PegUnplugSide(Task):
    """Pull a peg out of its hole, sideways: success within 7 cm of the goal."""

    poses: ClassVar = {"peg_end": site_pos("pegEnd"), "peg_quat": body_quat("plug1")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["peg_end"], poses["peg_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, target = state.obj, state.target_pos
        tcp_to_obj, obj_to_target = norm(obj - state.tcp_center), norm(obj - target)
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.01,
            obj_radius=0.025,
            pad_success_thresh=0.05,
            xz_thresh=0.005,
            desired_gripper_effort=0.8,
            high_density=True,
        )
        in_place = tolerance(
            obj_to_target, bounds=(0.0, 0.05), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        grasp_success = (state.opened > 0.5) & (obj[:, 0] - state.obj_init_pos[:, 0] > 0.015)
        reward = 2 * object_grasped
        pulling = grasp_success & (tcp_to_obj < 0.035)
        reward = ops.where(pulling, 1.0 + reward + 5.0 * in_place, reward)
        return Outcome(
            reward=ops.where(obj_to_target <= 0.05, 10.0, reward),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=grasp_success,
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )
