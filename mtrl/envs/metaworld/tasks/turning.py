"""What turns on an axis: faucets, a dial, a lever."""

from __future__ import annotations

import math
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
    hamacher_product,
    joint_pos,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


class Faucet(Task):
    """A handle on a faucet: success when it is within 7 cm of the goal."""

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["handle"] + vector(poses["handle"], 0.0, 0.0, -0.01), poses["base_quat"])]

    def evaluate_turn(self, state: TaskState, obj: Array) -> Outcome:
        """Both directions; `obj` (N, 3) is where the handle is to be pushed."""
        target, radius, reach_radius = state.target_pos, 0.07, 0.01
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
            bounds=(0.0, reach_radius),
            margin=abs(norm(state.obj_init_pos - state.init_tcp) - reach_radius),
            sigmoid="gaussian",
        )
        success = target_to_obj <= radius
        return Outcome(
            reward=ops.where(success, 10.0, 2 * (2 * reach + 3 * in_place)),
            success=success,
            near_object=tcp_to_obj <= 0.01,
            grasp_success=1.0,
            grasp_reward=reach,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("faucet-open-v3")
class FaucetOpen(Faucet):
    """Turn the handle of a faucet to open it."""

    poses: ClassVar = {"handle": site_pos("handleStartOpen"), "base_quat": body_quat("faucetBase")}

    def evaluate(self, state: TaskState) -> Outcome:
        return self.evaluate_turn(state, state.obj + vector(state.obj, -0.04, 0.0, 0.03))


@task("faucet-close-v3")
class FaucetClose(Faucet):
    """Turn the handle of a faucet to close it."""

    poses: ClassVar = {"handle": site_pos("handleStartClose"), "base_quat": body_quat("faucetBase")}

    def evaluate(self, state: TaskState) -> Outcome:
        return self.evaluate_turn(state, state.obj)


@task("dial-turn-v3")
class DialTurn(Task):
    """Turn a dial half way round: success when its mark is within 7 cm of the goal."""

    poses: ClassVar = {"dial": body_pos("dial"), "dial_quat": body_quat("dial"), "angle": joint_pos("knob_Joint_1")}

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        angle, radius = poses["angle"], 0.05
        mark = ops.stack((ops.sin(angle), -ops.cos(angle), ops.full_like(angle, 0.0))) * radius
        return [(poses["dial"] + mark, poses["dial_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        obj, target, tcp = state.obj, state.target_pos, state.tcp_center
        radius, reach_radius = 0.07, 0.005
        push_position = obj + vector(obj, 0.05, 0.02, 0.09)
        push_position_init = state.constant("dial_push_position")
        target_to_obj = norm(obj - target)
        in_place = tolerance(
            target_to_obj,
            bounds=(0.0, radius),
            margin=abs(norm(push_position_init - target) - radius),
            sigmoid="long_tail",
        )
        tcp_to_obj = norm(push_position - tcp)
        reach = tolerance(
            tcp_to_obj,
            bounds=(0.0, reach_radius),
            margin=abs(norm(push_position_init - state.init_tcp) - reach_radius),
            sigmoid="gaussian",
        )
        reach = hamacher_product(reach, state.effort.clip(0.0, 1.0))
        return Outcome(
            reward=10 * hamacher_product(reach, in_place),
            success=target_to_obj <= radius,
            near_object=tcp_to_obj <= 0.01,
            grasp_success=1.0,
            grasp_reward=reach,
            in_place_reward=in_place,
            obj_to_target=target_to_obj,
        )


@task("lever-pull-v3")
class LeverPull(Task):
    """Pull a lever up by a quarter turn: success within 7.5 degrees of it."""

    poses: ClassVar = {
        "lever": site_pos("leverStart"),
        "lever_mat": geom_mat("objGeom"),
        "angle": joint_pos("LeverAxis"),
    }

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["lever"], poses["lever_mat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        lever, target, lever_init = state.obj, state.target_pos, state.constant("_lever_pos_init")
        offset, scale = vector(lever, 0.0, 0.055, 0.07), vector(lever, 4.0, 1.0, 4.0)
        shoulder_to_lever = norm((state.hand + offset - lever) * scale)
        shoulder_to_lever_init = norm((state.init_tcp + offset - lever_init) * scale)
        ready_to_lift = tolerance(
            shoulder_to_lever, bounds=(0.0, 0.02), margin=shoulder_to_lever_init, sigmoid="long_tail"
        )
        lever_error = abs(-state.poses["angle"] - math.pi / 2)
        lever_engagement = tolerance(
            lever_error, bounds=(0.0, math.pi / 48), margin=math.pi / 2 - math.pi / 12, sigmoid="long_tail"
        )
        in_place = tolerance(
            norm(lever - target), bounds=(0.0, 0.04), margin=norm(lever_init - target), sigmoid="long_tail"
        )
        return Outcome(
            reward=10 * hamacher_product(ready_to_lift, in_place),
            success=lever_error <= math.pi / 24,
            near_object=shoulder_to_lever < 0.03,
            grasp_success=ready_to_lift > 0.9,
            grasp_reward=ready_to_lift,
            in_place_reward=lever_engagement,
            obj_to_target=shoulder_to_lever,
        )
