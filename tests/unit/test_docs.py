"""The examples of the documentation, run as they are written."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtrl import registry
from mtrl.registry import build
from mtrl.types import UserError
from tests.contracts.test_components import step_weighting, weights_of

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_component.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first example in a language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture
def weighting() -> Iterator[Any]:
    """The example, registered for one test, and built."""
    before = copy.deepcopy(registry._components)
    exec(compile(block("python"), "add_a_component.md", "exec"), {"__name__": "example"})
    try:
        yield build("weighting", {"name": "inverse_scale"}, num_tasks=3)
    finally:
        registry._components.clear()
        registry._components.update(before)


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
