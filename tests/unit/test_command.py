"""The command `mtrl`, and what it says of extras."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import tomllib

import mtrl.__main__
from mtrl import registry
from tests.system.commands import run, the_error

ROOT = Path(__file__).parents[2]


def test_it_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As the import rule lists them; and the package installs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    assert sorted(module for module, _ in mtrl.__main__.COMMANDS.values()) == sorted(contracts["commands"]["modules"])
    assert project["project"]["scripts"] == {"mtrl": "mtrl.__main__:main"}
    assert run(command=mtrl.__main__) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in mtrl.__main__.COMMANDS)


@pytest.mark.parametrize("name", ["plot", "compare", "zoo"])
def test_the_first_word_is_the_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(name, "--help", command=mtrl.__main__) == 0
    module, _ = mtrl.__main__.COMMANDS[name]
    assert capsys.readouterr().out.startswith(import_module(module).__doc__ or "?")


def test_another_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tran", "env=mt10", command=mtrl.__main__) == 2
    assert the_error(capsys).startswith("Unknown command 'tran'. Did you mean 'train'?")
    assert run("--version", command=mtrl.__main__) == 0
    assert capsys.readouterr().out == f"mtrl {mtrl.__version__}\n"


def test_extras_of_a_checkout_and_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_checkout = str(registry.missing_extra("A plot", "matplotlib", "plot"))
    assert of_checkout == f'A plot needs matplotlib: pip install -c constraints.txt -e ".[plot]" in {ROOT}'
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "site-packages" / "mtrl" / "registry.py"))
    installed = str(registry.missing_extra("A plot", "matplotlib", "plot"))
    assert installed == 'A plot needs matplotlib: pip install "mtrl-suite[plot]"'
