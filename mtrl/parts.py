"""Names of the parts of networks, for `init_from_parts` and for settings by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtrl.registry import unknown
from mtrl.types import UserError


def is_in(name: str, part: str) -> bool:
    """Whether a tensor, by its name in `Learner.networks`, belongs to a part.

    A part is a whole network (`policy`) or a submodule of any network: "trunk" has every tensor with a component
    `trunk` in its dotted name (`policy.trunk.input.weight`), but not a `task_input` in it, which has a column for each
    task and counts as a separate part.
    """
    network, *modules = name.split(".")[:-1]
    counted = modules[modules.index("task_input") :] if "task_input" in modules else modules
    return part == network or part in counted


def parts_of(names: Iterable[str]) -> list[str]:
    """All parts that some tensors belong to, sorted."""
    return sorted({part for name in names for part in name.split(".")[:-1] if not part.isdigit()})


def check_parts(parts: Iterable[str], valid: Sequence[str]) -> None:
    """Raises `UserError` for a part that does not exist."""
    for part in parts:
        if part not in valid:
            raise UserError(unknown("part", part, valid))
