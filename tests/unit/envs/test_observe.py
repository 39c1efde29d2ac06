"""What follows from poses is the same for numpy arrays and for torch tensors on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.metaworld.goals import Benchmark, official_goals
from mtrl.envs.metaworld.observe import COMMON, Constants, Gripper, Group, frames, outcomes
from mtrl.envs.metaworld.resets import reset_pool
from mtrl.envs.metaworld.tasks import TASKS


def random_pose(kind: str, n: int, rng: np.random.Generator) -> Any:
    if kind == "joint_pos":
        return rng.normal(size=n)
    if kind.endswith("mat"):
        return Rotation.random(n, random_state=rng).as_matrix()
    return (
        rng.normal(size=(n, 4 if kind.endswith("quat") else 3)) * 0.1
        + (0.0, 0.6, 0.1, 0.0)[: 4 if kind.endswith("quat") else 3]
    )


def as_torch(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: as_torch(value) for key, value in node.items()}
    return torch.from_numpy(np.ascontiguousarray(node))


@pytest.mark.slow
def test_numpy_and_torch_agree_for_every_task() -> None:
    compare(MT50)


def test_numpy_and_torch_agree() -> None:
    """Tasks with one object and with two, given by quaternion and by matrix; slots of a task that are no neighbours."""
    compare(("push-v3", "peg-insert-side-v3", "stick-push-v3", "window-open-v3"))


def compare(names: tuple[str, ...]) -> None:
    rng, n = np.random.default_rng(0), 3
    pool = reset_pool(names, official_goals(Benchmark("", names), 1))
    B = n * len(names)
    order = rng.permutation(B)
    common = [rng.normal(size=(B, 3)) * 0.1 + (0.0, 0.6, 0.1) for _ in COMMON]
    groups: dict[str, list[Group]] = {"numpy": [], "torch": []}
    poses: dict[str, list[dict[str, Any]]] = {"numpy": [], "torch": []}
    for k, name in enumerate(names):
        task, slots, goal = TASKS[name], order[k * n : (k + 1) * n], rng.integers(50, size=n)
        constants = pool[k].constants
        found = {pose: random_pose(kind.kind, n, rng) for pose, kind in task.poses.items()}
        untouched = np.zeros(n, bool)
        groups["numpy"].append(Group(task, k, slots, slots, Constants(constants, goal), untouched))
        rows = torch.from_numpy(slots)
        of_goals = Constants(as_torch(dict(constants)), torch.from_numpy(goal))
        groups["torch"].append(Group(task, k, rows, rows, of_goals, torch.from_numpy(untouched)))
        poses["numpy"].append(found)
        poses["torch"].append(as_torch(found))
    obs, action = rng.normal(size=(B, 39)), rng.uniform(-1, 1, (B, 4))
    grippers = {"numpy": Gripper(*common), "torch": Gripper(*as_torch(dict(enumerate(common))).values())}

    def touching(group: Group, matters: Any) -> Any:
        return matters

    frame = frames(grippers["numpy"], groups["numpy"], poses["numpy"])
    assert frame.shape == (B, 18)
    np.testing.assert_allclose(frames(grippers["torch"], groups["torch"], poses["torch"]).numpy(), frame, atol=1e-12)
    expected = outcomes(grippers["numpy"], groups["numpy"], poses["numpy"], obs, action, touching, exact_info=True)
    found = outcomes(
        grippers["torch"], groups["torch"], poses["torch"], *map(torch.from_numpy, (obs, action)), touching, True
    )
    for name, ours, theirs in zip(names, found, expected, strict=True):
        for field, one, other in zip(ours._fields, ours, theirs, strict=True):
            np.testing.assert_allclose(
                np.asarray(one), np.asarray(other), rtol=1e-9, atol=1e-12, err_msg=f"{name} {field}"
            )
