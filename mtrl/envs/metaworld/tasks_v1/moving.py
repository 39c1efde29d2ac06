"""Reward v1 of what is reached and then moved, by pushing, pulling or turning, and of reaching alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mtrl.envs.metaworld.tasks import Outcome, TaskState, ops
from mtrl.envs.metaworld.tasks.base import site_pos
from mtrl.envs.metaworld.tasks.ops import Array, norm
from mtrl.envs.metaworld.tasks_v1.base import approach, outcome, progress, reward_v1

Y, Z, XY, XYZ = slice(1, 2), slice(2, 3), slice(0, 2), slice(0, 3)
"""Axes of a position."""


def near(reach_dist: Array, gain: Array) -> Array:
    """`gain` within 5 cm, else 0: (N,)."""
    return ops.where(reach_dist < 0.05, gain, 0.0)


def reached(state: TaskState, finger: Array, gain: Array) -> Array:
    """Reward (N,) for bringing `finger` (N, 3) to the object, and for `gain` (N,) within 5 cm of it."""
    reach_dist = norm(state.obj - finger)
    return near(reach_dist, gain) - reach_dist


def moved(state: TaskState, finger: Array, axes: slice, farthest: str) -> tuple[Array, Array]:
    """Reward for reaching the object and for its progress, and its distance from the target, each (N,).

    Args:
        state: Of the step.
        finger: (N, 3): what is to reach the object.
        axes: Along which the distance is measured.
        farthest: Attribute with the distance at the start.
    """
    distance = norm((state.obj - state.target_pos)[:, axes])
    return reached(state, finger, progress(state.constant(farthest), distance).clip(min=0.0)), distance


@dataclass(frozen=True)
class Moved:
    """What most tasks do: `moved` by the gripper, with success within `radius`, m; `grasp_success` is for the info."""

    axes: slice
    farthest: str
    radius: float
    grasp_success: float = 0.0

    def __call__(self, state: TaskState) -> Outcome:
        reward, distance = moved(state, self.finger(state), self.axes, self.farthest)
        return outcome(reward, distance <= self.radius, distance, grasp_success=self.grasp_success)

    def finger(self, state: TaskState) -> Array:
        """(N, 3): what is to reach the object."""
        return state.tcp_center


class Pressed(Moved):
    """The same by the left finger."""

    def finger(self, state: TaskState) -> Array:
        return state.poses["left_finger"]


_MOVED = {
    "button-press-topdown-v3": Moved(Z, "maxDist", 0.024),
    "button-press-topdown-wall-v3": Moved(Z, "maxDist", 0.024),
    "door-lock-v3": Moved(XYZ, "maxPullDist", 0.02),
    "door-unlock-v3": Moved(XYZ, "maxPullDist", 0.02),
    "drawer-close-v3": Moved(Y, "maxDist", 0.05 + 0.015, grasp_success=1.0),
    "drawer-open-v3": Moved(Y, "maxDist", 0.03),
    "faucet-close-v3": Moved(XYZ, "maxPullDist", 0.07, grasp_success=1.0),
    "faucet-open-v3": Moved(XYZ, "maxPullDist", 0.07, grasp_success=1.0),
    "plate-slide-v3": Moved(XY, "maxDist", 0.07),
    "plate-slide-back-v3": Moved(XY, "maxDist", 0.07),
    "plate-slide-back-side-v3": Moved(XY, "maxDist", 0.07),
    "plate-slide-side-v3": Moved(XY, "maxDist", 0.07),
    "push-v3": Moved(XY, "maxPushDist", 0.05),
    "push-back-v3": Moved(XY, "maxPushDist", 0.07),
    "push-wall-v3": Moved(XY, "maxPushDist", 0.07),
    "soccer-v3": Moved(XY, "maxPushDist", 0.07),
}
for _name, _moved in _MOVED.items():
    reward_v1(_name)(_moved)

_PRESSED = {
    "button-press-v3": Pressed(Y, "maxDist", 0.02),
    "button-press-wall-v3": Pressed(Y, "maxDist", 0.03),
    "coffee-button-v3": Pressed(Y, "maxDist", 0.02),
    "handle-press-v3": Pressed(Z, "maxDist", 0.02, grasp_success=1.0),
    "handle-press-side-v3": Pressed(Z, "maxDist", 0.02, grasp_success=1.0),
    "handle-pull-v3": Pressed(Z, "maxDist", 0.05),
    "handle-pull-side-v3": Pressed(Z, "maxDist", 0.08),
}
for _name, _pressed in _PRESSED.items():
    reward_v1(_name, left_finger=site_pos("leftEndEffector"))(_pressed)


# --- With a success or an info of their own ---------------------------------------------------------------------------


@reward_v1("coffee-push-v3")
def coffee_push(state: TaskState) -> Outcome:
    """Moved in the plane; success counts the height."""
    reward, _ = moved(state, state.tcp_center, XY, "maxPushDist")
    obj_to_target = norm(state.obj - state.target_pos)
    return outcome(reward, obj_to_target <= 0.07, obj_to_target)


@reward_v1("door-close-v3")
def door_close(state: TaskState) -> Outcome:
    """Moved in the plane."""
    reward, distance = moved(state, state.tcp_center, XY, "maxPullDist")
    return outcome(reward, distance <= 0.08, distance, near_object=0.0, grasp_success=1.0, grasp_reward=1.0)


@reward_v1("door-open-v3")
def door_open(state: TaskState) -> Outcome:
    """Moved in the plane; success looks at x only."""
    reward, _ = moved(state, state.tcp_center, XY, "maxPullDist")
    success = abs(state.obj[:, 0] - state.target_pos[:, 0]) <= 0.08
    return outcome(reward, success, obj_to_target=0.0, near_object=0.0)


@reward_v1("lever-pull-v3")
def lever_pull(state: TaskState) -> Outcome:
    """Moved; the official success compares metres with an angle."""
    reward, distance = moved(state, state.tcp_center, XYZ, "maxPullDist")
    return outcome(reward, distance <= math.pi / 24, obj_to_target=0.0)


# --- With a progress, a way or an end of their own --------------------------------------------------------------------


@reward_v1("dial-turn-v3")
def dial_turn(state: TaskState) -> Outcome:
    """Moved along y, with narrower bells."""
    distance = abs(state.obj[:, 1] - state.target_pos[:, 1])
    gain = progress(state.constant("maxPullDist"), distance, wide=0.001, narrow=0.0001).clip(min=0.0)
    return outcome(reached(state, state.tcp_center, gain), distance <= 0.07, distance, grasp_success=1.0)


@reward_v1("window-close-v3", "window-open-v3")
def window(state: TaskState) -> Outcome:
    """Moved along x, with a progress that may be negative."""
    distance = abs(state.obj[:, 0] - state.target_pos[:, 0])
    gain = progress(state.constant("maxPullDist"), distance)
    return outcome(reached(state, state.tcp_center, gain), distance <= 0.05, distance, grasp_success=1.0)


@reward_v1("coffee-pull-v3")
def coffee_pull(state: TaskState) -> Outcome:
    """Moved in the plane, but for how far the mug is away."""
    obj, target = state.obj, state.target_pos
    gain = progress(state.constant("maxPullDist"), norm((obj - target)[:, XY])).clip(min=0.0)
    # Not a distance to the mug: the official code leaves out the gripper. It is never short, as `init_tcp` is high.
    reach_dist_xy = norm(ops.cat((obj[:, XY], state.init_tcp[:, Z])))
    obj_to_target = norm(obj - target)
    return outcome(near(norm(obj - state.tcp_center), gain) - reach_dist_xy, obj_to_target <= 0.07, obj_to_target)


@reward_v1("peg-unplug-side-v3")
def peg_unplug_side(state: TaskState) -> Outcome:
    """The peg from above, then moved in the plane."""
    distance = norm((state.obj - state.target_pos)[:, XY])
    reaching, reach_dist = approach(state, state.constant("hand_init_pos")[:, 2])
    gain = progress(state.constant("maxPlacingDist"), distance).clip(min=0.0)
    return outcome(reaching + near(reach_dist, gain), distance <= 0.07, distance)


@reward_v1("sweep-v3")
def sweep(state: TaskState) -> Outcome:
    """Moved in the plane until it falls off the table."""
    return swept(state, fallen=state.obj[:, 2] < state.obj_init_pos[:, 2] - 0.05)


@reward_v1("sweep-into-v3")
def sweep_into(state: TaskState) -> Outcome:
    """Moved in the plane until it falls into the hole."""
    y, z = state.obj[:, 1], state.obj[:, 2]
    return swept(state, fallen=(z < state.obj_init_pos[:, 2] - 0.05) & (y > 0.4) & (y < 1.0))


def swept(state: TaskState, fallen: Array) -> Outcome:
    """What both sweeps share: a block that has `fallen` (N,) is at the target, whoever let it fall."""
    distance = ops.where(fallen, 0.0, norm((state.obj - state.target_pos)[:, XY]))
    reach_dist = norm(state.obj - state.tcp_center)
    gain = progress(state.constant("maxPushDist"), distance).clip(min=0.0)
    return outcome(ops.where(fallen, 0.0, -reach_dist) + near(reach_dist, gain), distance <= 0.05, distance)


# --- Without an object ------------------------------------------------------------------------------------------------


@reward_v1("reach-wall-v3")
def reach_wall(state: TaskState) -> Outcome:
    """The gripper's progress."""
    reach_dist = norm(state.tcp_center - state.target_pos)
    gain = progress(state.constant("maxReachDist"), reach_dist)
    return outcome(gain.clip(min=0.0), reach_dist <= 0.05, reach_dist, near_object=0.0)


@reward_v1("reach-v3")
def reach(state: TaskState) -> Outcome:
    """The same, with more in the info."""
    reached = reach_wall(state)
    distance = reached.obj_to_target
    return reached._replace(near_object=distance, grasp_success=1.0, grasp_reward=distance)


@reward_v1("hand-insert-v3")
def hand_insert(state: TaskState) -> Outcome:
    """The gripper over the goal, then down. The official success looks at where the block started: it never comes."""
    to_goal = state.tcp_center - state.target_pos
    reach_dist = norm(to_goal[:, XY])
    gain = progress(state.constant("maxReachDist"), abs(to_goal[:, 2])).clip(min=0.0)
    obj_to_target = norm(state.obj_init_pos - state.target_pos)
    return outcome(near(reach_dist, gain) - reach_dist, obj_to_target <= 0.05, obj_to_target)
