"""Policies that come with the package.

python -m mtrl.zoo                                              # lists them
python -m mtrl.zoo card run=runs/... name=mt50                  # the run's last checkpoint becomes one, with its card
python -m mtrl.zoo card run=runs/... name=mt50 out=folder       # the same, elsewhere

Any of their names stands where a policy is asked for:

python -m mtrl.evaluate policy=mt50                             # measures it again
python -m mtrl.train env=mt50 init_from=mt50                    # goes on from its weights
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mtrl.config import parse, run_or_exit, split_paths
from mtrl.policy import read_policy
from mtrl.registry import construct, unknown
from mtrl.run.evaluation.report import aligned
from mtrl.types import UserError
from mtrl.zoo import collection
from mtrl.zoo.card import make_card, read_card, write_card
from mtrl.zoo.readme import headline, readme


def list_policies() -> list[str]:
    """The shipped policies, one in each line."""
    cards = [read_card(collection.FOLDER / name) for name in collection.shipped_names()]
    if not cards:
        return ["No policies come with this version."]
    heading = ("name", "environment", "tasks", "parameters", "KB", "measured")
    rows = [
        (
            card.name,
            card.config["env"]["name"],
            str(len(card.measured["tasks"])),
            f"{card.parameters:,}",
            f"{sum(file['size'] for file in card.files.values()) / 1000:.0f}",
            headline(card).rstrip("."),
        )
        for card in cards
    ]
    return aligned([heading, *rows])


def card(run: str, name: str, out: str | None = None) -> Path:
    """Makes the folder of a policy from a run's last checkpoint and its evaluation at that step. Returns the folder.

    Args:
        run: Run folder.
        name: Of the policy.
        out: The policy's folder; by default the one of that name in the collection.

    Raises:
        UserError: There is no such run or evaluation, or the folder cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise UserError(f"name must consist of small letters, digits, '_', '-' and '.', not {name!r}.")
    made, policy = make_card(Path(run), name)
    spec = read_policy(policy).spec
    actions = f"(N, {spec.action_dim})" if spec.action_kind == "continuous" else "(N,)"
    folder = Path(out) if out else collection.FOLDER / name
    write_card(made, policy, folder, readme(made, spec.obs_shape, actions))
    return folder


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys of card: run, name, out")
        return 0
    if not arguments or arguments == ["list"]:
        print("\n".join(list_policies()))
        return 0
    command, *rest = arguments
    if command != "card":
        raise UserError(unknown("command", command, ["list", "card"]))
    settings, paths = split_paths(rest, ("run", "out", "name"))
    keywords = {override.key_or_group: override.value() for override in parse(settings)}
    print(construct("card", card, {**keywords, **paths}))
    return 0


if __name__ == "__main__":
    main()
