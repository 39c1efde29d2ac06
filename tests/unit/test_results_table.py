"""What benchmarks/results.py writes into README.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import results


def test_the_table_is_fresh_and_without_runs_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else in the file stays as it is."""
    before = (results.ROOT / "README.md").read_text()
    found = {name: variants[name] for name, variants in results._groups("*/seed*.json").items()}
    (tmp_path / "README.md").write_text(before)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results._update_readme({**found, "mine": found["mt10_ppo"]})
    assert (tmp_path / "README.md").read_text() == before
