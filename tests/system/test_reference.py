"""The reference pages of settings, components and metrics list all that there are, and say something about each."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import pytest

from mtrl.registry import names
from mtrl.train import _main
from tests.system.commands import AGENTS

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import reference
from reference import ROOT


def test_reference_pages_are_fresh() -> None:
    """`python scripts/reference.py` writes them."""
    pages = reference.pages()
    assert {path for path in pages if path.read_text(encoding="utf-8") != pages[path]} == set()
    assert set((ROOT / "docs" / "reference").glob("*.md")) <= pages.keys()


def test_what_the_documentation_imports_is_in_the_reference_of_python() -> None:
    """From its Python code, and what its prose calls by the full name."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    listed = {path for paths in reference.API.values() for path in paths}
    named = {
        f"{module}.{name}"
        for module, imported in re.findall(r"^from (mtrl[\w.]*) import ([\w, ]+)$", code, re.MULTILINE)
        for name in imported.split(", ")
    } | set(re.findall(r"\b(mtrl(?:\.\w+)+)\(", code))
    assert len(named) > 15
    assert {name for name in named if name not in listed} == set()
    assert {path for path in listed if not inspect.getdoc(reference.found(path)[0])} == set()


def test_every_setting_has_a_meaning() -> None:
    assert [key for key, _, meaning in reference.run_settings() if not meaning] == []
    assert [
        f"{kind} {name}: {option}"
        for kind in reference.PAGES
        for name in names(kind)
        for option in reference.settings_of(kind, name)
        if reference.plain(kind, name).__module__.startswith("mtrl.")
        and option not in reference.meanings(reference.plain(kind, name))
    ] == []


@pytest.mark.parametrize("kind", reference.PAGES)
def test_every_component_says_what_it_is_for(kind: str) -> None:
    components = {name: reference.plain(kind, name) for name in names(kind)}
    ours = {name: inspect.getdoc(one) or "" for name, one in components.items() if one.__module__.startswith("mtrl.")}
    assert [name for name, text in ours.items() if not re.search(r"\n\nUse (it|`\w+`) ", text)] == []


def listed() -> set[str]:
    """What stands in backquotes in the first column of the table of metrics."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall("`([^`]+)`", row)}


def pattern(metric: str) -> str:
    """Regular expression of the names that an entry such as `train/<network>_norm` stands for."""
    stands_for = {
        "<task>": "[^/]+",
        "<network>_": "((policy|value|critic)_)?",
        "<layer>": r"\d+",
        "<module>": r"\d+",
        "<name>": "[a-z]+",
        "<n>": r"\d+",
    }
    for placeholder, expression in stands_for.items():
        metric = metric.replace(placeholder, expression)
    return metric


RUNS = {
    "ppo": ["env=toy_reach", *AGENTS["ppo"], "log.lookahead=true"],
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
    patterns = [re.compile(pattern(name)) for name in listed() - {"eval/<score>"}]
    logged = {name for row in rows for name in json.loads(row)}
    assert {name for name in logged if not any(known.fullmatch(name) for known in patterns)} == set()
