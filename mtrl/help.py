"""What `python -m mtrl.train --help` prints: every setting, option and component, from the files that define them."""

from __future__ import annotations

import inspect
from pathlib import Path

import mtrl.build
import mtrl.envs.metaworld.physics  # noqa: F401  # the two register what is listed
from mtrl.config import GROUPS, config_dir, load_yaml
from mtrl.registry import lookup, names

WITHIN = {
    "network.head": "head",
    "agent.optimizer.name": "optimizer",
    "agent.obs_norm": "obs_norm",
    "env.physics": "physics",
}
"""Settings that name a component and are no group of their own."""
SKIPPED = ("# @package", "defaults:", "  - ", "name: ")
"""How lines begin that are no setting of an option."""


def help_text(usage: str) -> str:
    """The whole text, which begins with how the command is used."""
    settings, _, _ = (config_dir() / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")
    lines = [usage.strip(), "", "Choices, `group=option`, with the default of each group:"]
    chosen = _default_choices()
    lines += [f"  {f'{group}={chosen[group]}':<22} or {', '.join(options(group))}" for group in GROUPS]
    lines += [f"  {'+experiment=...':<25} {', '.join(options('experiment'))}"]
    lines += ["", "Components that a setting names:"]
    lines += [f"  {key}={'|'.join(names(kind))}" for key, kind in WITHIN.items()]
    lines += ["", "Settings of a run, `key=value`, and their defaults:"]
    lines += [f"  {line}" for line in settings[settings.index("\nseed:") :].splitlines() if line]
    lines += ["", "Settings of each option, `group.key=value`:"]
    for group in (*GROUPS, "experiment"):
        for option in options(group):
            lines += ["", f"{group}={option}", *_settings(config_dir() / group / f"{option}.yaml")]
    return "\n".join(lines) + "\n"


def options(group: str) -> list[str]:
    """What can be chosen from a group, sorted."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _default_choices() -> dict[str, str]:
    """The option of each group that `train.yaml` names."""
    entries = load_yaml(config_dir() / "train.yaml")["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _settings(path: Path) -> list[str]:
    """The lines of an option's file, and those settings of a trunk that the file leaves at their defaults."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith(SKIPPED)]
    if path.parent.name == "network":
        trunk = load_yaml(path)["trunk"]
        parameters = inspect.signature(lookup("trunk", trunk["name"])).parameters.values()
        others = [p for p in parameters if p.default is not p.empty and p.name not in trunk]
        lines += [f"# network.trunk.{p.name}={p.default} ({p.annotation})" for p in others]
    return [f"  {line}" for line in lines]
