"""The vectors of task descriptions, and what is found out from the past."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mtrl.nn.task_encoders
from mtrl.envs.metaworld.catalog import DESCRIPTIONS, MT50
from mtrl.nn.networks import build_policy
from mtrl.nn.task_encoders import Context, Language
from mtrl.registry import build
from mtrl.types import UserError
from tests.helpers import describe, make_spec


@pytest.fixture
def script() -> Any:
    path = Path(__file__).parents[3] / "scripts" / "task_vectors.py"
    spec = importlib.util.spec_from_file_location("task_vectors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tfidf_by_hand(script: Any) -> None:
    """ "Pull a door.": pull, door, "pull door"; "Push a door.": push, door, "push door". A term of one sentence weighs
    w = 1 + log 2, that of both 1. So the cosine is 1 / (2 w^2 + 1) = 0.1485."""
    one, two = (torch.tensor(v) for v in script.task_vectors({"a": "Pull a door.", "b": "Push a door."}).values())
    assert float(one @ two) == pytest.approx(0.1485, abs=1e-4)
    assert float(one @ one) == pytest.approx(1, abs=1e-5)


def test_the_shipped_vectors_are_the_scripts(script: Any) -> None:
    """Up to the axes, which need not be the same on every machine."""
    shipped = json.loads(Path(mtrl.nn.task_encoders.__file__).with_name("task_vectors.json").read_text())
    made = script.task_vectors(DESCRIPTIONS)
    assert list(shipped) == list(made) == list(MT50)
    ours, theirs = (torch.tensor(list(vectors.values()), dtype=torch.float64) for vectors in (shipped, made))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-4)


def test_language() -> None:
    """One vector of length 1 per task, in the order of the ids; like tasks are alike, and no two are the same."""
    encoder = Language(MT50)
    context = encoder(torch.arange(50), torch.empty(50, 0))
    torch.testing.assert_close(context.embedding.norm(dim=1), torch.ones(50))
    cosine = context.embedding @ context.embedding.T - torch.eye(50)
    assert float(cosine.max()) < 0.9
    nearest = {MT50[i]: MT50[int(cosine[i].argmax())] for i in range(50)}
    assert nearest["door-lock-v3"] == "door-unlock-v3"
    assert nearest["push-wall-v3"] == "push-v3"
    few = Language(("push-v3", "reach-v3"))(torch.tensor([1, 0]), torch.empty(2, 0))
    assert torch.equal(few.embedding, context.embedding[[MT50.index("reach-v3"), MT50.index("push-v3")]])
    assert not list(encoder.parameters())


def test_a_task_without_a_vector() -> None:
    with pytest.raises(UserError, match=r"task_encoder 'language': .* not for Pong, Breakout\."):
        build("task_encoder", {"name": "language"}, num_tasks=3, task_names=("Pong", "reach-v3", "Breakout"))


def test_context_by_a_loop() -> None:
    torch.manual_seed(0)
    encoder = Context((3, 4), dim=2, width=5)
    history = torch.randn(6, 12)
    found = encoder(torch.zeros(6, dtype=torch.int64), history).embedding
    first, _, second = encoder.embed.double()
    for row, embedding in zip(history.double(), found, strict=True):
        total = torch.zeros(2, dtype=torch.float64)
        for begin in (0, 4, 8):
            hidden = (first.weight @ row[begin : begin + 4] + first.bias).clamp(min=0)
            total += second.weight @ hidden + second.bias
        torch.testing.assert_close(embedding.double(), total / total.norm(), rtol=0, atol=1e-5)


def test_context_without_a_past() -> None:
    with pytest.raises(UserError, match=r"task_encoder 'context': .* set env\.history, for example to 8\."):
        build("task_encoder", {"name": "context"}, history=(0, 0))


def test_context_has_its_part_and_the_trunk_the_rest() -> None:
    """Not even the task does anything to a policy with a shared head; nor does the past to what the trunk is given."""
    torch.manual_seed(0)
    spec = replace(make_spec(3, 2 * 5 + 4), history=(2, 5))
    description = describe("gaussian", "shared") | {"task_encoder": {"name": "context"}}
    policy = build_policy(description, spec)
    assert policy.trunk.input.in_features == 4  # type: ignore[union-attr]
    obs, other = torch.randn(2, 1, 14)
    other[:, 10:] = obs[:, 10:]
    one, two = torch.tensor([1]), torch.tensor([2])
    assert torch.equal(policy(obs, one).mode(), policy(obs, two).mode())
    assert not torch.equal(policy(obs, one).mode(), policy(other, one).mode())


def test_context_reads_no_images() -> None:
    spec = replace(make_spec(3, 14), history=(2, 5))
    description = describe("gaussian") | {"task_encoder": {"name": "context"}, "core": {"name": "lstm"}}
    with pytest.raises(UserError, match="task_encoder=context reads observations: use core=none, and a torso"):
        build_policy(description, spec)
