"""Exported policies act like the policy."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import Tensor

from mtrl.nn.networks import build_policy
from mtrl.policy import Policy
from mtrl.types import EnvSpec, UserError
from tests.helpers import describe, make_spec, small

IMAGES = dataclasses.replace(make_spec(action_kind="discrete"), obs_shape=(4, 84, 84), obs_dtype=torch.uint8)
MASKED = make_spec(action_kind="discrete", action_mask=((True, False), (True, True), (False, True)))


def make(action_head: str, spec: EnvSpec, head: str = "per_task", obs_norm: str = "running", **nodes: Any) -> Policy:
    network = build_policy(describe(action_head, head, obs_norm, small("mlp")) | nodes, spec)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    if obs_norm == "running":
        network.obs_norm.update(torch.randn(50, 4, generator=generator) * 3 + 1, torch.zeros(50, dtype=torch.int64))
    return Policy(network.eval().requires_grad_(False), spec)


POLICIES: dict[str, Policy] = {
    "gaussian": make("gaussian", make_spec()),
    "tanh": make("tanh_gaussian", make_spec(), "shared", task_encoder={"name": "embedding", "dim": 3}),
    "masked": make("categorical", MASKED),
    "two_columns": make("categorical", MASKED, column={"name": "shared", "alpha": 2.0, "width": 8, "depth": 1}),
    "soft_modules": make("gaussian", make_spec(), trunk=small("soft_modules")),
    "images": make("categorical", IMAGES, obs_norm="centred_images", torso={"name": "nature_cnn"}),
    "reordered": make("gaussian", make_spec()).for_env(
        dataclasses.replace(make_spec(2), task_names=("task-2", "task-0"))
    ),
}


def observations(policy: Policy, count: int) -> tuple[Tensor, Tensor]:
    shape, generator = (count, *policy.spec.obs_shape), torch.Generator().manual_seed(count)
    task = torch.arange(count) % len(policy.tasks)
    if policy.spec.obs_dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), task
    return torch.randn(shape, generator=generator), task


def run_pt2(path: Path, obs: Tensor, task: Tensor) -> Tensor:
    return torch.export.load(path).module()(obs, task)


def run_onnx(path: Path, obs: Tensor, task: Tensor) -> Tensor:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert [entry.name for entry in session.get_inputs()] == ["obs", "task"]
    (action,) = session.run(["action"], {"obs": obs.numpy(), "task": task.numpy()})
    return torch.as_tensor(action)


@pytest.fixture(autouse=True)
def _without_runtime_checks() -> Iterator[None]:
    """The checks of shapes take the sizes of a traced batch, which are symbols, for errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("run", [run_pt2, run_onnx])
def test_acts_like_the_policy(tmp_path: Path, name: str, run: Any) -> None:
    if run is run_onnx:
        pytest.importorskip("onnxscript")
    policy, path = POLICIES[name], tmp_path / f"policy{'.pt2' if run is run_pt2 else '.onnx'}"
    policy.export(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    for count in (1, 2, 7):
        obs, task = observations(policy, count)
        expected = torch.as_tensor(policy.act(obs, task))
        action = run(path, obs, task)
        assert (action.shape, action.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(action, expected, atol=1e-5)
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), "paths of the machine"


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = POLICIES["gaussian"]
    with pytest.raises(UserError, match=r"to a file that ends in .onnx or .pt2, not to policy.pth"):
        policy.export("policy.pth")
    with pytest.raises(UserError, match=r"Cannot write /etc/hostname/policy.pt2: "):
        policy.export("/etc/hostname/policy.pt2")
    with pytest.raises(UserError, match=r"A policy with a memory \(core\) cannot be exported"):
        make("gaussian", make_spec(), core={"name": "lstm", "width": 5}).export(tmp_path / "policy.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"Export to ONNX needs onnx and onnxscript: pip install .*\[onnx\]"):
        policy.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
