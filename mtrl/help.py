"""The output of `python -m mtrl.train --help`: every setting, option and component, generated from their sources."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtrl.config import GROUPS, KINDS, OPTIONAL_GROUPS, config_dir, load_yaml, options, presets
from mtrl.registry import lookup, names, parameters

WITHIN = {
    "network.head": "head",
    "agent.optimizer.name": "optimizer",
    "agent.obs_norm": "obs_norm",
    "env.physics": "physics",
    "transport": "transport",
    "aux_losses.<name>": "aux_loss",
    "data.teacher.name": "teacher",
    "agent.loss.name": "distill_loss",
    "data.teacher_share.name": "schedule",
}
"""Settings that name a component and are not groups."""
SKIPPED = ("# @package", "defaults:", "  - ", "name: ")
"""Beginnings of the lines in a file that are not settings."""
FROM_THE_RUN = ("seed", "device", "slots_per_task", "render", "log_alpha")
"""Arguments of components that are not settings."""


def help_text(usage: str, folders: Sequence[Path] = ()) -> str:
    """The complete help text.

    Args:
        usage: Usage of the command, which comes first.
        folders: Folders with further presets.
    """
    settings, _, _ = (config_dir() / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")
    lines = [usage.strip(), "", "Choices, `group=option`, with the default of each group:"]
    chosen = _default_choices()
    lines += [f"  {f'{group}={chosen[group]}':<22} or {', '.join(options(group, folders))}" for group in GROUPS]
    lines += [f"  {f'{group}=...':<25} {', '.join(options(group, folders))}" for group in OPTIONAL_GROUPS]
    lines += ["", "Components that a setting names:"]
    lines += [f"  {key}={'|'.join(names(kind))}" for key, kind in WITHIN.items()]
    lines += ["", "Settings of a run, `key=value`, and their defaults:"]
    lines += [f"  {line}" for line in settings[settings.index("\nseed:") :].splitlines() if line]
    lines += ["", "Settings of each option, `group.key=value`:"]
    for group in (*GROUPS, *OPTIONAL_GROUPS):
        files = presets(group, folders)
        for option in options(group, folders):
            described = _of_file(group, files[option]) if option in files else _of_component(group, option)
            lines += ["", f"{group}={option}", *(f"  {line}" for line in described)]
    return "\n".join(lines) + "\n"


def _default_choices() -> dict[str, str]:
    """The option of each group that `train.yaml` names."""
    entries = load_yaml(config_dir() / "train.yaml")["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _of_file(group: str, path: Path) -> list[str]:
    """The lines of an option's file, and the settings of a trunk that are not in the file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith(SKIPPED)]
    trunk = load_yaml(path).get("trunk", {}) if group == "network" else {}
    return lines + _defaults(group, lookup("trunk", trunk["name"]), trunk) if "name" in trunk else lines


def _of_component(group: str, name: str) -> list[str]:
    """The first line of the docstring of a component without a file, and its settings."""
    component = lookup(KINDS.get(group, group), name)
    component = component.func if isinstance(component, partial) else component
    return [f"# {line}" for line in (component.__doc__ or "").splitlines()[:1]] + _defaults(group, component)


def _defaults(group: str, component: Callable[..., Any], given: Collection[str] = FROM_THE_RUN) -> list[str]:
    """Settings of a component that have a default, except those that are `given`."""
    key = {"network": "network.trunk"}.get(group, group)
    settings = [p for p in parameters(component).values() if p.default is not p.empty and p.name not in given]
    return [f"# {key}.{p.name}={p.default} ({inspect.formatannotation(p.annotation)})" for p in settings]
