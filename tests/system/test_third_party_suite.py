"""A suite from another package is trained and reported like those of this one."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtrl import registry
from tests.system.commands import evaluate, rows, run, tiny

MODULE = '''
import math
from typing import Literal

from mtrl.envs.toy import ToyReach
from mtrl.registry import register
from mtrl.types import EvaluationProtocol


@register("env", "their_reach")
class TheirReach(ToyReach):
    """Twice as long where it is exact."""

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        simulation: Literal["fast", "exact"] = "fast",
        slots_per_task: int = 1,
    ) -> None:
        super().__init__(num_envs, seed, device, 4, {"fast": 10, "exact": 20}[simulation], slots_per_task)


@register("evaluation", "their_reach")
class TheirEvaluation(EvaluationProtocol):
    def record_settings(self):
        return {**self.settings, "simulation": "exact"}

    def words(self):
        return {"simulation": "exact", "starts": f"of seed {self.seed}"}

    def scores(self, result):
        lengths = {task: sum(e.length for e in episodes) for task, episodes in result.by_task.items()}
        each = {f"steps/{task}": float(length) for task, length in lengths.items()}
        return {"steps": float(sum(lengths.values())), **each}
'''


@pytest.fixture
def their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with an entry point, gone afterwards."""
    installed = tmp_path / "site-packages"
    info = installed / "their_suite-1.0.dist-info"
    info.mkdir(parents=True)
    (installed / "their_suite.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-suite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtrl.components]\ntheirs = their_suite\n")
    monkeypatch.syspath_prepend(installed)
    before = copy.deepcopy(registry._components)
    registry._load_third_parties.cache_clear()
    yield
    registry._load_third_parties.cache_clear()
    registry._components.clear()
    registry._components.update(before)
    del sys.modules["their_suite"]


@pytest.mark.usefixtures("their_package")
def test_trained_and_reported(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*tiny(), "env.name=their_reach", "seed=5", f"run_dir={run_dir}") == 0
    trained = json.loads((run_dir / "eval" / "000000000640.json").read_text())
    # Two episodes of 20 steps in each of four tasks.
    scores = {"steps": 160.0, **{f"steps/reach-{i}": 40.0 for i in range(4)}}
    assert trained["scores"] == scores
    assert trained["protocol"] == {
        "env": "their_reach",
        "simulation": "exact",
        "starts": "of seed 5",
        "horizon": 20,
        "episodes per task": 2,
        "policy": "deterministic",
        "success": "at any step",
    }
    logged = [row for row in rows(run_dir) if "eval/steps" in row]
    assert [row["step"] for row in logged] == [320, 640]
    assert logged[-1]["eval/steps/reach-3"] == 40.0
    assert all(row["train/length"] == 10 for row in rows(run_dir) if "train/length" in row)
    assert "steps: 160.000\nenv: their_reach; simulation: exact" in capsys.readouterr().out

    assert evaluate(f"run={run_dir}") == 0
    found = json.loads((run_dir / "eval.json").read_text())
    for key in ("protocol", "scores", "summary", "episodes"):
        assert found[key] == trained[key], key
    assert "steps: 160.000\nenv: their_reach; simulation: exact" in capsys.readouterr().out
