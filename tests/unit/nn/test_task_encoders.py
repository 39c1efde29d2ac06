"""The vectors of task descriptions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mtrl.nn.task_encoders
from mtrl.envs.metaworld.catalog import DESCRIPTIONS, MT50
from mtrl.nn.task_encoders import Language
from mtrl.registry import build
from mtrl.types import UserError


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
    context = encoder(torch.arange(50))
    torch.testing.assert_close(context.embedding.norm(dim=1), torch.ones(50))
    cosine = context.embedding @ context.embedding.T - torch.eye(50)
    assert float(cosine.max()) < 0.9
    nearest = {MT50[i]: MT50[int(cosine[i].argmax())] for i in range(50)}
    assert nearest["door-lock-v3"] == "door-unlock-v3"
    assert nearest["push-wall-v3"] == "push-v3"
    few = Language(("push-v3", "reach-v3"))(torch.tensor([1, 0]))
    assert torch.equal(few.embedding, context.embedding[[MT50.index("reach-v3"), MT50.index("push-v3")]])
    assert not list(encoder.parameters())


def test_a_task_without_a_vector() -> None:
    with pytest.raises(UserError, match=r"task_encoder 'language': .* none of Pong, Breakout\."):
        build("task_encoder", {"name": "language"}, num_tasks=3, task_names=("Pong", "reach-v3", "Breakout"))
