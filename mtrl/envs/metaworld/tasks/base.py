"""What a batched task is, and the pieces that the rewards share.

A task is a subclass of `Task`, registered under its official name. It says which poses it reads, how the object part of
the observation follows from them, and how reward and success follow from a `TaskState`:

    @task("reach-v3")
    class Reach(Task):
        poses = {"obj": body_pos("obj"), "obj_mat": geom_mat("objGeom")}

        def objects(self, poses):
            return [(poses["obj"], poses["obj_mat"])]

        def evaluate(self, state):
            reach_dist = norm(state.tcp_center - state.target_pos)
            margin = norm(state.constant("hand_init_pos") - state.target_pos)
            in_place = tolerance(reach_dist, bounds=(0, 0.05), margin=margin, sigmoid="long_tail")
            return Outcome(10 * in_place, reach_dist <= 0.05, near_object=reach_dist, grasp_success=1.0,
                           grasp_reward=reach_dist, in_place_reward=in_place, obj_to_target=reach_dist)

What the official code reads, and where it is here (`self` is the official environment):

- `obs` is `state.obs` (clipped), `obs[4:7]` is `state.obj`, `obs[3]` is `state.opened`, `obs[:3]` is `state.hand`.
- `self.tcp_center`, `fingerCOM`: `state.tcp_center`; `self.get_body_com("leftpad")`: `state.left_pad`, all exact.
- `self._get_site_pos(name)`: `site_pos(name)` in `poses`, then `state.poses[...]`; likewise `body_pos`, `body_quat`,
  `body_mat`, `geom_pos`, `geom_mat`, `site_mat`, `joint_pos` (a hinge or slide joint: (N,)).
- `self.<attribute>` set at reset: `state.constant("<attribute>")`, for any number or short vector that stays the same
  through the episode; `self._target_pos` and the like have properties.
- Attributes that look constant but are views of live data are no constants (asking for one raises `KeyError`):
  `self.init_left_pad` *is* the current left pad everywhere, because the official code keeps a view. Use what it views.
- `Rotation.from_matrix(m).as_quat()` in an observation is `m` itself: `objects` gives the matrix, of which the engine
  makes the quaternion, for all tasks at once. `self.data.body(b).xquat` is `body_quat(b)`; zeros are `None`.
- `if`s become `ops.where`; comparisons keep their strictness. All functions of arrays are in `ops`.
- `touching_main_object` is `state.touching`; name the geom in `main_geom` if it is not "objGeom". It reaches only the
  info (`grasp_success`), but for stick-push, where it decides on success: see `Task.touching_matters`.
- Numbers such as `np.array([3., 3., 1.])` are `vector(like, 3., 3., 1.)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from mtrl.envs.metaworld.tasks import ops
from mtrl.envs.metaworld.tasks.ops import Array, norm, vector
from mtrl.types import UserError

# --- What a task is ---------------------------------------------------------------------------------------------------

PoseKind = Literal["body_pos", "body_quat", "body_mat", "geom_pos", "geom_mat", "site_pos", "site_mat", "joint_pos"]


class Pose(NamedTuple):
    """A pose that is read from the simulation."""

    kind: PoseKind
    name: str
    """Of the body, geom, site or joint in the scene."""


def body_pos(name: str) -> Pose:
    """`data.body(name).xpos`, which is also `get_body_com(name)`: (N, 3)."""
    return Pose("body_pos", name)


def body_quat(name: str) -> Pose:
    """`data.body(name).xquat`: (N, 4), w first."""
    return Pose("body_quat", name)


def body_mat(name: str) -> Pose:
    """`data.body(name).xmat`: (N, 3, 3)."""
    return Pose("body_mat", name)


def geom_pos(name: str) -> Pose:
    """`data.geom(name).xpos`: (N, 3)."""
    return Pose("geom_pos", name)


def geom_mat(name: str) -> Pose:
    """`data.geom(name).xmat`: (N, 3, 3)."""
    return Pose("geom_mat", name)


def site_pos(name: str) -> Pose:
    """`data.site(name).xpos`, which is `_get_site_pos(name)`: (N, 3)."""
    return Pose("site_pos", name)


def site_mat(name: str) -> Pose:
    """`data.site(name).xmat`: (N, 3, 3)."""
    return Pose("site_mat", name)


def joint_pos(name: str) -> Pose:
    """`data.joint(name).qpos` of a hinge (rad) or slide (m): (N,)."""
    return Pose("joint_pos", name)


@dataclass(frozen=True)
class TaskState:
    """What reward and success depend on, for N slots of one task, after a step."""

    obs: Array
    """(N, 39), clipped as the official step does."""
    action: Array
    """(N, 4), in [-1, 1]."""
    tcp_center: Array
    """(N, 3): between the two fingers, the mean of the sites `leftEndEffector` and `rightEndEffector`."""
    left_pad: Array
    """(N, 3): body `leftpad`."""
    right_pad: Array
    """(N, 3): body `rightpad`."""
    poses: Mapping[str, Array]
    """What the task named in `poses`."""
    constants: Mapping[str, Array]
    """Attributes of the official environment after its reset: (N,) or (N, size)."""
    touching: Array
    """(N,) bool: whether both pads press the main object. May be False for all slots if the full info is not wanted,
    except where `Task.touching_matters`."""

    @property
    def hand(self) -> Array:
        """(N, 3): `obs[:3]`."""
        return self.obs[:, :3]

    @property
    def opened(self) -> Array:
        """(N,): `obs[3]`, 0 closed to 1 open."""
        return self.obs[:, 3]

    @property
    def obj(self) -> Array:
        """(N, 3): `obs[4:7]`, the position of the first object."""
        return self.obs[:, 4:7]

    @property
    def effort(self) -> Array:
        """(N,): `action[-1]`, closing the gripper where positive."""
        return self.action[:, 3]

    @property
    def target_pos(self) -> Array:
        """(N, 3)."""
        return self.constant("_target_pos")

    @property
    def obj_init_pos(self) -> Array:
        """(N, 3)."""
        return self.constant("obj_init_pos")

    @property
    def init_tcp(self) -> Array:
        """(N, 3)."""
        return self.constant("init_tcp")

    def constant(self, name: str) -> Array:
        """Attribute `name` of the official environment, (N,) or (N, size). Raises `KeyError` if it is not constant."""
        if name not in self.constants:
            raise KeyError(f"{name!r} is not constant through an episode; these are: {', '.join(self.constants)}.")
        return self.constants[name]


class Outcome(NamedTuple):
    """Result of a step: what the official `evaluate_state` returns. Each field (N,) of the state's dtype, or a number.

    The last five are the official info, of which `grasp_success` is exact only where `TaskState.touching` is.
    """

    reward: Array
    success: Array
    """(N,) bool."""
    near_object: Array | float
    grasp_success: Array | float
    grasp_reward: Array | float
    in_place_reward: Array | float
    obj_to_target: Array | float


class Task(ABC):
    """Observation, reward (v2; v1 is in `tasks_v1`) and success of one task, batched, on any device. Has no state."""

    name: ClassVar[str]
    """Official name; set by `task`."""
    poses: ClassVar[Mapping[str, Pose]] = {}
    """What is read from the simulation, besides hand, claws, pads and fingers."""
    main_geom: ClassVar[str] = "objGeom"
    """The geom of `touching_main_object`."""

    @abstractmethod
    def objects(self, poses: Mapping[str, Array]) -> Sequence[tuple[Array, Array | None]]:
        """Position (N, 3) and orientation of each object: one or two.

        An orientation is a quaternion (N, 4), a matrix (N, 3, 3) that stands for its `scipy_quat`, or None for zeros.
        """

    @abstractmethod
    def evaluate(self, state: TaskState) -> Outcome:
        """Reward and success after a step."""

    def touching_matters(self, state: TaskState) -> Array | None:
        """(N,) bool: where success depends on `state.touching`, which is not read here. None for nowhere."""
        return None


TASKS: dict[str, Task] = {}
"""The batched tasks by official name."""


def task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator that registers a task."""

    def register(cls: type[Task]) -> type[Task]:
        if name in TASKS:
            raise UserError(f"The batched task {name!r} exists already.")
        cls.name = name
        TASKS[name] = cls()
        return cls

    return register


# --- Shared pieces of the rewards -------------------------------------------------------------------------------------

Sigmoid = Literal["gaussian", "long_tail"]
"""Shapes of `tolerance` beyond its bounds, as in dm_control: those that the published rewards use."""


def _sigmoid(x: Array, value_at_1: float, sigmoid: Sigmoid) -> Array:
    if sigmoid == "long_tail":
        return 1 / ((x * math.sqrt(1 / value_at_1 - 1)) ** 2 + 1)
    return ops.exp(-0.5 * (x * math.sqrt(-2 * math.log(value_at_1))) ** 2)


def tolerance(
    x: Array,
    bounds: tuple[float | Array, float | Array] = (0.0, 0.0),
    margin: float | Array = 0.0,
    sigmoid: Sigmoid = "gaussian",
    value_at_margin: float = 0.1,
) -> Array:
    """1 where `x` is inside the bounds, falling to `value_at_margin` at a distance `margin` from them (dm_control).

    Args:
        x: Any shape.
        bounds: Lower and upper, inclusive; numbers or of the shape of `x`.
        margin: Not negative (the official function raises; this one does not look). 0 outside the bounds where it is 0.
        sigmoid: Shape of the fall.
        value_at_margin: In (0, 1).
    """
    lower, upper = bounds
    excess = ops.maximum(lower - x, x - upper)
    # A margin of 0 makes the quotient infinite outside of the bounds, where either sigmoid is then 0.
    return ops.where(excess <= 0, 1.0, _sigmoid(excess / margin, value_at_margin, sigmoid))


def hamacher_product(a: Array, b: Array) -> Array:
    """Smooth "and" of values in [0, 1]: `a b / (a + b - a b)`, 0 where both are 0."""
    product = a * b
    denominator = a + b - product
    return ops.where(denominator > 0, product / denominator, 0.0)


def funnel_floor(radius: Array, threshold: float | Array, *, slope: float, height: float) -> Array:
    """Height of a funnel at a distance from its axis: 0 up to `threshold`, `slope log(radius - threshold) + height` on.

    A hand or an object that has to come from above stays over it.
    """
    return ops.where(radius > threshold, slope * ops.log(radius - threshold) + height, 0.0)


def above_floor(z: Array, floor: Array, *, margin: float | Array) -> Array:
    """1 where `z` is at least `floor`, falling below it."""
    below = tolerance(floor - z, bounds=(0.0, 0.01), margin=margin, sigmoid="long_tail")
    return ops.where(z >= floor, 1.0, below)


def rect_prism_tolerance(curr: Array, zero: Array, one: Array) -> Array:
    """Inside the box with corners `zero` and `one`, from 0 to 1 between the corners; 1 outside (N, 3) -> (N,)."""
    inside = ((curr >= ops.minimum(zero, one)) & (curr <= ops.maximum(zero, one))).all(-1)
    return ops.where(inside, ((curr - zero) / (one - zero)).prod(-1), 1.0)


def gripper_caging_reward(
    state: TaskState,
    obj_pos: Array,
    *,
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
    obj_init_pos: Array | None = None,
) -> Array:
    """`SawyerXYZEnv._gripper_caging_reward`: pads on both sides of the object, hand at its place, gripper closing.

    Args:
        state: Of the step.
        obj_pos: (N, 3).
        obj_radius: Of the object's bounding sphere, m.
        pad_success_thresh: Distance of pad and object that counts as caged, m.
        object_reach_radius: Distance of fingers and object that counts as reached, m; for `medium_density`.
        xz_thresh: The same in the x-z plane, m.
        desired_gripper_effort: Action at which the gripper counts as closed.
        high_density: Mean with the caging alone.
        medium_density: Mean with reaching. Not together with `high_density`.
        obj_init_pos: (N, 3), by default the task's; stick-push passes that of the stick.
    """
    if high_density and medium_density:
        raise ValueError("Can only be either high_density or medium_density")
    start = state.obj_init_pos if obj_init_pos is None else obj_init_pos
    pads_y = ops.stack((state.left_pad[:, 1], state.right_pad[:, 1]))
    caging_lr = tolerance(
        abs(pads_y - obj_pos[:, 1:2]),
        bounds=(obj_radius, pad_success_thresh),
        margin=abs(abs(pads_y - start[:, 1:2]) - pad_success_thresh),
        sigmoid="long_tail",
    )
    caging_y = hamacher_product(caging_lr[:, 0], caging_lr[:, 1])
    tcp = state.tcp_center
    caging_xz = tolerance(
        norm((tcp - obj_pos)[:, ::2]),
        bounds=(0.0, xz_thresh),
        margin=norm((start - state.init_tcp)[:, ::2]) - xz_thresh,
        sigmoid="long_tail",
    )
    caging = hamacher_product(caging_y, caging_xz)
    gripper_closed = state.effort.clip(0.0, desired_gripper_effort) / desired_gripper_effort
    gripping = ops.where(caging > 0.97, gripper_closed, 0.0)
    reward = hamacher_product(caging, gripping)
    if high_density:
        return (reward + caging) / 2
    if medium_density:
        reach = tolerance(
            norm(obj_pos - tcp),
            bounds=(0.0, object_reach_radius),
            margin=abs(norm(start - state.init_tcp) - object_reach_radius),
            sigmoid="long_tail",
        )
        return (reward + reach) / 2
    return reward


def _pad_caging(
    state: TaskState, obj_pos: Array, obj_radius: float, grip_margin: float | None, xz_margin: float
) -> tuple[Array, Array]:
    """Caging (N,), and how tightly the pads hold (N,), of the environments with their own `_gripper_caging_reward`.

    Their `init_left_pad` and `init_right_pad` are views of the current pads, and so they are here.
    """
    pads_y = ops.stack((state.left_pad[:, 1], state.right_pad[:, 1]))
    offset = (pads_y - obj_pos[:, 1:2]) * vector(pads_y, 1.0, -1.0)
    margin = abs(abs(offset) - 0.05)
    caging_lr = tolerance(offset, bounds=(obj_radius, 0.05), margin=margin, sigmoid="long_tail")
    caging_y = hamacher_product(caging_lr[:, 0], caging_lr[:, 1])
    caging_xz = tolerance(
        norm((state.tcp_center - obj_pos)[:, ::2]),
        bounds=(0.0, xz_margin),
        margin=norm((state.obj_init_pos - state.init_tcp)[:, ::2]) - xz_margin,
        sigmoid="long_tail",
    )
    caging = hamacher_product(caging_y, caging_xz)
    if grip_margin is None:
        return caging, caging
    grip_lr = tolerance(offset, bounds=(obj_radius, obj_radius + grip_margin), margin=margin, sigmoid="long_tail")
    return caging, hamacher_product(grip_lr[:, 0], grip_lr[:, 1])


def effort_caging_reward(state: TaskState, obj_pos: Array) -> Array:
    """`_gripper_caging_reward` of pick-place: gripping is the effort of the gripper."""
    caging, _ = _pad_caging(state, obj_pos, obj_radius=0.015, grip_margin=None, xz_margin=0.005)
    gripping = ops.where(caging > 0.97, state.effort.clip(0.0, 1.0), 0.0)
    return (hamacher_product(caging, gripping) + caging) / 2


def pad_caging_reward(
    state: TaskState, obj_pos: Array, *, obj_radius: float, grip_margin: float, xz_margin: float
) -> Array:
    """`_gripper_caging_reward` of push-back, soccer, sweep and sweep-into: gripping is how tightly the pads hold.

    Args:
        state: Of the step.
        obj_pos: (N, 3).
        obj_radius: m.
        grip_margin: `grip_success_margin - obj_radius`, m: push-back .003, soccer .01, sweep-into .005, sweep .01.
        xz_margin: `x_z_success_margin`, m: push-back .01, soccer .005, sweep-into .01, sweep .005.
    """
    caging, holding = _pad_caging(state, obj_pos, obj_radius, grip_margin, xz_margin)
    return (caging + ops.where(caging > 0.95, holding, 0.0)) / 2


def scipy_quat(matrix: Array) -> Array:
    """`scipy.spatial.transform.Rotation.from_matrix(matrix).as_quat()`: (N, 3, 3) -> (N, 4), w last.

    scipy's own steps: a quaternion's sign, and which of two near-equal components decides it, are part of the
    observation.
    """
    d0, d1, d2 = matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2]
    largest = ops.stack((d0, d1, d2, d0 + d1 + d2)).argmax(-1)
    flat = matrix.reshape(len(matrix), 9)
    candidates = (flat @ vector(flat, *_QUAT_OF_MATRIX).reshape(9, 16) + vector(flat, *_QUAT_OFFSET)).reshape(-1, 4, 4)
    quat = ops.take(candidates, largest)
    return quat / norm(quat)[:, None]


def _candidates() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The linear map, weights (9, 4, 4) and offset (4, 4), from a matrix to four multiples of its quaternion, flat."""
    weight, offset = [[[0.0] * 9 for _ in range(4)] for _ in range(4)], [[0.0] * 4 for _ in range(4)]
    for i in range(4):
        offset[i][i] = 1.0
        for j in range(3):
            weight[i][i][4 * j] = 1.0 if i in (3, j) else -1.0  # 1 +- the diagonal
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        for row, column, sign in ((i, j, 1.0), (k, 3, -1.0)):
            for one, other in ((row, column), (column, row)):
                weight[one][other][3 * j + i], weight[one][other][3 * i + j] = 1.0, sign
    return tuple(weight[i][j][k] for k in range(9) for i in range(4) for j in range(4)), tuple(
        x for row in offset for x in row
    )


_QUAT_OF_MATRIX, _QUAT_OFFSET = _candidates()
