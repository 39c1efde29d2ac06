"""Where a policy comes from: the settings of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mtrl.config import MAX_EPISODE_STEPS, load_yaml, stored_entry
from mtrl.types import UserError
from mtrl.zoo.card import CARD, read_card

T = TypeVar("T")

OFFICIAL: dict[str, Any] = {"env": {}, "seed": 0, "eval": {"episodes_per_task": 50}}
"""Settings for a policy of which nothing is known."""


class Origin(NamedTuple):
    """Settings of a run."""

    config: dict[str, Any]
    stored: Path
    """The file that they are in."""
    run: Path | None
    """The run's folder, if it is there."""

    @property
    def max_episode_steps(self) -> int:
        """After which steps episodes without a time limit end."""
        return self._eval("max_episode_steps", int, MAX_EPISODE_STEPS)

    @property
    def stop_at_success(self) -> bool:
        """Whether episodes end at their first success."""
        return self._eval("stop_at_success", bool, False)

    def _eval(self, key: str, kind: type[T], missing: T) -> T:
        """A setting of evaluations, which runs of earlier versions do not have."""
        if key not in self.config["eval"]:
            return missing
        value: T = stored_entry(self.config, f"eval.{key}", kind, self.stored)
        return value

    def env(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the environment, with changes. Raises `UserError` for what is no setting of it."""
        node = {**self.config["env"], **changes}
        if wrong := sorted({"seed", "device", "slots_per_task", "render"} & node.keys()):
            raise UserError(f"env.{wrong[0]} is not a setting of an environment.")
        return node


def origin(folder: Path, env: Mapping[str, Any]) -> Origin:
    """The origin of a policy, by its folder: its card or its run. Otherwise `env` must name the environment.

    Raises:
        UserError: There is neither, and `env` has no name; or they cannot be read.
    """
    if (folder / CARD).is_file():
        return Origin(read_card(folder).config, folder / CARD, None)
    run_dir = next((f for f in (folder, *folder.parents) if (f / "config.yaml").is_file()), None)
    if run_dir is not None:
        stored = run_dir / "config.yaml"
        config = load_yaml(stored)
        stored_entry(config, "env.name", str, stored)
        return Origin(config, stored, run_dir)
    if "name" not in env:
        raise UserError(
            f"No config.yaml in {folder} or above it, and no {CARD}: expected a run folder, a checkpoint in one or a "
            "policy with its card. Name the environment of another policy: policy=... env=mt10"
        )
    return Origin(OFFICIAL, folder, None)
