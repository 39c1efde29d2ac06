"""Makes the reference pages of the documentation from the code: run it after a change of a setting or a docstring.

python scripts/reference.py                     # docs/settings.md, and docs/reference/: a page per kind of component

What a component is comes from its docstring, its settings from its constructor and the presets in configs/, and what an
update costs with it from results/update_cost_*.json. Settings of a run and their meaning come from configs/train.yaml.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mtrl.config import GROUPS, KINDS, OPTIONAL_GROUPS, config_dir, load_yaml, presets, registered
from mtrl.help import FROM_THE_RUN, WITHIN
from mtrl.registry import lookup, names, parameters

ROOT = Path(__file__).parents[1]
PAGES = {
    "agent": "Learners",
    "data": "Data sources",
    "env": "Environments",
    "trunk": "Trunks",
    "torso": "Torsos",
    "core": "Cores",
    "task_encoder": "Task encoders",
    "value_head": "Value heads",
    "value_norm": "Value scaling",
    "weighting": "Loss weighting",
    "aggregation": "Gradient aggregation",
    "task_sampling": "Task sampling",
    "head": "Heads",
    "optimizer": "Optimisers",
    "obs_norm": "Observation normalisation",
    "physics": "Physics of Meta-World",
    "transport": "Transports",
    "aux_loss": "Auxiliary losses",
    "teacher": "Teachers",
    "distill_loss": "Distillation losses",
    "schedule": "Schedules",
}
"""Kinds of components that settings choose, and the titles of their pages."""

KEYS = {**{KINDS.get(group, group): group for group in GROUPS}, **{kind: key for key, kind in WITHIN.items()}}
"""The setting that chooses a component of a kind."""

BEFORE_OPTIONS = {"trunk": "network.trunk", "optimizer": "agent.optimizer", "teacher": "data.teacher"}
BEFORE_OPTIONS |= {"distill_loss": "agent.loss", "schedule": "data.teacher_share"}
"""What stands before the name of an option, where that is not the key that chooses the component."""

GIVEN = {
    *FROM_THE_RUN,
    *("c", "env", "make_env", "spec", "episodes", "timer", "report", "actors", "transport", "features", "context"),
    *(
        "num_tasks",
        "num_slots",
        "silent_tasks",
        "task_names",
        "obs_shape",
        "parameters",
        "suite",
        "benchmark",
        "history",
    ),
}
"""Parameters of constructors that are not settings: the run knows them."""

NOT_GIVEN = {"data": {"slots_per_task"}, "env": {"num_tasks"}}
"""Those of them that are settings of a kind all the same."""

ALSO_GIVEN = {
    "data": {"gamma"},
    "value_norm": {"gamma", "entropy"},
    "head": {"outputs", "gain"},
    "obs_norm": {"clip", "epsilon"},
    "physics": {"num_envs", "num_workers"},
}
"""Further parameters of a kind that are none."""

OPTIONAL = {"experiment": "a preset of several groups and settings", "distill": "a preset of `aux_losses`"}
"""What the groups choose of which `train.yaml` names no default."""


def pages() -> dict[Path, str]:
    """The text of every page."""
    registered("env")
    found = {ROOT / "docs" / "reference" / f"{kind}.md": _page(kind, title) for kind, title in PAGES.items()}
    return {ROOT / "docs" / "settings.md": _settings(), **found}


# ---------------------------------------------------------------------------------------------------------------------
# Components
# ---------------------------------------------------------------------------------------------------------------------


def _page(kind: str, title: str) -> str:
    key = KEYS[kind]
    lines = [f"# {title}", "", f"Chosen by `{key}=...`. Made by `python scripts/reference.py` from the code.", ""]
    components: dict[Any, list[str]] = {}
    for name in names(kind):
        if plain(kind, name).__module__.startswith("mtrl."):
            components.setdefault(plain(kind, name), []).append(name)
    for component, own in components.items():
        lines += _section(kind, key, component, own)
    return "\n".join(lines).rstrip() + "\n"


def plain(kind: str, name: str) -> Callable[..., Any]:
    """The class or function under a name."""
    component = lookup(kind, name)
    return component.func if isinstance(component, partial) else component


def _section(kind: str, key: str, component: Callable[..., Any], own: list[str]) -> list[str]:
    lines = [f"## {', '.join(own)}", ""]
    if kind == "agent":  # a learner is a file
        lines += [*_prose(inspect.getmodule(component).__doc__ or ""), ""]
    lines += [*_prose(component.__doc__ or ""), ""]
    lines += _cost(kind, own)
    rows = _options(kind, key, own)
    if rows:
        lines += ["| setting | default | meaning |", "| --- | --- | --- |", *rows, ""]
    others = _presets_of(kind, key, own)
    return [*lines, "Presets:", "", *others, ""] if others else lines


def _prose(docstring: str) -> list[str]:
    """A docstring as Markdown, up to its list of arguments."""
    text = re.split(r"^(?:Args|Raises|Returns|Attributes):$", inspect.cleandoc(docstring), flags=re.MULTILINE)[0]
    lines = []
    for line in text.rstrip().splitlines():
        if re.match(r" {4}1\. ", line):
            lines.append("")  # Markdown's lists need one
        lines.append(_escaped(line.removeprefix("    ")))
    return lines


def _escaped(text: str) -> str:
    """Prose of a docstring as Markdown: with links to pages, and without HTML."""
    parts = re.split("(`[^`]*`)", text)
    outside = [re.sub(r"docs/(\w+)\.md", r"[](../\1.md)", part).replace("<", "\\<") for part in parts[::2]]
    return "".join(word for pair in zip(outside, [*parts[1::2], ""], strict=True) for word in pair)


def meanings(component: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say of the arguments of a component: its own, and those of the classes that it derives from."""
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(component) if inspect.isclass(component) else (component,)):
        _, _, rest = inspect.cleandoc(one.__doc__ or "").partition("\nArgs:\n")
        name = ""
        for line in rest.splitlines():
            if not line.startswith("    "):
                break
            if argument := re.match(r" {4}(\w+): ", line):
                name, found[argument[1]] = argument[1], ""
                line = line[argument.end() :]
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def settings_of(kind: str, name: str) -> dict[str, Any]:
    """The options of a component that a user may set, with their defaults; `...` where there is none."""
    known = parameters(lookup(kind, name))
    given = GIVEN - NOT_GIVEN.get(kind, set()) | ALSO_GIVEN.get(kind, set())
    return {key: ... if p.default is p.empty else p.default for key, p in known.items() if key not in given}


def _options(kind: str, key: str, own: Iterable[str]) -> list[str]:
    """A row for each option, with the default that the presets of these names give it."""
    by_name = {name: settings_of(kind, name) | _of_preset(key, name, settings_of(kind, name)) for name in own}
    component = plain(kind, next(iter(by_name)))
    said = meanings(component)
    rows = []
    for option in next(iter(by_name.values())):
        names_of: dict[str, list[str]] = {}
        for name, found in by_name.items():
            names_of.setdefault(_value(found[option]), []).append(name)
        usual = max(names_of, key=lambda value: len(names_of[value]))
        special = [f"{value} ({', '.join(having)})" for value, having in names_of.items() if value != usual]
        default = ", ".join([usual, *special])
        meaning = _escaped(said.get(option, "")).replace("|", "\\|")
        rows.append(f"| `{BEFORE_OPTIONS.get(kind, key)}.{option}` | {default} | {meaning} |")
    if kind == "env":
        rows.append("| `env.history` | `0` | Past transitions at the beginning of each observation. |")
    return rows


def _of_preset(key: str, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    files = presets(key) if key in GROUPS else {}
    if name not in files:
        return {}
    settings = load_yaml(files[name])
    settings = settings.get("trunk", {}) if key == "network" else settings.get(key, settings)
    return {option: value for option, value in settings.items() if option in known}


def _presets_of(kind: str, key: str, own: Iterable[str]) -> list[str]:
    """Presets of these components that have another name: what their first line says, and what they set."""
    found = []
    for name, path in sorted((presets(key) if key in GROUPS else {}).items()):
        settings = load_yaml(path)
        chosen = settings.get("trunk", {}) if key == "network" else settings.get(key, settings)
        if chosen.get("name") in own and name not in own:
            first = next(line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line)
            about = f": {_escaped(first.removeprefix('# ').rstrip('.'))}" if first.startswith("# ") else ""
            defaults = settings_of(kind, chosen["name"])
            other = [f"{option}={_value(chosen[option]).strip('`')}" for option in defaults
                     if option in chosen and chosen[option] != defaults[option]]  # fmt: skip
            found.append(f"- `{key}={name}`{about}" + (f" (`{' '.join(other)}`)" if other else ""))
    return found


def _value(value: Any) -> str:
    """A default as it is written on a command line."""
    if value is ...:
        return ""
    text: str = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _cost(kind: str, own: list[str]) -> list[str]:
    """What an update costs with a component, if it was measured."""
    base = {"trunk": "sum", "aggregation": "mlp"}
    other = {"trunk": "aggregation", "aggregation": "trunk"}
    measured = [
        row
        for path in sorted((ROOT / "results").glob("update_cost_*.json"))
        for row in json.loads(path.read_text())["rows"]
        if kind in base and row[kind] in own and row[other[kind]] == base[kind]
    ]
    if not measured:
        return []
    head = " | ".join(f"{row['agent']}, {row['tasks']} tasks" for row in measured)
    return [
        f"| [cost of an update](../results.md#cost-of-an-update) as a ratio to `sum` with `mlp` | {head} |",
        "| --- |" + " --- |" * len(measured),
        f"| time | {' | '.join(format(row['of_ms'], '.2f') for row in measured)} |",
        f"| memory | {' | '.join(format(row['of_mb'], '.2f') for row in measured)} |",
        "",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def _settings() -> str:
    lines = [
        "# Settings",
        "",
        "Made by `python scripts/reference.py` from the code. `python -m mtrl.train --help` prints the",
    ]
    lines += ["same, with the presets and components of your own packages and folders.", "", "## Settings of a run", ""]
    lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | `{value}` | {meaning} |" for key, value, meaning in run_settings()]
    lines += [f"| `{group}` | none | {OPTIONAL[group]}: {_choices(group)} |" for group in OPTIONAL_GROUPS]
    lines += ["", "## Settings of components", "", "| setting | of |", "| --- | --- |"]
    having: dict[str, list[str]] = {}
    for kind in PAGES:
        for name in names(kind):
            component = plain(kind, name)
            if component.__module__.startswith("mtrl."):
                for option in settings_of(kind, name):
                    section = "-".join(other for other in names(kind) if plain(kind, other) is component)
                    link = f"[{name}](reference/{kind}.md#{section})"
                    having.setdefault(f"{BEFORE_OPTIONS.get(kind, KEYS[kind])}.{option}", []).append(link)
    lines += [f"| `{setting}` | {', '.join(having[setting])} |" for setting in sorted(having)]
    return "\n".join(lines) + "\n"


def _choices(group: str) -> str:
    return ", ".join(f"`{name}`" for name in sorted(presets(group)))


def run_settings() -> list[tuple[str, str, str]]:
    """Each setting in `train.yaml`: its key, its default, and the comment behind it."""
    text, _, _ = (config_dir() / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")
    found, section = [], ""
    for line in text.splitlines():
        match = re.fullmatch(r"(  - |  )?(\w+):(?: ([^#]*?))?(?: ?# (.*))?", line)
        if match is None or match[2] == "defaults":
            continue
        within, key, value, comment = match.groups(default="")
        if not within and not value:
            section = key
            continue
        name = f"{section}.{key}" if within == "  " else key
        found.append((name, value, _escaped(comment).replace("[](../", "[](").replace("|", "\\|")))
    return found


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
