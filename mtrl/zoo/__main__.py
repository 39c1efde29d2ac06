"""Policies that come with the package.

python -m mtrl.zoo                                              # lists them
python -m mtrl.zoo card run=runs/... name=mt10                  # the run's last checkpoint becomes one, with its card
python -m mtrl.zoo card run=runs/... name=mt10 out=folder       # the same, elsewhere
python -m mtrl.zoo push policy=mt10 repo=user/mt10              # to the Hugging Face hub: needs the extra [hub]

Any of their names stands where a policy is asked for:

python -m mtrl.evaluate policy=mt10                             # measures it again
python -m mtrl.train env=mt10 init_from=mt10                    # goes on from its weights
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from mtrl.config import parse, run_or_exit, split_paths
from mtrl.policy import find_policy, read_policy
from mtrl.registry import construct, unknown
from mtrl.run.evaluation.report import aligned
from mtrl.types import UserError
from mtrl.zoo import collection
from mtrl.zoo.card import make_card, read_card, write_card
from mtrl.zoo.hub import push_to_hub
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


def push(policy: str, repo: str, private: bool = False) -> str:
    """Sends a policy with its card to the Hugging Face hub. Returns the address.

    Args:
        policy: Anything that `mtrl.load_policy` takes.
        repo: Name of the repository, `user/name`; made if there is none.
        private: Whether a repository that is made is private.

    Raises:
        UserError: There is no such policy, or it cannot be sent.
    """
    folder = find_policy(policy)
    read_policy(folder)  # nothing damaged is sent
    return push_to_hub(folder, repo, private)


COMMANDS: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "card": (card, ("run", "name", "out")),
    "push": (push, ("policy", "repo")),
}
"""Functions, with those of their arguments that are used verbatim."""


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys of card: run, name, out. Keys of push: policy, repo, private")
        return 0
    if not arguments or arguments == ["list"]:
        print("\n".join(list_policies()))
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(unknown("command", command, ["list", *COMMANDS]))
    function, verbatim = COMMANDS[command]
    settings, paths = split_paths(rest, verbatim)
    keywords = {override.key_or_group: override.value() for override in parse(settings)}
    print(construct(command, function, {**keywords, **paths}))
    return 0


if __name__ == "__main__":
    main()
