"""A door to close, and the lock of a door."""

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
    geom_mat,
    geom_pos,
    hamacher_product,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


@task("door-close-v3")
class DoorClose(Task):
    """Swing an open door shut: success when its handle is within 8 cm of the goal."""

    poses: ClassVar = {"handle": geom_pos("handle"), "handle_mat": geom_mat("handle")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["handle"], poses["handle_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, target, radius = state.obj, state.target_pos, 0.05
        obj_to_target = norm(obj - target)
        in_place = tolerance(
            obj_to_target, bounds=(0.0, radius), margin=norm(state.obj_init_pos - target), sigmoid="gaussian"
        )
        hand_in_place = tolerance(
            norm(state.tcp_center - target),
            bounds=(0.0, 0.25 * radius),
            margin=norm(state.constant("hand_init_pos") - obj) + 0.1,
            sigmoid="gaussian",
        )
        return Outcome(
            reward=ops.where(obj_to_target < radius, 10.0, 3 * hand_in_place + 6 * in_place),
            success=obj_to_target <= 0.08,
            near_object=0.0,
            grasp_success=1.0,
            grasp_reward=1.0,
            in_place_reward=hand_in_place,
            obj_to_target=obj_to_target,
        )


@task("door-lock-v3")
class DoorLock(Task):
    """Turn the lock of a door until it is locked: success within 2 cm of the height where it is."""

    poses: ClassVar = {"lock": site_pos("lockStartLock"), "door_quat": body_quat("door_link")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["lock"], poses["door_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, lock_length = state.obj, 0.1
        tcp_to_obj = norm((obj - state.left_pad) * vector(obj, 0.25, 1.0, 0.5))
        obj_to_target = abs(state.target_pos[:, 2] - obj[:, 2])
        # The official margin is the distance of the "initial" left pad, which is a view of the current one.
        near_lock = tolerance(tcp_to_obj, bounds=(0.0, 0.01), margin=tcp_to_obj, sigmoid="long_tail")
        lock_pressed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=lock_length, sigmoid="long_tail")
        return Outcome(
            reward=2 * hamacher_product(state.opened, near_lock) + 8 * lock_pressed,
            success=obj_to_target <= 0.02,
            near_object=tcp_to_obj <= 0.05,
            grasp_success=state.opened > 0,
            grasp_reward=near_lock,
            in_place_reward=lock_pressed,
            obj_to_target=obj_to_target,
        )


@task("door-unlock-v3")
class DoorUnlock(Task):
    """Turn the lock of a door until it is unlocked: success within 2 cm along x of where it is."""

    poses: ClassVar = {
        "lock": site_pos("lockStartUnlock"),
        "door_quat": body_quat("door_link"),
        "axis": body_pos("lock_link"),
    }

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["lock"], poses["door_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        lock, lock_length = state.obj, 0.1
        offset, scale = vector(lock, 0.0, 0.055, 0.07), vector(lock, 0.25, 1.0, 0.5)
        shoulder_to_lock = norm((state.hand + offset - lock) * scale)
        # `obj_init_pos` is a view of the body that turns; its origin, on the axis, rests.
        shoulder_to_lock_init = norm((state.init_tcp + offset - state.poses["axis"]) * scale)
        ready_to_push = tolerance(
            shoulder_to_lock, bounds=(0.0, 0.02), margin=shoulder_to_lock_init, sigmoid="long_tail"
        )
        obj_to_target = abs(state.target_pos[:, 0] - lock[:, 0])
        pushed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=lock_length, sigmoid="long_tail")
        return Outcome(
            reward=2 * ready_to_push + 8 * pushed,
            success=obj_to_target <= 0.02,
            near_object=shoulder_to_lock <= 0.05,
            grasp_success=state.opened > 0,
            grasp_reward=ready_to_push,
            in_place_reward=pushed,
            obj_to_target=obj_to_target,
        )
