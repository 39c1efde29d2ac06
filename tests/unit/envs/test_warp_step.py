"""The part of a step of physics `warp` that is not Warp: which slot is evaluated as what, without waiting for a device.

Poses come from arrays of random numbers, so that Warp need not be installed.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.envs.metaworld import warp_physics
from mtrl.envs.metaworld.goals import Benchmark, official_goals
from mtrl.envs.metaworld.observe import COMMON, FRAME, Constants, Gripper, Group, frames, outcomes
from mtrl.envs.metaworld.resets import reset_pool
from mtrl.envs.metaworld.suite import Suite
from mtrl.envs.metaworld.tasks import TASKS
from mtrl.envs.metaworld.warp_packages import Packages
from mtrl.envs.metaworld.warp_physics import ControlStep, Inputs, Settings
from mtrl.envs.metaworld.warp_scenes import shared_scenes
from tests.counting_device import counting

NAMES = ("reach-v3", "stick-push-v3", "push-v3")
SCENES = {(0, 2), (1,)}
"""Reach and push have one scene, though they are no neighbours."""
STARTS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
TASK = torch.tensor([2, 0, 0, 1, 1, 1, 2, 0, 2])
"""Some slots have changed their task since they started."""
GOAL = torch.tensor([5, 49, 0, 7, 8, 9, 1, 2, 3])


class Batched:
    """The annotation of a field that worlds may have their own values of."""

    shape = ("*", "n")


SHARED, OF_A_WORLD = ("nq", "nbody", "ngeom"), ("body_pos", "site_pos", "eq_data")
Model = dataclasses.make_dataclass(
    "Model", [*((name, int) for name in SHARED), *((name, Batched()) for name in OF_A_WORLD)]
)


class RandomWorlds:
    """Instead of `Worlds`: poses that do not depend on the state."""

    def __init__(self, packages: Any, settings: Settings, scene: Any, slots: Tensor, device: torch.device) -> None:
        self.scene, self.slots = scene, slots
        parts = (scene.qpos, scene.qvel, scene.qacc_warmstart, scene.mocap_pos)
        self.first = torch.from_numpy(np.concatenate(parts, axis=1)).float().to(device)
        generator, model = torch.Generator().manual_seed(len(slots)), scene.model
        sizes = {"x": model.nbody, "geom_x": model.ngeom, "site_x": model.nsite}
        self.arrays: dict[str, Tensor] = {}
        for prefix, count in sizes.items():
            for name, shape in (("pos", (3,)), ("quat", (4,)), ("mat", (3, 3))):
                values = torch.randn(len(slots), count, *shape, generator=generator) * 0.1 + 0.2
                self.arrays[prefix + name] = values.to(device)

    def pose(self, place: tuple[str, int]) -> Tensor:
        return self.arrays[place[0]][:, place[1]]

    def simulate(self, state: Tensor, row: Tensor, mocap_pos: Tensor, effort: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        never = torch.zeros_like(row, dtype=torch.bool)
        return torch.cat((state[:, : self.first.shape[1] - 3] + 1, mocap_pos), dim=1), never, ~never

    def touching(self, geoms: tuple[int, int, int]) -> Tensor:
        return torch.ones_like(self.slots, dtype=torch.bool)


@pytest.fixture
def fake() -> Packages:
    packages = Packages(*map(ModuleType, ("mujoco", "mujoco_warp", "warp")))
    packages.mujoco_warp.Model = Model  # type: ignore[attr-defined]
    return packages


@pytest.fixture
def control_step(monkeypatch: pytest.MonkeyPatch, fake: Packages) -> Any:
    """Makes a `ControlStep` on a device."""
    monkeypatch.setattr(warp_physics, "Worlds", RandomWorlds)
    monkeypatch.setattr(warp_physics, "_prepare", lambda packages, model: None)
    goals = official_goals(Benchmark("", NAMES), 1)
    pool, suite = reset_pool(NAMES, goals), Suite(NAMES, goals, True, "v2", 500)
    return lambda device: ControlStep(fake, Settings(), suite, pool, STARTS.to(device), torch.device(device))


def make_inputs(control_step: ControlStep, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    action, frame = torch.rand(9, 4, generator=generator) * 2 - 1, torch.rand(9, FRAME, generator=generator)
    task, goal = TASK.to(device), GOAL.to(device)
    return Inputs(action.to(device), task, goal, control_step.first_physics[task, goal], frame.to(device))


def test_each_slot_has_the_outcome_of_its_own_task(control_step: Any) -> None:
    step = control_step("cpu")
    assert {worlds.scene.tasks for worlds in step.worlds} == SCENES
    inputs = make_inputs(step, "cpu")
    found = step(inputs)
    assert step.overflow.tolist() == [3, 3, 3]
    assert step.unstable.tolist() == [0, 0, 0]
    pool = reset_pool(NAMES, official_goals(Benchmark("", NAMES), 1))
    for slot, (k, goal) in enumerate(zip(TASK.tolist(), GOAL.tolist(), strict=True)):
        (worlds,) = [worlds for worlds in step.worlds if k in worlds.scene.tasks]
        world, columns = worlds.slots.tolist().index(slot), worlds.scene.columns[worlds.scene.tasks.index(k)]
        values = {pose: worlds.pose(place)[world].double().numpy()[None] for pose, place in columns.items()}
        gripper, task = Gripper(*(values[pose] for pose in COMMON)), TASKS[NAMES[k]]
        one = np.array([0])
        group = Group(task, k, one, slice(0, 1), Constants(pool[k].constants, np.array([goal])), np.array([False]))
        poses = [{name: values[pose] for name, pose in task.poses.items()}]
        frame, before = frames(gripper, [group], poses), inputs.frame[slot].double().numpy()[None]
        obs = np.concatenate((frame, before, pool[k].obs[goal][None, 36:]), axis=1)
        obs = obs.clip(pool[k].obs_low, pool[k].obs_high)
        action = inputs.action[slot].double().numpy()[None]
        (expected,) = outcomes(gripper, [group], poses, obs, action, lambda group, matters: matters, False)
        np.testing.assert_allclose(found.frame[slot].numpy(), frame[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.obs[slot].numpy(), obs[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.reward[slot].item(), expected.reward[0], rtol=1e-3, atol=1e-4)
        assert found.success[slot].item() == expected.success[0]
        # The mocap body moves by a hundredth of the action, inside its box.
        size = worlds.first.shape[1]
        start = worlds.first[worlds.scene.tasks.index(k) * 50 + goal, size - 3 :].double().numpy()
        place = (start + action[0, :3] * pool[k].action_scale).clip(pool[k].mocap_low, pool[k].mocap_high)
        np.testing.assert_allclose(found.physics[slot, size - 3 : size].numpy(), place, atol=1e-6)


def test_a_step_does_not_wait(control_step: Any) -> None:
    with counting() as device:
        step = control_step("meta")
        inputs = make_inputs(step, "meta")
        step(inputs)  # makes constants
        device.take()
        step(inputs)
        assert device.take() == 0, device.waits


def test_poses_follow_from_fields(fake: Packages) -> None:
    """Also of sites that coincide with their body, whose places goals edit without effect on MuJoCo."""
    names = ("basketball-v3", "peg-insert-side-v3")
    pool = reset_pool(names, official_goals(Benchmark("", names), 1))
    scenes = shared_scenes([TASKS[name] for name in names], pool, fake.mujoco_warp, lambda model: None)
    assert [scene.tasks for scene in scenes] == [(0,), (1,)]
    for scene in scenes:
        model, row = scene.model, 7
        for name, rows in scene.fields.items():
            getattr(model, name)[:] = rows[row]
        data = mujoco.MjData(model)
        data.qpos[:] = scene.qpos[row]
        mujoco.mj_kinematics(model, data)
        matrix = data.xmat.reshape(-1, 3, 3)
        for kind, expected in (("site", data.site_xpos), ("geom", data.geom_xpos)):
            body, place = getattr(model, f"{kind}_bodyid"), getattr(model, f"{kind}_pos")
            found = data.xpos[body] + np.einsum("nij,nj->ni", matrix[body], place)
            np.testing.assert_allclose(found, expected, atol=1e-9)
        np.testing.assert_allclose(scene.static_pos[row], data.geom_xpos[scene.static_geoms], atol=1e-9)
