"""What is gripped by a handle and keeps its orientation: nuts, a hammer, the lid of a box."""

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
    gripper_caging_reward,
    hamacher_product,
    joint_pos,
    site_pos,
    task,
    tolerance,
)
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector


def alignment(state: TaskState, ideal: tuple[float, float, float, float], limit: float) -> Array:
    """1 where the object's quaternion (w first) is `ideal`, falling to 0 at a difference of `limit`."""
    error = norm(state.obs[:, 7:11] - vector(state.obs, *ideal))
    return (1.0 - error / limit).clip(min=0.0)


def nearest_grip(state: TaskState, handle_length: float) -> Array:
    """(N, 3): where to hold the handle, which lies along x: beside the hand, or else in the middle."""
    obj = state.obj
    beside = abs(obj[:, :1] - state.hand[:, :1]) < handle_length / 2
    return ops.where(beside, ops.cat((state.hand[:, :1], obj[:, 1:])), obj)


class Nut(Task):
    """A nut with the handle of a wrench, and a peg."""

    poses: ClassVar = {"handle": site_pos("RoundNut-8"), "nut_quat": body_quat("RoundNut"), "nut": site_pos("RoundNut")}
    main_geom = "WrenchHandle"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["handle"], poses["nut_quat"])]

    def evaluate_nut(self, state: TaskState, grab: Array, in_place: Array, success: Array) -> Outcome:
        """Both directions, from their own rewards for grabbing and moving the nut."""
        quat = alignment(state, (0.707, 0.0, 0.0, 0.707), limit=0.4)
        reward = (2.0 * grab + 6.0 * in_place) * quat
        return Outcome(
            reward=ops.where(success, 10.0, reward),
            success=success,
            near_object=quat,
            grasp_success=grab >= 0.5,
            grasp_reward=grab,
            in_place_reward=in_place,
            obj_to_target=0.0,
        )


@task("assembly-v3")
class Assembly(Nut):
    """Pick up a nut and put it over a peg: success when it is centred within 2 cm, below the peg's top."""

    def evaluate(self, state: TaskState) -> Outcome:
        grab = gripper_caging_reward(
            state,
            nearest_grip(state, handle_length=0.02),
            object_reach_radius=0.01,
            obj_radius=0.015,
            pad_success_thresh=0.02,
            xz_thresh=0.01,
            medium_density=True,
        )
        nut = state.poses["nut"]
        pos_error = state.target_pos - nut
        radius = norm(pos_error[:, :2])
        success = (radius < 0.02) & (pos_error[:, 2] > 0.0)
        # Near the peg the nut is to be high, over a funnel, until it is over the peg.
        threshold = ops.where(success, 0.02, ops.full_like(radius, 0.01))
        target_height = funnel_floor(radius, threshold, slope=0.02, height=0.2)
        pos_error = ops.stack((pos_error[:, 0], pos_error[:, 1], target_height - nut[:, 2]))
        lifted = (nut[:, 2] > 0.02) | (radius < threshold)
        in_place = 0.9 * tolerance(
            norm(pos_error * vector(nut, 1.0, 1.0, 3.0)), bounds=(0.0, 0.02), margin=0.4, sigmoid="long_tail"
        )
        return self.evaluate_nut(state, grab, ops.where(lifted, 0.1 + in_place, in_place), success)


@task("disassemble-v3")
class Disassemble(Nut):
    """Pick a nut off its peg: success when its handle is above the goal."""

    def evaluate(self, state: TaskState) -> Outcome:
        grab = gripper_caging_reward(
            state,
            nearest_grip(state, handle_length=0.02),
            object_reach_radius=0.01,
            obj_radius=0.015,
            pad_success_thresh=0.02,
            xz_thresh=0.01,
            high_density=True,
        )
        nut, target = state.poses["nut"], state.target_pos
        pos_error = target + vector(nut, 0.0, 0.0, 0.1) - nut
        in_place = 0.9 * tolerance(norm(pos_error), bounds=(0.0, 0.02), margin=0.2, sigmoid="long_tail")
        in_place = ops.where(nut[:, 2] > 0.02, 0.1 + in_place, in_place)
        return self.evaluate_nut(state, grab, in_place, success=state.obj[:, 2] > target[:, 2])


@task("hammer-v3")
class Hammer(Task):
    """Pick up a hammer and drive a nail into the wall: success when the nail is 9 cm in."""

    poses: ClassVar = {
        "hammer": body_pos("hammer"),
        "hammer_quat": body_quat("hammer"),
        "nail": body_pos("nail_link"),
        "nail_quat": body_quat("nail_link"),
        "nail_depth": joint_pos("NailSlideJoint"),
    }
    main_geom = "HammerHandle"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["hammer"], poses["hammer_quat"]), (poses["nail"], poses["nail_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        head = state.obj + vector(state.obj, 0.16, 0.06, 0.0)
        quat = alignment(state, (1.0, 0.0, 0.0, 0.0), limit=0.4)
        grab = gripper_caging_reward(
            state,
            nearest_grip(state, handle_length=0.14),
            object_reach_radius=0.01,
            obj_radius=0.015,
            pad_success_thresh=0.02,
            xz_thresh=0.01,
            high_density=True,
        )
        in_place = 0.9 * tolerance(norm(state.target_pos - head), bounds=(0.0, 0.02), margin=0.2, sigmoid="long_tail")
        in_place = ops.where(head[:, 2] > 0.02, 0.1 + in_place, in_place)
        reward = (2.0 * grab + 6.0 * in_place) * quat
        success = state.poses["nail_depth"] > 0.09
        return Outcome(
            reward=ops.where(success & (reward > 5.0), 10.0, reward),
            success=success,
            near_object=quat,
            grasp_success=grab >= 0.5,
            grasp_reward=grab,
            in_place_reward=in_place,
            obj_to_target=0.0,
        )


@task("box-close-v3")
class BoxClose(Task):
    """Pick up the lid and put it onto the box: success when it is within 8 cm of the goal."""

    poses: ClassVar = {"lid": body_pos("top_link"), "lid_quat": body_quat("top_link")}
    main_geom = "BoxHandleGeom"

    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        return [(poses["lid"], poses["lid_quat"])]

    def evaluate(self, state: TaskState) -> Outcome:
        hand, target = state.hand, state.target_pos
        lid = state.obj + vector(state.obj, 0.0, 0.0, 0.02)
        grab_effort = (state.effort.clip(-1.0, 1.0) + 1.0) / 2.0
        # To the lid from above, over a funnel, then with the lid to the goal.
        floor = funnel_floor(norm((hand - lid)[:, :2]), threshold=0.02, slope=0.04, height=0.4)
        ready_to_lift = hamacher_product(
            above_floor(hand[:, 2], floor, margin=floor / 2),
            tolerance(norm(hand - lid), bounds=(0.0, 0.02), margin=0.5, sigmoid="long_tail"),
        )
        pos_error = norm((target - lid) * vector(lid, 1.0, 1.0, 3.0))
        lifted = 0.8 * tolerance(pos_error, bounds=(0.0, 0.05), margin=0.25, sigmoid="long_tail")
        lifted = ops.where(lid[:, 2] > 0.04, 0.2 + lifted, lifted)
        success = norm(state.obj - target) < 0.08
        reward = 2.0 * hamacher_product(grab_effort, ready_to_lift) + 8.0 * lifted
        reward = ops.where(success, 10.0, reward)
        return Outcome(
            reward=reward * alignment(state, (0.707, 0.0, 0.0, 0.707), limit=0.2),
            success=success,
            near_object=ready_to_lift,
            grasp_success=grab_effort >= 0.5,
            grasp_reward=grab_effort,
            in_place_reward=lifted,
            obj_to_target=0.0,
        )
