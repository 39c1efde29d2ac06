"""The examples of the documentation, run as they are written."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
import yaml

import mtrl.envs
from mtrl import registry
from mtrl.registry import build
from mtrl.types import UserError
from tests.contracts.test_components import step_weighting, weights_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "add_a_component.md").read_text(encoding="utf-8")


def block(language: str, containing: str = "", page: str = PAGE) -> str:
    """The first example in a language."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if containing in text)


@pytest.fixture(autouse=True)
def unchanged_registry() -> Iterator[None]:
    """Examples are registered for one test. Suites of environments are not, which a test may be the first to import."""
    mtrl.envs.register_all()
    before = copy.deepcopy(registry._components)
    yield
    registry._components.clear()
    registry._components.update(before)


def example(kind: str, name: str, **runtime: Any) -> Any:
    """An example, run and built."""
    exec(compile(block("python", f'"{name}"'), "add_a_component.md", "exec"), {"__name__": "example"})
    return build(kind, {"name": name}, **runtime)


@pytest.fixture
def weighting() -> Any:
    return example("weighting", "inverse_scale", num_tasks=3)


def test_a_component_in_30_lines(weighting: Any) -> None:
    """Scales 0.99 + 0.01 |loss| are 0.995, 1.03 and 1.19; weights are the inverses with mean 1, and it is all state."""
    assert len(block("python").splitlines()) <= 30
    losses = torch.tensor([0.5, 4.0, -20.0])
    assert weights_of(weighting, losses).tolist() == [1, 1, 1]
    step_weighting(weighting, losses)
    inverse = 1 / torch.tensor([0.995, 1.03, 1.19])
    torch.testing.assert_close(weights_of(weighting, losses), inverse / inverse.mean())
    other = build("weighting", {"name": "inverse_scale"}, num_tasks=3)
    other.load_state_dict(weighting.state_dict(), strict=True)
    assert torch.equal(other(losses), weighting(losses))


def test_its_options_are_those_of_its_constructor(weighting: Any) -> None:
    assert weighting.decay == 0.99
    assert build("weighting", yaml.safe_load(block("yaml")), num_tasks=3).decay == 0.999
    with pytest.raises(
        UserError, match=r"Unknown option of weighting 'inverse_scale': 'decai'. Did you mean 'decay'\?"
    ):
        build("weighting", {"name": "inverse_scale", "decai": 0.9}, num_tasks=3)


def test_an_aggregation() -> None:
    """Gradients (3, 0) and (0, 1) become (2, 0) and (0, 2), whose mean is (1, 1)."""
    aggregation = example("aggregation", "equal_lengths", num_tasks=2)
    assert aggregation.combine(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist() == [1, 1]


def test_a_task_sampler() -> None:
    """After 1 + 9 and 1 + 39 steps, shares are as 1/10 to 1/40."""
    sampler = example("task_sampling", "equal_steps", num_tasks=2)
    sampler.update(torch.tensor([1, 0]), {"length": torch.tensor([39.0, 9.0])})
    torch.testing.assert_close(sampler.probabilities(), torch.tensor([0.8, 0.2], dtype=torch.float64))


def test_an_environment_with_a_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "environments.md").read_text(encoding="utf-8")
    (tmp_path / "my_envs.py").write_text(block("python", "Upright", page))
    monkeypatch.syspath_prepend(str(tmp_path))
    ids = ["my_envs:Upright-v0", {"id": "my_envs:Upright-v0", "kwargs": {"g": 20.0}, "name": "heavy"}]
    env = mtrl.envs.make("gym", num_envs=2, seed=0, device="cpu", ids=ids, num_workers=1)
    try:
        assert env.spec.reports_success == (True, True)
        assert env.spec.horizon == 200
        assert "heavy" in env.spec.task_names
    finally:
        env.close()
        gymnasium.registry.pop("Upright-v0")
