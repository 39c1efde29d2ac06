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


def test_runs_of_other_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column for each game of any run, empty where a run has not played it; frames are those of one game."""
    pytest.importorskip("matplotlib")
    variants = results._groups("atari_distill/*/seed*.json")["atari_distill"]
    monkeypatch.setattr(results, "DOCS", tmp_path)
    lines = results._games("atari_distill", {name: variants[name] for name in ("whole", "two_games")})
    heading, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    assert heading[3:6] == ["steps (frames of each game)", "pong", "boxing"]
    one, two = rows
    assert (one[1], one[3], one[5], two[1], two[3]) == ("whole", "100,000 (0.4M)", "", "two_games", "200,000 (0.4M)")
    assert one[4].startswith("12.2 (")
    assert two[4].startswith("12.7 (")
    assert two[5].startswith("39.8 (")
    assert (tmp_path / "results_atari_distill.svg").exists()
