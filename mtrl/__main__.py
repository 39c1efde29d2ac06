"""The command `mtrl`, also `python -m mtrl`: `mtrl train ...` is `python -m mtrl.train ...`, and so on."""

from __future__ import annotations

import sys
from importlib import import_module

from mtrl.config import run_or_exit
from mtrl.registry import unknown
from mtrl.types import UserError

COMMANDS = {
    "train": ("mtrl.train", "trains a policy, or a sweep of them"),
    "evaluate": ("mtrl.evaluate", "evaluates a policy by the official protocol"),
    "sweep": ("mtrl.sweep.__main__", "shows how far a sweep is, and restarts what failed"),
    "compare": ("mtrl.compare", "compares groups of runs, with intervals over seeds"),
    "report": ("mtrl.report.__main__", "makes a page about runs"),
    "plot": ("mtrl.plot", "plots the metrics of a run"),
    "relate": ("mtrl.relate.__main__", "measures which tasks belong together"),
    "relate-runs": ("mtrl.relate.runs", "measures in short runs what tasks gain from one another"),
    "zoo": ("mtrl.zoo.__main__", "lists the policies that come with the package, and makes others"),
    "install-warp": ("mtrl.install_warp", "installs what env.physics=warp needs"),
}
"""Modules by command, and what they do."""


def main() -> None:
    """Command line: the first word chooses the module that gets the others."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        module, _ = COMMANDS[sys.argv[1]]
        del sys.argv[1]
        import_module(module).main()
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if arguments and arguments[0] not in ("-h", "--help"):
        raise UserError(unknown("command", arguments[0], list(COMMANDS)))
    print("\n".join(["mtrl COMMAND ..., and mtrl COMMAND --help:", ""]))
    print("\n".join(f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items()))
    return 0


if __name__ == "__main__":
    main()
