"""The ten tasks of MT10."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Sigmoid,
    Task,
    TaskState,
    above_floor,
    body_pos,
    body_quat,
    effort_caging_reward,
    funnel_floor,
    geom_mat,
    geom_pos,
    gripper_caging_reward,
    hamacher_product,
    joint_pos,
    rect_prism_tolerance,
    site_mat,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector

Objects = Sequence[tuple[Array, Array | None]]


@task("reach-v3")
class Reach(Task):
    """Move the gripper to a goal in the air."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        reach_dist = norm(state.tcp_center - state.target_pos)
        in_place = tolerance(
            reach_dist,
            bounds=(0.0, 0.05),
            margin=norm(state.constant("hand_init_pos") - state.target_pos),
            sigmoid="long_tail",
        )
        return Outcome(
            reward=10 * in_place,
            success=reach_dist <= 0.05,
            near_object=reach_dist,
            grasp_success=1.0,
            grasp_reward=reach_dist,
            in_place_reward=in_place,
            obj_to_target=reach_dist,
        )


@task("push-v3")
class Push(Task):
    """Push a puck to a goal on the table."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        tcp_to_obj = norm(obj - state.tcp_center)
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
        reward = 2 * object_grasped
        holding = (tcp_to_obj < 0.02) & (opened > 0)
        reward = ops.where(holding, 2 * reward + 1.0 + 5.0 * in_place, reward)
        reward = ops.where(target_to_obj < 0.05, 10.0, reward)
        return Outcome(
            reward=reward,
            success=target_to_obj <= 0.05,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0) & (obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("pick-place-v3")
class PickPlace(Task):
    """Pick up a puck and carry it to a goal in the air."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        lift = obj[:, 2] - state.obj_init_pos[:, 2]
        obj_to_target = norm(obj - target)
        tcp_to_obj = norm(obj - state.tcp_center)
        in_place = tolerance(
            obj_to_target, bounds=(0.0, 0.05), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        object_grasped = effort_caging_reward(state, obj)
        reward = hamacher_product(object_grasped, in_place)
        holding = (tcp_to_obj < 0.02) & (opened > 0) & (lift > 0.01)
        reward = ops.where(holding, reward + 1.0 + 5.0 * in_place, reward)
        reward = ops.where(obj_to_target < 0.05, 10.0, reward)
        return Outcome(
            reward=reward,
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0) & (lift > 0.02),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )


@task("door-open-v3")
class DoorOpen(Task):
    """Pull a door open on its hinge."""

    poses: ClassVar = {"handle": geom_pos("handle"), "handle_mat": geom_mat("handle"), "angle": joint_pos("doorjoint")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["handle"], poses["handle_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        theta = state.poses["angle"]
        grab_effort = (state.effort + 1) / 2
        ready_to_open = self._ready_to_open(state.hand, state.obj)
        opened = 0.8 * tolerance(
            math.pi / 2 + math.pi / 6 + theta, bounds=(0.0, 0.5), margin=math.pi / 3, sigmoid="long_tail"
        )
        opened = ops.where(theta < -math.pi / 90, 0.2 + opened, opened)
        success = abs(state.obj[:, 0] - state.target_pos[:, 0]) <= 0.08
        reward = 2 * hamacher_product(ready_to_open, grab_effort) + 8 * opened
        return Outcome(
            reward=ops.where(success, 10.0, reward),
            success=success,
            near_object=ready_to_open,
            grasp_success=grab_effort >= 0.5,
            grasp_reward=grab_effort,
            in_place_reward=opened,
            obj_to_target=0.0,
        )

    @staticmethod
    def _ready_to_open(hand: Array, handle: Array) -> Array:
        """Whether the hand is between handle and door, and got there from above: over a funnel round the handle."""
        threshold = 0.12
        door = handle + vector(handle, -0.05, 0.0, 0.0)
        floor = funnel_floor(norm((hand - door)[:, :2]), threshold, slope=0.04, height=0.4)
        in_place = tolerance(
            norm(hand - door - vector(hand, 0.05, 0.03, -0.01)),
            bounds=(0.0, threshold / 2),
            margin=0.5,
            sigmoid="long_tail",
        )
        return hamacher_product(above_floor(hand[:, 2], floor, margin=floor / 2), in_place)


@task("drawer-open-v3")
class DrawerOpen(Task):
    """Pull a drawer open by its handle."""

    poses: ClassVar = {"drawer": body_pos("drawer_link"), "drawer_quat": body_quat("drawer_link")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["drawer"] + vector(poses["drawer"], 0.0, -0.16, 0.0), poses["drawer_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        handle, target, max_dist = state.obj, state.target_pos, 0.2
        handle_error = norm(handle - target)
        opening = tolerance(handle_error, bounds=(0.0, 0.02), margin=max_dist, sigmoid="long_tail")
        scale = vector(handle, 3.0, 3.0, 1.0)
        handle_pos_init = target + vector(handle, 0.0, max_dist, 0.0)
        caging = tolerance(
            norm((handle - state.hand) * scale),
            bounds=(0.0, 0.01),
            margin=norm((handle_pos_init - state.init_tcp) * scale),
            sigmoid="long_tail",
        )
        return Outcome(
            reward=5 * (caging + opening),
            success=handle_error <= 0.03,
            near_object=norm(handle - state.hand) <= 0.03,
            grasp_success=state.opened > 0,
            grasp_reward=caging,
            in_place_reward=opening,
            obj_to_target=handle_error,
        )


@task("drawer-close-v3")
class DrawerClose(Task):
    """Push an open drawer shut."""

    poses: ClassVar = {"drawer": body_pos("drawer_link")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["drawer"] + vector(poses["drawer"], 0.0, -0.16, 0.05), None)]

    def evaluate(self, state: TaskState) -> Outcome:
        # The official class sets _TARGET_RADIUS = .04 and reads TARGET_RADIUS, which is its parent's .05.
        obj, target, radius = state.obj, state.target_pos, 0.05
        target_to_obj = norm(obj - target)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, radius),
            margin=abs(norm(state.obj_init_pos - target) - radius),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        reach = tolerance(
            tcp_to_obj,
            bounds=(0.0, 0.005),
            margin=abs(norm(state.obj_init_pos - state.init_tcp) - 0.005),
            sigmoid="gaussian",
        )
        reach = hamacher_product(reach, state.effort.clip(0.0, 1.0))
        success = target_to_obj <= radius + 0.015
        return Outcome(
            reward=10 * ops.where(success, 1.0, hamacher_product(reach, in_place)),
            success=success,
            near_object=tcp_to_obj <= 0.01,
            grasp_success=1.0,
            grasp_reward=reach,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("button-press-topdown-v3")
class ButtonPressTopdown(Task):
    """Press a button from above."""

    poses: ClassVar = {"button": body_pos("button"), "button_quat": body_quat("button")}
    main_geom = "btnGeom"

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["button"] + vector(poses["button"], 0.0, 0.0, 0.193), poses["button_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj = state.obj
        tcp_to_obj = norm(obj - state.tcp_center)
        obj_to_target = abs(state.target_pos[:, 2] - obj[:, 2])
        near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.01), margin=norm(obj - state.init_tcp), sigmoid="long_tail")
        button_pressed = tolerance(
            obj_to_target, bounds=(0.0, 0.005), margin=state.constant("_obj_to_target_init"), sigmoid="long_tail"
        )
        reward = 5 * hamacher_product(1 - state.opened, near_button)
        return Outcome(
            reward=ops.where(tcp_to_obj <= 0.03, reward + 5 * button_pressed, reward),
            success=obj_to_target <= 0.024,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=state.opened > 0,
            grasp_reward=near_button,
            in_place_reward=button_pressed,
            obj_to_target=obj_to_target,
        )


@task("peg-insert-side-v3")
class PegInsertSide(Task):
    """Pick up a peg and insert it into a hole from the side."""

    poses: ClassVar = {
        "grasp": site_pos("pegGrasp"),
        "grasp_mat": site_mat("pegGrasp"),
        "head": site_pos("pegHead"),
        "corner_1": site_pos("bottom_right_corner_collision_box_1"),
        "opposite_1": site_pos("top_left_corner_collision_box_1"),
        "corner_2": site_pos("bottom_right_corner_collision_box_2"),
        "opposite_2": site_pos("top_left_corner_collision_box_2"),
    }

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["grasp"], poses["grasp_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target, head = state.obj, state.opened, state.target_pos, state.poses["head"]
        lifted = (opened > 0) & (obj[:, 2] - 0.01 > state.obj_init_pos[:, 2])
        tcp_to_obj = norm(obj - state.tcp_center)
        scale = vector(obj, 1.0, 2.0, 2.0)
        obj_to_target = norm((head - target) * scale)
        in_place = tolerance(
            obj_to_target,
            bounds=(0.0, 0.07),
            margin=norm((state.constant("peg_head_pos_init") - target) * scale),
            sigmoid="long_tail",
        )
        collision_boxes = hamacher_product(
            rect_prism_tolerance(head, zero=state.poses["corner_2"], one=state.poses["opposite_2"]),
            rect_prism_tolerance(head, zero=state.poses["corner_1"], one=state.poses["opposite_1"]),
        )
        in_place = hamacher_product(in_place, collision_boxes)
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.01,
            obj_radius=0.0075,
            pad_success_thresh=0.03,
            xz_thresh=0.005,
            high_density=True,
        )
        holding = (tcp_to_obj < 0.08) & lifted
        object_grasped = ops.where(holding, 1.0, object_grasped)
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where(holding, reward + 1.0 + 5 * in_place, reward)
        success = obj_to_target <= 0.07
        return Outcome(
            reward=ops.where(success, 10.0, reward),
            success=success,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=(tcp_to_obj < 0.02) & lifted,
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )


class Window(Task):
    """A window that slides along x."""

    def evaluate_slide(self, state: TaskState, slide_init: Array, reach_sigmoid: Sigmoid) -> Outcome:
        """Both directions; `slide_init` (N,) is where the handle starts on x."""
        obj, target_x, radius = state.obj, state.target_pos[:, 0], 0.05
        target_to_obj = abs(obj[:, 0] - target_x)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, radius),
            margin=abs(abs(slide_init - target_x) - radius),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        reach = tolerance(
            tcp_to_obj,
            bounds=(0.0, 0.02),
            margin=abs(norm(state.constant("window_handle_pos_init") - state.init_tcp) - 0.02),
            sigmoid=reach_sigmoid,
        )
        return Outcome(
            reward=10 * hamacher_product(reach, in_place),
            success=target_to_obj <= radius,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=1.0,
            grasp_reward=reach,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("window-open-v3")
class WindowOpen(Window):
    """Slide a window open by its handle."""

    poses: ClassVar = {"handle": site_pos("handleOpenStart")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["handle"], None)]

    def evaluate(self, state: TaskState) -> Outcome:
        return self.evaluate_slide(state, state.obj_init_pos[:, 0], "long_tail")


@task("window-close-v3")
class WindowClose(Window):
    """Slide a window shut by its handle."""

    poses: ClassVar = {"handle": site_pos("handleCloseStart")}

    def objects(self, poses: Mapping[str, Array]) -> Objects:
        return [(poses["handle"], None)]

    def evaluate(self, state: TaskState) -> Outcome:
        return self.evaluate_slide(state, state.constant("window_handle_pos_init")[:, 0], "gaussian")
