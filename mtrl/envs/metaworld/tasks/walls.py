"""Reaching, pushing and placing past a wall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    body_pos,
    geom_mat,
    geom_pos,
    gripper_caging_reward,
    hamacher_product,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector

RADIUS = 0.05
"""Distance from the goal that gives the full reward, m."""
WALL_Y = 0.75
"""Beyond it the object is over or past the wall, m."""


@task("reach-wall-v3")
class ReachWall(Task):
    """Go past a wall and move the gripper to a goal: success within 5 cm."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        target = state.target_pos
        tcp_to_target = norm(state.tcp_center - target)
        in_place = tolerance(
            tcp_to_target,
            bounds=(0.0, RADIUS),
            margin=norm(state.constant("hand_init_pos") - target),
            sigmoid="long_tail",
        )
        return Outcome(
            reward=10 * in_place,
            success=tcp_to_target <= 0.05,
            near_object=0.0,
            grasp_success=0.0,
            grasp_reward=0.0,
            in_place_reward=in_place,
            obj_to_target=tcp_to_target,
        )


class PuckAndWall(Task):
    """A puck that goes past a wall, by way of a point at it, to a goal: success within 7 cm."""

    poses: ClassVar = {"puck": geom_pos("objGeom"), "puck_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["puck"], poses["puck_mat"])]

    def evaluate_way(
        self, state: TaskState, in_place_part1: Array, object_grasped: Array, approach: Array, holding: Array
    ) -> Outcome:
        """What both tasks share.

        Args:
            state: Of the step.
            in_place_part1: (N,) nearness of the puck to the point at the wall.
            object_grasped: (N,) caging reward.
            approach: (N,) reward until the puck is held, and part of it from then on.
            holding: (N,) bool.
        """
        obj, target = state.obj, state.target_pos
        tcp_to_obj, obj_to_target = norm(obj - state.tcp_center), norm(obj - target)
        in_place_part2 = tolerance(
            obj_to_target, bounds=(0.0, RADIUS), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        before_wall = approach + 1.0 + 4.0 * in_place_part1
        past_wall = approach + 1.0 + 4.0 + 3.0 * in_place_part2
        reward = ops.where(holding, ops.where(obj[:, 1] > WALL_Y, past_wall, before_wall), approach)
        lifted = obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]
        return Outcome(
            reward=ops.where(obj_to_target < RADIUS, 10.0, reward),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (state.opened > 0) & lifted,
            grasp_reward=object_grasped,
            in_place_reward=in_place_part2,
            obj_to_target=obj_to_target,
        )


@task("pick-place-wall-v3")
class PickPlaceWall(PuckAndWall):
    """Pick up a puck, carry it over a wall and place it at a goal."""

    def evaluate(self, state: TaskState) -> Outcome:
        obj, obj_init, target_x = state.obj, state.obj_init_pos, state.target_pos[:, 0]
        over_wall = ops.stack((target_x, ops.full_like(target_x, 0.77), ops.full_like(target_x, 0.25)))
        scale = vector(obj, 1.0, 1.0, 3.0)
        in_place_part1 = tolerance(
            norm((obj - over_wall) * scale),
            bounds=(0.0, RADIUS),
            margin=norm((obj_init - over_wall) * scale),
            sigmoid="long_tail",
        )
        object_grasped = gripper_caging_reward(
            state, obj, obj_radius=0.015, pad_success_thresh=0.05, object_reach_radius=0.01, xz_thresh=0.005
        )
        holding = (norm(obj - state.tcp_center) < 0.02) & (state.opened > 0) & (obj[:, 2] - 0.015 > obj_init[:, 2])
        approach = hamacher_product(object_grasped, in_place_part1)
        return self.evaluate_way(state, in_place_part1, object_grasped, approach, holding)


@task("push-wall-v3")
class PushWall(PuckAndWall):
    """Push a puck round a wall to a goal."""

    def evaluate(self, state: TaskState) -> Outcome:
        obj, z = state.obj, state.obj[:, 2]
        beside_wall = ops.stack((ops.full_like(z, -0.05), ops.full_like(z, 0.77), z))
        scale = vector(obj, 3.0, 1.0, 1.0)
        in_place_part1 = tolerance(
            norm((obj - beside_wall) * scale),
            bounds=(0.0, RADIUS),
            margin=norm((state.obj_init_pos - beside_wall) * scale),
            sigmoid="long_tail",
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
        holding = (norm(obj - state.tcp_center) < 0.02) & (state.opened > 0)
        return self.evaluate_way(state, in_place_part1, object_grasped, 2 * object_grasped, holding)
