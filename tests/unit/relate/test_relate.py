"""`python -m mtrl.relate` from a policy to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtrl.envs
import mtrl.relate.__main__
from mtrl.nn.networks import build_policy
from mtrl.policy import save_policy
from mtrl.relate.pairs import run_dir
from tests.helpers import describe
from tests.system.commands import run, the_error
from tests.unit.relate.test_runs import store


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
    measures = ["cka", "rsa", "attribution", "embedding", "heads", "heads_low_rank"]
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
        for figure in (name, f"{name}_map"):
            assert (tmp_path / "out" / f"{figure}.svg").read_text().startswith("<?xml")
        (x0, y0), _, (x2, y2), _ = found["relations"][name]["map"]
        assert (x0 - x2) ** 2 + (y0 - y2) ** 2 == pytest.approx(0, abs=1e-4)  # equal tasks are in one place
    assert list(found["relations"]["cka"]["layers"]) == ["hidden.0", "output"]
    assert "'network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]'" in capsys.readouterr().out
    heading, *rows = (tmp_path / "out" / "relate.csv").read_text().splitlines()
    assert heading == "from,to,cka,rsa,attribution,embedding,heads,heads_low_rank"
    assert len(rows) == 12


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["measures=[ckka]"], "Unknown relation 'ckka'. Did you mean 'cka'?"),
        (["measures=[routing]", "observations=8"], "the trunk of this policy mixes no modules"),
        (["grouping=spektral"], "Unknown grouping 'spektral'. Did you mean 'spectral'?"),
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


def test_halves_of_the_log_agree_as_far_as_it_is_no_noise(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cosines are the same in each row; lookahead is the opposite in every other one."""
    pytest.importorskip("matplotlib")
    made_by, rng = tmp_path / "run", np.random.default_rng(0)
    made_by.mkdir()
    policy = policy.rename(made_by / "policy")
    (made_by / "config.yaml").write_text("env: {name: toy_reach}\nseed: 0\neval: {episodes_per_task: 2}\n")
    cosines, gains = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)) * (1 - np.eye(4))
    rows = [
        {"step": i, "grad/policy_cosine": cosines.tolist(), "grad/lookahead": (np.eye(4) + sign * gains).tolist()}
        for i, sign in enumerate((1, -1, 1, -1))
    ]
    (made_by / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert relate(f"policies={policy}", "measures=[cka,gradient,lookahead]", "observations=8") == 0
    relations = json.loads((made_by / "relate" / "relate.json").read_text())["relations"]
    assert "halves" not in relations["cka"]
    assert relations["gradient"]["halves"]["correlation"] == pytest.approx(1)
    assert relations["lookahead"]["halves"]["correlation"] == pytest.approx(-1)
    assert "one half of the log and the other: -1.00 (-1.00 to -1.00)" in capsys.readouterr().out


def test_what_runs_say(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cosines of gradients are the mean over the log; transfer is read from a folder of runs, if it is complete."""
    made_by = tmp_path / "run"
    made_by.mkdir()
    policy = policy.rename(made_by / "policy")
    (made_by / "config.yaml").write_text("env: {name: toy_reach}\nseed: 0\neval: {episodes_per_task: 2}\n")
    logged: list[Any] = [np.eye(4) + cosine * (1 - np.eye(4)) for cosine in (0.2, -0.6)]
    rows = [{"step": i, "grad/policy_cosine": matrix.tolist()} for i, matrix in enumerate(logged)]
    rows[1]["grad/policy_cosine"][0][1] = None  # a task that was absent
    rows[0]["grad/lookahead"] = (np.eye(4) * np.array([1, 2, 4, 8]) + (1 - np.eye(4))).tolist()
    (made_by / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [f"reach-{k}" for k in range(4)]
    for before in (None, *tasks):
        for task in tasks:
            store(run_dir(tmp_path / "pairs", before, task), [{None: 0.25, "reach-0": 0.55}.get(before, 0.4)])
    pytest.importorskip("matplotlib")
    arguments = [f"policies={policy}", "measures=[gradient,lookahead]", "observations=8"]
    assert relate(*arguments, f"transfer={tmp_path / 'pairs'}") == 0
    relations = json.loads((made_by / "relate" / "relate.json").read_text())["relations"]
    expected = np.eye(4) - 0.2 * (1 - np.eye(4))  # (.2 - .6) / 2
    expected[0, 1] = 0.2
    np.testing.assert_allclose(relations["gradient"]["matrix"], expected)
    shares = 1 / np.array([1, 2, 4, 8]) * (1 - np.eye(4)) + np.eye(4)  # of what a step of a task's own gains
    np.testing.assert_allclose(relations["lookahead"]["matrix"], shares)
    gained = np.array([0.4, 0.2, 0.2, 0.2])[:, None] * (1 - np.eye(4))  # (.55 - .25) / .75, (.4 - .25) / .75
    np.testing.assert_allclose(relations["transfer"]["matrix"], gained)
    (tmp_path / "pairs" / "from_reach-0" / "reach-1" / "eval" / "000000000400.json").unlink()
    capsys.readouterr()
    assert relate(*arguments, f"transfer={tmp_path / 'pairs'}") == 2
    assert "1 of 12 pairs of these tasks have no finished run" in the_error(capsys)
    (made_by / "metrics.jsonl").write_text('{"step": 0}\n')
    assert relate(*arguments) == 2
    assert "Train with an aggregation that looks at gradients" in the_error(capsys)
