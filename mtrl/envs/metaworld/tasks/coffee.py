"""The coffee machine: its button, and a mug under it."""

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
    gripper_caging_reward,
    hamacher_product,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


@task("coffee-button-v3")
class CoffeeButton(Task):
    """Press the button of the coffee machine: success within 2 cm of its stop."""

    poses: ClassVar = {"button": site_pos("buttonStart")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        button = poses["button"]
        upright = vector(button, 1.0, 0.0, 0.0, 0.0) + 0 * button[:, :1]  # (N, 4)
        return [(button, upright)]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, max_dist = state.obj, 0.03
        tcp_to_obj = norm(obj - state.tcp_center)
        obj_to_target = abs(state.target_pos[:, 1] - obj[:, 1])
        near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.05), margin=norm(obj - state.init_tcp), sigmoid="long_tail")
        button_pressed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=max_dist, sigmoid="long_tail")
        reward = 2 * hamacher_product(state.opened, near_button)
        return Outcome(
            reward=ops.where(tcp_to_obj <= 0.05, reward + 8 * button_pressed, reward),
            success=obj_to_target <= 0.02,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=state.opened > 0,
            grasp_reward=near_button,
            in_place_reward=button_pressed,
            obj_to_target=obj_to_target,
        )


class Mug(Task):
    """A mug that goes to a goal on the table: success within 7 cm."""

    poses: ClassVar = {"mug": body_pos("obj"), "mug_mat": geom_mat("mug")}
    main_geom = "mug"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["mug"], poses["mug_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        scale = vector(obj, 2.0, 2.0, 1.0)
        target_to_obj = norm((obj - target) * scale)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, 0.05),
            margin=norm((state.obj_init_pos - target) * scale),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(obj - state.tcp_center)
        object_grasped = gripper_caging_reward(
            state,
            obj,
            object_reach_radius=0.04,
            obj_radius=0.02,
            pad_success_thresh=0.05,
            xz_thresh=0.05,
            desired_gripper_effort=0.7,
            medium_density=True,
        )
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where((tcp_to_obj < 0.04) & (opened > 0), reward + 1.0 + 5.0 * in_place, reward)
        obj_to_target = norm(obj - target)
        return Outcome(
            reward=ops.where(target_to_obj < 0.05, 10.0, reward),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )


@task("coffee-pull-v3")
class CoffeePull(Mug):
    """Pull a mug out of the coffee machine to a goal."""


@task("coffee-push-v3")
class CoffeePush(Mug):
    """Push a mug under the coffee machine."""
