"""From poses to observation, reward and success: a step without its physics. For numpy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtrl.envs.metaworld.tasks import Outcome, Task, TaskState, ops
from mtrl.envs.metaworld.tasks.base import body_pos, scipy_quat, site_pos
from mtrl.envs.metaworld.tasks.ops import Array, norm

FRAME = 18
"""Numbers in a frame; an observation is this frame, the previous one and the goal."""
COMMON = (
    body_pos("hand"),
    body_pos("rightclaw"),
    body_pos("leftclaw"),
    site_pos("rightEndEffector"),
    site_pos("leftEndEffector"),
    body_pos("rightpad"),
    body_pos("leftpad"),
)
"""Poses that every task needs, in the order of `Gripper`."""


@dataclass(frozen=True)
class Gripper:
    """The common poses of B slots, (B, 3) each."""

    hand: Array
    right_claw: Array
    left_claw: Array
    right_finger: Array
    left_finger: Array
    right_pad: Array
    left_pad: Array

    @property
    def tcp_center(self) -> Array:
        """(B, 3): between the fingers."""
        return (self.right_finger + self.left_finger) / 2

    @property
    def opened(self) -> Array:
        """(B,): 0 closed to 1 open."""
        return (norm(self.right_claw - self.left_claw) / 0.1).clip(0.0, 1.0)


class Constants(Mapping[str, Array]):
    """Constants of the slots of one task, gathered on first access."""

    def __init__(self, by_goal: Mapping[str, Array], goal: Array) -> None:
        self._by_goal, self._goal = by_goal, goal
        self._gathered: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._gathered:
            self._gathered[name] = self._by_goal[name][self._goal]
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_goal)

    def __len__(self) -> int:
        return len(self._by_goal)


@dataclass(frozen=True)
class Group:
    """The slots that run one task."""

    task: Task
    task_id: int
    slots: Array
    rows: Array | slice
    """`slots`, as a slice if they are contiguous, so that indexing copies nothing."""
    constants: Constants
    untouched: Array
    """(N,) bool, all false."""


Poses = Mapping[str, Array]
"""The poses named in `Task.poses`, for the N slots of a group."""


def frames(gripper: Gripper, groups: Sequence[Group], poses: Sequence[Poses]) -> Array:
    """The part (B, 18) of an observation about the present: hand, opening, and two objects (zeros for none)."""
    frame = ops.zeros(gripper.hand, len(gripper.hand), FRAME)
    frame[:, :3] = gripper.hand
    frame[:, 3] = gripper.opened
    matrices = []
    for group, group_poses in zip(groups, poses, strict=True):
        column = 4
        for position, orientation in group.task.objects(group_poses):
            frame[group.rows, column : column + 3] = position
            if orientation is not None and orientation.ndim == 3:
                matrices.append((group.rows, slice(column + 3, column + 7), orientation))
            elif orientation is not None:
                frame[group.rows, column + 3 : column + 7] = orientation
            column += 7
    if matrices:  # converted for all tasks at once
        quats = scipy_quat(ops.cat([matrix for *_, matrix in matrices], axis=0))
        start = 0
        for rows, columns, matrix in matrices:
            frame[rows, columns] = quats[start : start + len(matrix)]
            start += len(matrix)
    return frame


def outcomes(
    gripper: Gripper,
    groups: Sequence[Group],
    poses: Sequence[Poses],
    obs: Array,
    action: Array,
    touching: Callable[[Group, Array], Array],
    exact_info: bool,
) -> list[Outcome]:
    """Reward, success and info of each group.

    Args:
        gripper: Common poses of all B slots.
        groups: Slots by task.
        poses: Poses of each group.
        obs: (B, 39), clipped as in the official step.
        action: (B, 4) in [-1, 1].
        touching: Computes `TaskState.touching` of a group for the slots in a mask (N,).
        exact_info: Whether to compute it for all slots, for `grasp_success`.
    """
    tcp_center = gripper.tcp_center
    results = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # in branches that are not taken
        for group, group_poses in zip(groups, poses, strict=True):
            rows = group.rows
            state = TaskState(
                obs=obs[rows],
                action=action[rows],
                tcp_center=tcp_center[rows],
                left_pad=gripper.left_pad[rows],
                right_pad=gripper.right_pad[rows],
                poses=group_poses,
                constants=group.constants,
                touching=group.untouched,
            )
            matters = ~group.untouched if exact_info else group.task.touching_matters(state)
            if matters is not None:
                state = replace(state, touching=touching(group, matters))
            results.append(group.task.evaluate(state))
    return results
