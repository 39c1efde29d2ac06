"""The page of terms, settings and metrics lists all that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mtrl.build  # noqa: F401  # registers learners and data sources
from mtrl.config import GROUPS, OPTIONAL_GROUPS, config_dir, load_yaml
from mtrl.registry import lookup, names, parameters
from mtrl.train import _main
from tests.system.commands import AGENTS

PAGE = Path(__file__).parents[2] / "docs" / "glossary.md"
FROM_THE_RUN = {"c", "env", "make_env", "spec", "episodes", "device", "timer", "seed", "report", "actors", "transport"}
"""What learners and data sources are given beside their settings."""


def listed(heading: str) -> set[str]:
    """What stands in backquotes in the first column of the tables below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall("`([^`]+)`", row)}


def keys(node: dict[str, Any], prefix: str = "") -> set[str]:
    """All settings in a configuration, with dots."""
    found: set[str] = set()
    for key, value in node.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"}
    return found


def test_settings_of_a_run() -> None:
    settings = {key: value for key, value in load_yaml(config_dir() / "train.yaml").items() if key != "hydra"}
    del settings["defaults"]
    assert listed("Settings of a run") == keys(settings) | {*GROUPS, *OPTIONAL_GROUPS}


@pytest.mark.parametrize(("kind", "heading"), [("agent", "Settings of learners"), ("data", "Settings of data sources")])
def test_settings_of_learners_and_sources(kind: str, heading: str) -> None:
    options = set()
    for name in names(kind):
        component = lookup(kind, name)
        if component.__module__.startswith("mtrl."):
            options |= {f"{kind}.{option}" for option in parameters(component)} - {
                f"{kind}.{given}" for given in FROM_THE_RUN
            }
    assert listed(heading) == options


def pattern(metric: str) -> str:
    """Regular expression of the names that an entry such as `train/<network>_norm` stands for."""
    stands_for = {
        "<task>": "[^/]+",
        "<network>_": "((policy|value|critic)_)?",
        "<layer>": r"\d+",
        "<module>": r"\d+",
        "<name>": "[a-z]+",
    }
    for placeholder, expression in stands_for.items():
        metric = metric.replace(placeholder, expression)
    return metric


RUNS = {
    "ppo": ["env=toy_reach", *AGENTS["ppo"]],
    "sac": ["env=toy_reach", *AGENTS["sac"], "aggregation=pcgrad"],
    "impala": ["env=toy_grid", *AGENTS["impala"], "network=soft_modules", "network.trunk.width=8"],
    "distral": ["env=toy_reach", *AGENTS["distral"]],
    "distill": ["env=mt1", "env.task=reach-v3", "agent=distill", "data.batch_size=8", "network.trunk.width=8"],
    "actors": ["env=toy_reach", *AGENTS["impala"], "actors=1", "network=soft_sharing", "network.trunk.width=8"],
}


@pytest.mark.parametrize("run", RUNS)
def test_metrics(run: str, tmp_path: Path) -> None:
    short = ["total_steps=160", "log.every=160", "log.tensorboard=false", "eval.episodes_per_task=1"]
    assert _main([*RUNS[run], *short, f"run_dir={tmp_path / 'run'}"]) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    patterns = [re.compile(pattern(name)) for name in listed("Metrics") - {"eval/<score>"}]
    logged = {name for row in rows for name in json.loads(row)}
    assert {name for name in logged if not any(known.fullmatch(name) for known in patterns)} == set()
