"""Reward v1 of what is gripped, lifted to a height and then carried or used as a tool."""

from __future__ import annotations

import math

from mtrl.envs.metaworld.tasks import TASKS, Outcome, TaskState, ops
from mtrl.envs.metaworld.tasks.base import body_pos, geom_pos, site_pos
from mtrl.envs.metaworld.tasks.ops import Array, norm
from mtrl.envs.metaworld.tasks_v1.base import approach, outcome, progress, reward_v1


def lifting(z: Array, height: Array, rest: Array, picked: Array, held: Array, base: float | Array = 0.0) -> Array:
    """100 for each metre over `base` of an object that is `held` and off the ground, or already `picked`: (N,).

    Args:
        z: (N,) height of the object, m.
        height: (N,) to which it is to be lifted, and which counts once it is picked, m.
        rest: (N,) its height on the ground, m.
        picked: (N,) bool.
        held: (N,) bool.
        base: m.
    """
    lifted = ops.where(held & (z > rest + 0.005), ops.minimum(z, height) - base, 0.0)
    return 100 * ops.where(picked, height - base, lifted)


def pick_and_place(
    state: TaskState,
    gain: Array,
    *,
    rest: str = "objHeight",
    above: float = 0.05,
    climb: float = 2.0,
    base: float | Array = 0.0,
) -> Array:
    """Reward (N,) for reaching the object, lifting it, and then for what is done with it.

    Args:
        state: Of the step.
        gain: (N,): what counts while the object is up and within 10 cm of the gripper.
        rest: Attribute with the object's height on the ground.
        above: For `approach`.
        climb: For `approach`.
        base: For `lifting`.
    """
    z, height = state.obj[:, 2], state.constant("heightTarget")
    reaching, reach_dist = approach(state, state.init_tcp[:, 2], above=above, climb=climb)
    picked, held = z >= height - 0.01, reach_dist < 0.1
    lift = lifting(z, height, state.constant(rest), picked, held, base)
    return reaching + lift + ops.where(picked & held, gain, 0.0)


def carried(state: TaskState, target: Array, base: float | Array = 0.0) -> tuple[Array, Array]:
    """Reward for carrying the object to `target` (N, 3), and its distance from there, each (N,)."""
    distance = norm(state.obj - target)
    gain = progress(state.constant("maxPlacingDist"), distance).clip(min=0.0)
    return pick_and_place(state, gain, base=base), distance


@reward_v1("pick-place-v3", "pick-place-wall-v3", "shelf-place-v3")
def pick_place(state: TaskState) -> Outcome:
    """Carried to the goal."""
    reward, distance = carried(state, state.target_pos)
    return outcome(reward, distance <= 0.07, distance)


@reward_v1("pick-out-of-hole-v3")
def pick_out_of_hole(state: TaskState) -> Outcome:
    """The same, with a height that counts from 2 cm below where the puck was."""
    reward, distance = carried(state, state.target_pos, base=state.constant("objHeight") - 0.02)
    return outcome(reward, distance <= 0.07, distance)


@reward_v1("basketball-v3")
def basketball(state: TaskState) -> Outcome:
    """Carried to the basket."""
    reward, distance = carried(state, state.poses["goal"])
    return outcome(reward, distance <= 0.08, distance)


@reward_v1("box-close-v3")
def box_close(state: TaskState) -> Outcome:
    """Carried to the goal."""
    reward, distance = carried(state, state.target_pos)
    return outcome(reward, distance < 0.08, obj_to_target=0.0, near_object=0.0)


@reward_v1("peg-insert-side-v3")
def peg_insert_side(state: TaskState) -> Outcome:
    """The head carried to the hole, then the grip."""
    distance, head_distance = norm(state.obj - state.target_pos), norm(state.poses["head"] - state.target_pos)
    gain = progress(state.constant("maxPlacingDist"), ops.where(head_distance <= 0.05, distance, head_distance))
    return outcome(pick_and_place(state, gain.clip(min=0.0), climb=1.0), distance <= 0.07, distance)


@reward_v1("bin-picking-v3")
def bin_picking(state: TaskState) -> Outcome:
    """Carried over the other bin, then let go by opening the gripper."""
    to_bin, z = state.obj - state.poses["bin"], state.obj[:, 2]
    over_bin = (abs(to_bin[:, 0]) < 0.05) & (abs(to_bin[:, 1]) < 0.05)
    in_bin = over_bin & (z < state.constant("objHeight") + 0.05)
    distance = norm(to_bin[:, :2])
    gain = progress(state.constant("maxPlacingDist"), distance).clip(min=0.0)
    released = gain - 200 * state.effort
    picking = pick_and_place(state, ops.where(over_bin, released, gain), above=0.06, climb=1.0)
    return outcome(ops.where(in_bin, released, picking), distance <= 0.05, distance, near_object=0.0)


@reward_v1("assembly-v3", nut=body_pos("RoundNut"))
def assembly(state: TaskState) -> Outcome:
    """The nut carried over the peg, then down."""
    nut, rest, height = state.poses["nut"], state.constant("obj_height"), state.constant("heightTarget")
    to_peg, z = nut - state.target_pos, nut[:, 2]
    reaching, reach_dist = approach(state, state.init_tcp[:, 2], above=0.04, grip=0.04, climb=1.0)
    on_peg = (abs(to_peg[:, 0]) < 0.03) & (abs(to_peg[:, 1]) < 0.03)
    up = on_peg | ((z >= height - 0.01) & (reach_dist < 0.03))
    drop = abs(z - rest)
    down = 2 * progress(height, drop, wide=0.003, narrow=0.0003)
    gain = progress(state.constant("maxPlacingDist"), norm(to_peg[:, :2])) + ops.where(on_peg, down, 0.0)
    lift = lifting(z, height, rest, picked=up, held=reach_dist < 0.04)
    reward = reaching + lift + ops.where(up, gain.clip(min=0.0), 0.0)
    return outcome(reward, on_peg & (drop <= 0.04), obj_to_target=0.0, near_object=0.0)


@reward_v1("disassemble-v3", nut=body_pos("RoundNut"))
def disassemble(state: TaskState) -> Outcome:
    """The nut's handle carried to the goal; a nut that is off the peg is as good as lifted."""
    z, target, height = state.obj[:, 2], state.target_pos, state.constant("heightTarget")
    from_peg = abs(state.poses["nut"] - state.obj_init_pos)  # the peg is where the nut was
    off_peg = (from_peg[:, 0] > 0.05) | (from_peg[:, 1] > 0.05)
    reaching, reach_dist = approach(state, state.init_tcp[:, 2], above=0.04, grip=0.04)
    held = reach_dist < 0.04
    picked = (z >= height - 0.01) & held
    lift = lifting(z, height, state.constant("objHeight"), picked, held)
    gain = progress(state.constant("maxPlacingDist"), norm(state.obj - target)).clip(min=0.0)
    reward = ops.where(off_peg, 100 * height, reaching + lift) + ops.where(picked & (reach_dist < 0.03), gain, 0.0)
    return outcome(reward, z > target[:, 2], obj_to_target=0.0, near_object=0.0)


@reward_v1("hammer-v3", head=geom_pos("HammerHead"), nail_head=site_pos("nailHead"))
def hammer(state: TaskState) -> Outcome:
    """The head carried to the nail, and the nail driven in."""
    nail_head = state.poses["nail_head"]
    distance = norm(nail_head - state.poses["head"]) + abs(nail_head[:, 1] - state.target_pos[:, 1])
    gain = progress(state.constant("maxHammerDist"), distance).clip(min=0.0)
    reward = pick_and_place(state, gain, rest="hammerHeight", above=math.inf)
    return outcome(reward, state.poses["nail_depth"] > 0.09, obj_to_target=0.0, near_object=0.0)


# The official code of the sticks looks for the thermos in the wrong place of the observation, where the stick's height
# and the first two numbers of its quaternion are.


@reward_v1("stick-pull-v3")
def stick_pull(state: TaskState) -> Outcome:
    """The stick carried to the "thermos", and that to the goal. Success is that of v2."""
    distance, reward = used_stick(state, "maxPullDist", wide=0.01, narrow=0.001)
    return outcome(reward, TASKS["stick-pull-v3"].evaluate(state).success, distance)


@reward_v1("stick-push-v3")
def stick_push(state: TaskState) -> Outcome:
    """The same. Success never comes: it asks for a grip, and v1 says that the gripper is shut."""
    distance, reward = used_stick(state, "maxPushDist", wide=0.001, narrow=0.0001)
    return outcome(reward, distance < 0.0, distance)


def used_stick(state: TaskState, farthest: str, wide: float, narrow: float) -> tuple[Array, Array]:
    """Distance of the "thermos" from the goal, and reward, each (N,); the last three are those of its progress."""
    stick, thermos = state.obj, state.obs[:, 6:9]
    distance, stick_distance = norm((thermos - state.target_pos)[:, :2]), norm(stick - thermos)
    moved = progress(state.constant(farthest), distance, nearness=2000.0, wide=wide, narrow=narrow)
    gain = progress(state.constant("maxPlaceDist"), stick_distance) + ops.where(stick_distance < 0.05, moved, 0.0)
    return distance, pick_and_place(state, gain.clip(min=0.0), rest="stickHeight", above=math.inf)
