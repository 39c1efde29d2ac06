"""Images: those of many scenes in one process are those of each scene alone; what cannot be drawn is told."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch

import mtrl.envs
from mtrl.envs.metaworld.catalog import MT50
from mtrl.envs.rendering import check_mujoco_draws
from mtrl.types import UserError


@pytest.fixture
def opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))  # so that what is chosen is undone
    try:
        check_mujoco_draws()
    except UserError as error:
        pytest.skip(str(error))


def images(name: str, num_workers: int, **options: Any) -> list[np.ndarray]:
    """Of every task: two of the first moment, one of the next."""
    env: Any = mtrl.envs.make(name, **options, num_workers=num_workers, render=True)
    env.reset(0)
    drawn = [env.render(slot) for _ in range(2) for slot in range(env.num_envs)]
    env.step(torch.ones(env.num_envs, env.spec.action_dim))
    drawn += [env.render(slot) for slot in range(env.num_envs)]
    env.close()
    return drawn


def assert_as_alone(name: str, num_tasks: int, **options: Any) -> None:
    together, alone = (images(name, num_workers, **options) for num_workers in (1, num_tasks))
    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert np.array_equal(one, other), f"image {i} of {len(alone)}"
    for task in range(num_tasks):
        first, again, after = alone[task::num_tasks]
        assert np.array_equal(first, again)
        assert not np.array_equal(first, after), "nothing moves"


@pytest.mark.usefixtures("opengl")
def test_tasks_drawn_by_one_process() -> None:
    assert_as_alone("metaworld", 3, tasks=["reach-v3", "push-v3", "door-open-v3"], physics="official")


@pytest.mark.slow
@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("start", range(0, 50, 10))
def test_every_task_drawn_by_one_process(start: int) -> None:
    assert_as_alone("metaworld", 10, tasks=list(MT50[start : start + 10]), physics="official")


@pytest.mark.usefixtures("opengl")
def test_scenes_of_gymnasium_drawn_by_one_process() -> None:
    assert_as_alone("gym", 2, ids=["Hopper-v5", "HalfCheetah-v5"])


@pytest.mark.parametrize("name", ["mt1", "gym"])
def test_no_opengl(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MUJOCO_GL", "easel")
    options: dict[str, dict[str, Any]] = {
        "mt1": {"task": "reach-v3", "physics": "official"},
        "gym": {"ids": ["Hopper-v5"]},
    }
    with pytest.raises(
        UserError, match=r"cannot draw images here \(MUJOCO_GL=easel: .*easel.*\)\. Install .*osmesa"
    ) as caught:
        mtrl.envs.make(name, **options[name], render=True)
    assert "\n" not in str(caught.value)
    assert os.environ["MUJOCO_GL"] == "easel"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_every_way_to_draw_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a screen and without a choice: OSMesa where EGL does not work."""
    monkeypatch.setenv("MUJOCO_GL", "")  # not deleted: what is chosen must be undone
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("mtrl.envs.rendering._obstacle", lambda backend: "" if backend == "osmesa" else "no such file")
    check_mujoco_draws()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("mtrl.envs.rendering._obstacle", lambda backend: "no such file")
    with pytest.raises(UserError, match="MUJOCO_GL=egl: no such file; MUJOCO_GL=osmesa: no such file"):
        check_mujoco_draws()


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ("nothing", "gives no uint8 image .*, but nothing"),
        ("wide", r"gives no uint8 image .*, but float64 of shape \(4, 4\)"),
        ("error", "'error' cannot be drawn: NotImplementedError"),
        ("takes no mode", r"cannot make .*Plain\(\) takes no arguments"),
    ],
)
def test_what_does_not_draw_is_told_before_anything_begins(drawn: str, message: str) -> None:
    entry = {"id": f"tests.unit.envs.drawn_envs:{'Plain' if drawn == 'takes no mode' else 'Drawn'}-v0", "name": drawn}
    if drawn != "takes no mode":
        entry["kwargs"] = {"drawn": drawn}
    with pytest.raises(UserError, match=message):
        mtrl.envs.make("gym", ids=[entry], render=True)
