"""Reward v1: how it is put in the place of v2, and the pieces that its rewards share.

The official code has these rewards in the `else` of each `compute_reward`. They are not scaled: a good step is worth
thousands.

- `pickCompleted`, `placeCompleted` and `reachCompleted` are attributes there, but every step sets them before it reads
  them: v1 has no memory, and its rewards follow from a `TaskState`, as in v2.
- `objDropped` is not here: it is read only where the object is at its `heightTarget`, and there it never holds.
- Success and info follow from what v1 returns: distances that may leave out an axis, and zeros, so that `grasp_success`
  is a number. Where this makes success differ from that of v2, it differs here.
"""

from __future__ import annotations

from collections.abc import Callable

from mtrl.envs.metaworld.tasks import TASKS, Outcome, Task, TaskState, ops
from mtrl.envs.metaworld.tasks.base import Pose
from mtrl.envs.metaworld.tasks.ops import Array, norm
from mtrl.types import UserError

Reward = Callable[[TaskState], Outcome]

TASKS_V1: dict[str, Task] = {}
"""The batched tasks with reward v1 by official name."""


def reward_v1(*names: str, **poses: Pose) -> Callable[[Reward], Reward]:
    """Decorator that registers the reward v1 of tasks, which are otherwise those of v2.

    Args:
        names: Of the tasks.
        poses: What the reward reads besides the poses of v2.
    """

    def register(reward: Reward) -> Reward:
        for name in names:
            if name in TASKS_V1:
                raise UserError(f"The batched task {name!r} has a reward v1 already.")
            v2 = type(TASKS[name])
            members = {
                "evaluate": staticmethod(reward),
                "poses": {**v2.poses, **poses},
                "touching_matters": Task.touching_matters,  # nowhere
            }
            TASKS_V1[name] = type(f"{v2.__name__}V1", (v2,), members)()
        return reward

    return register


def outcome(
    reward: Array,
    success: Array,
    obj_to_target: Array | float,
    near_object: Array | float = 1.0,
    grasp_success: float = 0.0,
    grasp_reward: Array | float = 0.0,
) -> Outcome:
    """With the info that v1 gives where nothing is said."""
    return Outcome(reward, success, near_object, grasp_success, grasp_reward, 0.0, obj_to_target)


def progress(
    farthest: Array, distance: Array, *, nearness: float = 1000.0, wide: float = 0.01, narrow: float = 0.001
) -> Array:
    """1000 for each metre that the distance is less than `farthest`, and a wide and a narrow bell round the target.

    Args:
        farthest: (N,) m.
        distance: (N,) m.
        nearness: Height of each bell: the official `c1` (or `c4`).
        wide: Denominator of its exponent, m²: `c2` (or `c5`).
        narrow: The same of the other: `c3` (or `c6`).
    """
    bells = ops.exp(-(distance**2) / wide) + ops.exp(-(distance**2) / narrow)
    return 1000 * (farthest - distance) + nearness * bells


def approach(
    state: TaskState, start_z: Array, *, above: float = 0.05, grip: float = 0.05, climb: float = 2.0
) -> tuple[Array, Array]:
    """Reward for bringing the open gripper over the object and down to it, and their distance, each (N,).

    Args:
        state: Of the step.
        start_z: (N,) height that the gripper is to keep on its way, m.
        above: Horizontal distance from which on it may go down, m.
        grip: Distance from which on it is to close, m.
        climb: Weight of leaving that height.
    """
    to_obj = state.obj - state.tcp_center
    reach_dist, reach_dist_xy = norm(to_obj), norm(to_obj[:, :2])
    on_the_way = -reach_dist_xy - climb * abs(state.tcp_center[:, 2] - start_z)
    reward = ops.where(reach_dist_xy < above, -reach_dist, on_the_way)
    return ops.where(reach_dist < grip, state.effort.clip(min=0.0) / 50 - reach_dist, reward), reach_dist
