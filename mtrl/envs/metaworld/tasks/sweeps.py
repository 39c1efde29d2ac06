"""What slides or rolls on the table, with the environments' own way to reward a cage of the two pads."""

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
    body_quat,
    geom_mat,
    geom_pos,
    hamacher_product,
    pad_caging_reward,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


class BlockToSweep(Task):
    """A block that is swept to a goal: success within 5 cm."""

    def evaluate_sweep(self, state: TaskState, target: Array, object_grasped: Array) -> Outcome:
        """Both tasks; `target` (N, 3)."""
        obj = state.obj
        obj_to_target, tcp_to_obj = norm(obj - target), norm(obj - state.tcp_center)
        in_place = tolerance(
            obj_to_target, bounds=(0.0, 0.05), margin=norm(state.obj_init_pos - target), sigmoid="long_tail"
        )
        reward = 2 * object_grasped + 6 * hamacher_product(object_grasped, in_place)
        return Outcome(
            reward=ops.where(obj_to_target < 0.05, 10.0, reward),
            success=obj_to_target <= 0.05,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (state.opened > 0),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )


@task("sweep-v3")
class Sweep(BlockToSweep):
    """Sweep a block off the table."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_quat": body_quat("obj")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        object_grasped = pad_caging_reward(state, state.obj, obj_radius=0.02, grip_margin=0.01, xz_margin=0.005)
        return self.evaluate_sweep(state, state.target_pos, object_grasped)


@task("sweep-into-v3")
class SweepInto(BlockToSweep):
    """Sweep a block into a hole in the table, at any depth."""

    poses: ClassVar = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        object_grasped = pad_caging_reward(state, state.obj, obj_radius=0.02, grip_margin=0.005, xz_margin=0.01)
        target = ops.cat((state.target_pos[:, :2], state.obj[:, 2:]))
        return self.evaluate_sweep(state, target, object_grasped)


@task("push-back-v3")
class PushBack(Task):
    """Pull a block back, towards the robot, to a goal: success within 7 cm."""

    poses: ClassVar = {"obj": geom_pos("objGeom"), "obj_mat": geom_mat("objGeom")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["obj"], poses["obj_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, opened, target = state.obj, state.opened, state.target_pos
        tcp_to_obj, target_to_obj = norm(obj - state.tcp_center), norm(obj - target)
        target_to_obj_init = norm(state.obj_init_pos - target)
        in_place = tolerance(target_to_obj, bounds=(0.0, 0.05), margin=target_to_obj_init, sigmoid="long_tail")
        object_grasped = pad_caging_reward(state, obj, obj_radius=0.007, grip_margin=0.003, xz_margin=0.01)
        pulling = (tcp_to_obj < 0.01) & (opened > 0) & (opened < 0.55) & (target_to_obj_init - target_to_obj > 0.01)
        reward = hamacher_product(object_grasped, in_place)
        reward = ops.where(pulling, reward + 1.0 + 5.0 * in_place, reward)
        return Outcome(
            reward=ops.where(target_to_obj < 0.05, 10.0, reward),
            success=target_to_obj <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (opened > 0) & (obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("soccer-v3")
class Soccer(Task):
    """Kick a ball into the goal: success within 7 cm of its middle."""

    poses: ClassVar = {"ball": body_pos("soccer_ball"), "ball_mat": body_mat("soccer_ball")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["ball"], poses["ball_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, target, radius = state.obj, state.target_pos, 0.07
        scale = vector(obj, 3.0, 1.0, 1.0)
        tcp_to_obj = norm(obj - state.tcp_center)
        target_to_obj = norm((obj - target) * scale)
        # The official margin is how far the ball has come, not how far it had to go.
        in_place = tolerance(
            target_to_obj, bounds=(0.0, radius), margin=norm((obj - state.obj_init_pos) * scale), sigmoid="long_tail"
        )
        # A ball that passes the goal line beside the goal.
        goal_line = target[:, 1] - 0.1
        beside = (obj[:, 1] > goal_line) & (abs(obj[:, 0] - target[:, 0]) > 0.1)
        penalty = 2 * (obj[:, 1] - goal_line) / (1 - goal_line)
        in_place = ops.where(beside, (in_place - penalty).clip(0.0, 1.0), in_place)
        object_grasped = pad_caging_reward(state, obj, obj_radius=0.013, grip_margin=0.01, xz_margin=0.005)
        obj_to_target = norm(obj - target)
        return Outcome(
            reward=ops.where(target_to_obj < radius, 10.0, 3 * object_grasped + 6.5 * in_place),
            success=obj_to_target <= 0.07,
            near_object=tcp_to_obj <= 0.03,
            grasp_success=state.touching & (state.opened > 0) & (obj[:, 2] - 0.02 > state.obj_init_pos[:, 2]),
            grasp_reward=object_grasped,
            in_place_reward=in_place,
            obj_to_target=obj_to_target,
        )
