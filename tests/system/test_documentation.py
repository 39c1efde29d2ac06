"""The commands of the documentation are understood, up to where work would begin, and its links lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tomllib

import mtrl.__main__
import mtrl.train
import mtrl.zoo.__main__
from mtrl.config import GROUPS, KINDS, TrainConfig, composed, train_config
from mtrl.registry import lookup, parameters, unknown
from tests.system.commands import ROOT, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = {module.removesuffix(".__main__"): module for module, _ in mtrl.__main__.COMMANDS.values()}
WORK = {
    "mtrl.evaluate": "evaluate_policy",
    "mtrl.compare": "compare_runs",
    "mtrl.report.__main__": "report",
    "mtrl.plot": "plot",
    "mtrl.relate.__main__": "relate",
    "mtrl.relate.runs": "transfer_runs",
}
"""What a command calls with its arguments."""
NOT_HERE = ("my_", "inverse_scale", "=line", ", ...", "hydra/sweeper=optuna")
"""In commands that need what the documentation shows how to make, the example package, or a plug-in."""


def blocks(page: Path) -> Iterator[str]:
    """Code blocks of commands: those without a language, and in bash."""
    for language, block in re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        if language in ("", "bash"):
            yield block.replace("\\\n", " ")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of ours, without comments and what stands before it."""
    for line in (line for block in blocks(page) for line in block.splitlines()):
        for part in re.findall(r"(?:^|&& )((?:python|torchrun|srun|mtrl) .*?)(?= && |$)", line):
            words = shlex.split(part, comments=True)
            if "-m" in words:
                yield words[words.index("-m") + 1 :]
            elif words[0] == "mtrl":
                yield [mtrl.__main__.COMMANDS[words[1]][0].removesuffix(".__main__"), *words[2:]]


COMMANDS = sorted(
    {tuple(words) for page in PAGES for words in commands(page) if words[0].startswith("mtrl") and "<" not in words}
)


class UnderstoodError(Exception):
    """Raised where work would begin."""


def stub(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same signature that does nothing."""

    @functools.wraps(function)
    def does_nothing(*arguments: Any, **keywords: Any) -> Any:
        raise UnderstoodError

    return does_nothing


def check(config: TrainConfig, *_: Any) -> int:
    """In place of training: every option is one of the component that gets it."""
    for group in GROUPS:
        node = getattr(config, group)
        node = node["trunk"] if group == "network" else node
        valid = parameters(lookup(KINDS.get(group, group), node["name"]))
        for option in node.keys() - {"name", "history"}:
            assert option in valid, unknown(f"option of {node['name']}", option, valid)
    raise UnderstoodError


def raise_understood(*_: Any) -> None:
    raise UnderstoodError


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    """Commands stop where they would begin to work. Every folder that they name is there."""
    for module, function in WORK.items():
        monkeypatch.setattr(f"{module}.{function}", stub(getattr(import_module(module), function)))
    monkeypatch.setattr("mtrl.train.train", check)
    monkeypatch.setattr("mtrl.train.load_train_yaml", lambda _: train_config(composed(["env=mt10"], "train")))
    monkeypatch.setattr("mtrl.sweep.launch._new_folder", raise_understood)
    monkeypatch.setattr("mtrl.sweep.__main__.read_jobs", raise_understood)
    monkeypatch.setattr("mtrl.sweep.__main__.restart", raise_understood)
    monkeypatch.setattr("mtrl.install_warp._pip", raise_understood)
    monkeypatch.setattr("mtrl.install_warp.install", raise_understood)
    for name, (function, paths) in mtrl.zoo.__main__.COMMANDS.items():
        monkeypatch.setitem(mtrl.zoo.__main__.COMMANDS, name, (stub(function), paths))


@pytest.mark.usefixtures("without_work")
@pytest.mark.parametrize("words", [one for one in COMMANDS if not any(name in " ".join(one) for name in NOT_HERE)])
def test_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    module, *arguments = words
    assert module in MODULES
    if "hydra/launcher=joblib" not in arguments:  # other plug-ins are not installed for the tests
        arguments = [word for word in arguments if not word.startswith(("hydra/", "hydra."))]
    try:
        code = run(*arguments, command=import_module(MODULES[module]))
    except UnderstoodError:
        return
    assert (code, capsys.readouterr().err) == (0, "")


def test_other_commands() -> None:
    """Scripts exist, and so do extras and targets of make."""
    text = "\n".join(page.read_text() for page in PAGES)
    scripts = set(re.findall(r"python ((?:benchmarks|scripts|docs)/[\w/]+\.py)", text))
    assert {name for name in scripts if not (ROOT / name).is_file()} == set()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    extras = {extra for listed in re.findall(r"-e \"\.\[([\w,]+)\]", text) for extra in listed.split(",")}
    assert extras <= known
    targets = set(re.findall(r"`make (\w+)`", text))
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w/]+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith(("_build", "examples"))} == listed | {"index"}
