"""Buttons: on the front of a box, on top of it, behind a wall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.base import (
    Outcome,
    Task,
    TaskState,
    body_pos,
    body_quat,
    hamacher_product,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


class FrontButton(Task):
    """A button on the front of a box, which is pushed along y."""

    poses: ClassVar = {"button": body_pos("button"), "button_quat": body_quat("button")}
    main_geom = "btnGeom"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["button"] + vector(poses["button"], 0.0, -0.193, 0.0), poses["button_quat"])]


@task("button-press-v3")
class ButtonPress(FrontButton):
    """Press a button on the front of a box: success within 2 cm of its stop."""

    def evaluate(self, state: TaskState) -> Outcome:
        obj = state.obj
        tcp_to_obj = norm(obj - state.tcp_center)
        obj_to_target = abs(state.target_pos[:, 1] - obj[:, 1])
        near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.05), margin=norm(obj - state.init_tcp), sigmoid="long_tail")
        button_pressed = tolerance(
            obj_to_target, bounds=(0.0, 0.005), margin=state.constant("_obj_to_target_init"), sigmoid="long_tail"
        )
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


@task("button-press-wall-v3")
class ButtonPressWall(FrontButton):
    """Go past a wall and press a button on the front of a box: success within 3 cm of its stop."""

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened = state.obj, state.opened
        tcp_to_obj = norm(obj - state.tcp_center)
        obj_to_target = abs(state.target_pos[:, 1] - obj[:, 1])
        near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.01), margin=norm(obj - state.init_tcp), sigmoid="long_tail")
        button_pressed = tolerance(
            obj_to_target, bounds=(0.0, 0.005), margin=state.constant("_obj_to_target_init"), sigmoid="long_tail"
        )
        # On the way closed (the half is the official code's), at the button open.
        far = 2 * hamacher_product((1 - opened) / 2, near_button)
        near = 2 + 2 * (1 + opened) + 4 * button_pressed**2
        return Outcome(
            reward=ops.where(tcp_to_obj > 0.07, far, near),
            success=obj_to_target <= 0.03,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=opened > 0,
            grasp_reward=near_button,
            in_place_reward=button_pressed,
            obj_to_target=obj_to_target,
        )


@task("button-press-topdown-wall-v3")
class ButtonPressTopdownWall(Task):
    """Go past a wall and press a button from above: success within 2.4 cm of its stop."""

    poses: ClassVar = {"button": body_pos("button"), "button_quat": body_quat("button")}
    main_geom = "btnGeom"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["button"] + vector(poses["button"], 0.0, 0.0, 0.193), poses["button_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj = state.obj
        tcp_to_obj = norm(obj - state.tcp_center)
        obj_to_target = abs(state.target_pos[:, 2] - obj[:, 2])
        near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.01), margin=norm(obj - state.init_tcp), sigmoid="long_tail")
        button_pressed = tolerance(
            obj_to_target, bounds=(0.0, 0.005), margin=state.constant("_obj_to_target_init"), sigmoid="long_tail"
        )
        reward = 5 * hamacher_product(state.opened, near_button)
        return Outcome(
            reward=ops.where(tcp_to_obj <= 0.03, reward + 5 * button_pressed, reward),
            success=obj_to_target <= 0.024,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=state.opened > 0,
            grasp_reward=near_button,
            in_place_reward=button_pressed,
            obj_to_target=obj_to_target,
        )
