"""Features of teachers, for feature regression: the last hidden layer of the policy of each sample's task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl.distill.features import feature_width
from mtrl.distill.teachers import FunctionTeacher, Teacher
from mtrl.types import UserError
from tests.helpers import make_spec
from tests.unit.distill.test_teachers import named, saved, teacher
from tests.unit.test_policy import TRUNK

SPEC = make_spec()


def specialists(folder: Path, **parts: Any) -> Teacher:
    """The first of the task in the middle, the second of the others."""
    paths = {name: str(folder / ("one" if name == "task-1" else "other")) for name in SPEC.task_names}
    saved(folder / "one", named(SPEC, "task-1"))
    saved(folder / "other", SPEC, **parts)
    return teacher("specialists", SPEC, paths=paths)


def test_features_are_the_last_hidden_layer(tmp_path: Path) -> None:
    """Of the policy of the task, with its normalisation: what its head makes the mean of its actions from."""
    found = specialists(tmp_path)
    obs, task = torch.randn(7, 4), torch.tensor([1, 0, 2, 2, 1, 0, 1])
    features = found.features(obs, task)
    assert features.shape == (7, feature_width(found)) == (7, TRUNK["width"])
    one, other = saved(tmp_path / "one", named(SPEC, "task-1")), saved(tmp_path / "other", SPEC)
    for i, k in enumerate(task.tolist()):
        network, place = (one, 0) if k == 1 else (other, k)
        head: Any = network.head
        mean = head.head.weight[place] @ features[i] + head.head.bias[place]
        expected: Any = network(obs[i : i + 1], torch.tensor([place]))
        torch.testing.assert_close(mean, expected.mean[0])


def test_teachers_without_suitable_features_are_refused_in_a_line(tmp_path: Path) -> None:
    cases = [
        (FunctionTeacher(lambda obs, task: obs, "action"), "needs a teacher with features, not <lambda>: use another"),
        (specialists(tmp_path, trunk=TRUNK | {"width": 5}), "but 2 specialists have the widths 5, 8: use another"),
        (specialists(tmp_path, core={"name": "lstm", "width": 3}), r"\(2 specialists\) has a memory \(core\): use"),
    ]
    for found, message in cases:
        with pytest.raises(UserError, match=message) as error:
            feature_width(found)
        assert "\n" not in str(error.value)
