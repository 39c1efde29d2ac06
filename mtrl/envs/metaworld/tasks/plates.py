"""A plate that slides into a cabinet and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    geom_mat,
    geom_pos,
    hamacher_product,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm

RADIUS = 0.05
"""Distance at which plate and hand count as in place, m."""


class Plate(Task):
    """A plate that slides on the table to a goal: success within 7 cm."""

    poses: ClassVar = {"plate": geom_pos("puck"), "plate_mat": geom_mat("puck")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["plate"], poses["plate_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        """By default from above: first the hand onto the plate, then the plate to the goal."""
        obj, target, tcp = state.obj, state.target_pos, state.tcp_center
        obj_to_target, tcp_to_obj = norm(obj - target), norm(tcp - obj)
        in_place_margin = norm(state.obj_init_pos - target)
        in_place = tolerance(obj_to_target, bounds=(0.0, RADIUS), margin=in_place_margin - RADIUS, sigmoid="long_tail")
        obj_grasped_margin = norm(state.init_tcp - state.obj_init_pos)
        object_grasped = tolerance(
            tcp_to_obj, bounds=(0.0, RADIUS), margin=obj_grasped_margin - RADIUS, sigmoid="long_tail"
        )
        on_plate = (tcp[:, 2] <= 0.03) & (tcp_to_obj < 0.07)
        reward = ops.where(on_plate, 2.0 + 7.0 * in_place, 1.5 * object_grasped)
        return plate_outcome(reward, obj_to_target, tcp_to_obj, object_grasped, in_place)


@task("plate-slide-v3")
class PlateSlide(Plate):
    """Slide a plate forward into a cabinet."""

    def evaluate(self, state: TaskState) -> Outcome:
        obj, target = state.obj, state.target_pos
        obj_to_target, tcp_to_obj = norm(obj - target), norm(state.tcp_center - obj)
        in_place = tolerance(
            obj_to_target, bounds=(0.0, RADIUS), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        object_grasped = tolerance(
            tcp_to_obj, bounds=(0.0, RADIUS), margin=norm(state.init_tcp - state.obj_init_pos), sigmoid="long_tail"
        )
        reward = 8 * hamacher_product(object_grasped, in_place)
        return plate_outcome(reward, obj_to_target, tcp_to_obj, object_grasped, in_place)


@task("plate-slide-side-v3")
class PlateSlideSide(Plate):
    """Slide a plate sideways into a cabinet."""


@task("plate-slide-back-v3")
class PlateSlideBack(Plate):
    """Pull a plate out of a cabinet, towards the robot."""


@task("plate-slide-back-side-v3")
class PlateSlideBackSide(Plate):
    """Pull a plate out of a cabinet, sideways."""


def plate_outcome(
    reward: Array, obj_to_target: Array, tcp_to_obj: Array, object_grasped: Array, in_place: Array
) -> Outcome:
    """What all plates share."""
    return Outcome(
        reward=ops.where(obj_to_target < RADIUS, 10.0, reward),
        success=obj_to_target <= 0.07,
        near_object=tcp_to_obj <= 0.03,
        grasp_success=0.0,
        grasp_reward=object_grasped,
        in_place_reward=in_place,
        obj_to_target=obj_to_target,
    )
