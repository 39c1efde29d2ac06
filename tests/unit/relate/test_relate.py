"""`python -m mtrl.relate` from a policy to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mtrl.envs
import mtrl.relate.__main__
from mtrl.nn.networks import build_policy
from mtrl.policy import save_policy
from tests.helpers import describe
from tests.system.commands import run, the_error


def relate(*arguments: str) -> int:
    return run(*arguments, command=mtrl.relate.__main__)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Of two pairs of tasks: those of a pair have equal heads, and equal columns in the layer that reads the task."""
    torch.manual_seed(0)
    spec = mtrl.envs.make("toy_reach").spec
    description = describe("gaussian")
    network = build_policy(description, spec)
    with torch.no_grad():
        columns, weight = network.trunk.task_input.weight, network.head.head.weight
        for parameter in (columns, weight):
            torch.nn.init.normal_(parameter)
        columns[:, 2:], weight[2:] = columns[:, :2], weight[:2]
    save_policy(tmp_path / "policy", network, description, spec)
    return tmp_path / "policy"


def test_pairs_of_equal_tasks(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    measures = ["cka", "rsa", "attribution", "embedding", "heads"]
    given = [f"policies={policy}", "env=toy_reach", f"out={tmp_path / 'out'}", "observations=24", "groups=2"]
    assert relate(*given, f"measures=[{','.join(measures)}]") == 0
    found = json.loads((tmp_path / "out" / "relate.json").read_text())
    for name in measures:
        matrix = np.array(found["relations"][name]["matrix"])
        np.testing.assert_allclose(matrix, matrix.T)
        np.testing.assert_allclose(matrix.diagonal(), 1)
        assert matrix[0, 2] == pytest.approx(1)
        assert matrix[0, 1] < 0.999
        assert found["relations"][name]["groups"] == [["reach-0", "reach-2"], ["reach-1", "reach-3"]]
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")
    assert list(found["relations"]["cka"]["layers"]) == ["hidden.0", "output"]
    assert "'network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]'" in capsys.readouterr().out
    heading, *rows = (tmp_path / "out" / "relate.csv").read_text().splitlines()
    assert heading == "from,to,cka,rsa,attribution,embedding,heads"
    assert len(rows) == 12


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["measures=[ckka]"], "Unknown relation 'ckka'. Did you mean 'cka'?"),
        (["measures=[routing]", "observations=8"], "the trunk of this policy mixes no modules"),
        (["groups=0"], "groups must be positive, not 0"),
        (["obs=3"], "Unknown option of relate: 'obs'"),
        (["env.num_tasks=2", "observations=8"], "Relations need at least three tasks, found reach-0, reach-1 in the"),
    ],
)
def test_errors(policy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert relate(f"policies={policy}", "env=toy_reach", *arguments) == 2
    assert expected in the_error(capsys)


def test_a_task_has_one_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert relate(f"policies=[{policy},{policy}]", "env=toy_reach") == 2
    assert "each task needs one policy, but reach-0, reach-1, reach-2, reach-3 is in several" in the_error(capsys)
