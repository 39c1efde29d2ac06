"""Makes the reference pages of the documentation from the code: run it after a change of a setting or a docstring.

python scripts/reference.py    # docs/settings.md, and docs/reference/: a page per kind of component, and python.md

What a component is comes from its docstring, its settings from its constructor and the presets in configs/, and what an
update costs with it from results/update_cost_*.json. Settings of a run and their meaning come from configs/train.yaml.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
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
    kinds = {ROOT / "docs" / "reference" / f"{kind}.md": _page(kind, title) for kind, title in PAGES.items()}
    python = {ROOT / "docs" / "reference" / "python.md": _api()}
    return {ROOT / "docs" / "settings.md": _settings(), **python, **kinds}


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


# ---------------------------------------------------------------------------------------------------------------------
# Python
# ---------------------------------------------------------------------------------------------------------------------

API = {
    "Policies": ("mtrl.load_policy", "mtrl.policy.Policy"),
    "Environments": (
        "mtrl.envs.make",
        "mtrl.envs.evaluation_protocol",
        "mtrl.envs.gym_vector.GymVectorEnv",
        "mtrl.envs.stable_baselines.StableBaselinesEnv",
        "mtrl.types.VecEnv",
        "mtrl.types.EnvSpec",
        "mtrl.types.Step",
        "mtrl.types.EvaluationProtocol",
        "mtrl.types.EvalResult",
        "mtrl.types.EpisodeResult",
        "mtrl.envs.base.TorchVecEnv",
    ),
    "Finished runs": (
        "mtrl.report.runs.read_runs",
        "mtrl.report.runs.FinishedRun",
        "mtrl.report.runs.Evaluation",
        "mtrl.report.comparison.compare",
        "mtrl.report.comparison.Comparison",
        "mtrl.report.comparison.Row",
        "mtrl.relate.grouping.best_partition",
        "mtrl.relate.transfer.auc",
        "mtrl.relate.transfer.transfer_matrix",
    ),
    "Names and errors": (
        "mtrl.registry.register",
        "mtrl.registry.build",
        "mtrl.registry.names",
        "mtrl.registry.lookup",
        "mtrl.types.UserError",
    ),
    "What learners and data sources exchange": (
        "mtrl.types.Learner",
        "mtrl.agents.components.Components",
        "mtrl.types.DataSource",
        "mtrl.types.Actor",
        "mtrl.types.Batch",
        "mtrl.types.Rollout",
        "mtrl.types.TaskContext",
        "mtrl.types.Metrics",
        "mtrl.types.Ranks",
        "mtrl.optim.lookahead.lookahead",
        "mtrl.parallel.transport.Transport",
    ),
    "Base classes of components": (
        "mtrl.optim.weighting.Weighting",
        "mtrl.optim.aggregation.base.GramianAggregation",
        "mtrl.optim.aggregation.base.JacobianAggregation",
        "mtrl.nn.value_norm.ValueNorm",
        "mtrl.data.task_sampling.base.TaskSampler",
        "mtrl.data.task_sampling.base.ScoreSampler",
        "mtrl.nn.trunks.base.Trunk",
        "mtrl.nn.trunks.base.RoutedTrunk",
        "mtrl.nn.torsos.Torso",
        "mtrl.nn.torsos.PixelTorso",
        "mtrl.nn.cores.Core",
        "mtrl.nn.task_encoders.TaskEncoder",
        "mtrl.nn.value_heads.ValueHead",
        "mtrl.nn.value_heads.CategoricalValue",
        "mtrl.agents.aux_loss.AuxLoss",
        "mtrl.distill.teachers.Teacher",
        "mtrl.distill.teachers.FunctionTeacher",
        "mtrl.distill.teachers.TeacherActor",
        "mtrl.distill.losses.DistillLoss",
        "mtrl.per_task",
    ),
}
"""What there is to import, by what it is for."""


def _api() -> str:
    lines = ["# Python", "", "What there is to import. Made by `python scripts/reference.py` from the docstrings."]
    lines += ["[Add a component](../add_a_component.md) shows the base classes in use. Letters in shapes: K tasks,"]
    lines += ["B environment slots, T time steps of a rollout, A size of an action.", ""]
    for title, entries in API.items():
        lines += [f"## {title}", ""]
        for path in entries:
            lines += _entry(path)
    return "\n".join(lines).rstrip() + "\n"


def found(path: str) -> tuple[Any, dict[str, str]]:
    """What a path names, and the docstrings that follow its attributes in the source."""
    try:
        return importlib.import_module(path), {}
    except ImportError:
        module, _, name = path.rpartition(".")
        one = getattr(importlib.import_module(module), name)
        home = inspect.getmodule(one) if inspect.isclass(one) or inspect.isfunction(one) else sys.modules[module]
        tree = ast.parse(inspect.getsource(home))
        body = next(
            (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), tree.body
        )
        return one, _attribute_docs(body)


def _attribute_docs(body: Iterable[ast.stmt]) -> dict[str, str]:
    """Strings that stand below assignments."""
    documented = {}
    for one, following in itertools.pairwise(body):
        target = (
            one.target if isinstance(one, ast.AnnAssign) else one.targets[0] if isinstance(one, ast.Assign) else None
        )
        if (
            isinstance(target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            documented[target.id] = inspect.cleandoc(str(following.value.value))
    return documented


def _entry(path: str) -> list[str]:
    """A function with its arguments; a class with its attributes and methods; a module with its functions."""
    one, attributes = found(path)
    lines = [f"### {path}", ""]
    if inspect.ismodule(one):
        functions = [f for _, f in inspect.getmembers(one, inspect.isfunction) if f.__module__ == path]
        return [*lines, *_prose(one.__doc__ or ""), "", *_methods(functions)]
    if not (inspect.isclass(one) or inspect.isfunction(one)):  # the name of a type
        return [*lines, f"`{_short(str(one))}`", "", *_prose(attributes[path.rpartition(".")[2]]), ""]
    if inspect.isfunction(one):
        return [*lines, f"`{_call(one)}`", "", *_described(one)]
    is_data = "__dataclass_fields__" in vars(one)
    if not is_data and "__init__" in vars(one) and not getattr(one, "_is_protocol", False):
        lines += [f"`{_call(one)}`", ""]
    names_of = vars(one)["__dataclass_fields__"] if is_data else attributes
    said = [f"- `{name}`" + (f": {_one_line(attributes[name])}" if name in attributes else "") for name in names_of]
    computed = [name for name, member in vars(one).items() if isinstance(member, property) and member.__doc__]
    said += [f"- `{name}`: {_one_line(vars(one)[name].__doc__)}" for name in computed if not name.startswith("_")]
    methods = filter(inspect.isfunction, vars(one).values())
    return [*lines, *_described(one), *said, *[""] * bool(said), *_methods(methods)]


def _methods(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Those that are public and say something."""
    shown = [one for one in functions if not one.__name__.startswith("_") and one.__doc__]
    return [line for one in shown for line in (f"**`{_call(one)}`**", "", *_described(one))]


def _call(one: Callable[..., Any]) -> str:
    """A function or class with its arguments and their defaults."""
    every = [p for p in inspect.signature(one).parameters.values() if p.name != "self"]
    words = (f"{p.name}={p.default.name}" if isinstance(p.default, Enum) else str(p.replace(annotation=p.empty))
             for p in every)  # fmt: skip
    return f"{one.__name__}({', '.join(words)})"


def _described(one: Callable[..., Any]) -> list[str]:
    """A docstring, with what it says of arguments, attributes, results and errors as lists."""
    docstring = one.__doc__ or ""
    sections = re.split(r"^(Args|Attributes|Returns|Raises):\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    lines = [*_prose(docstring), ""]
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        entries = [text] if title == "Returns" else re.split(r"\n(?=    \S)", text.rstrip())
        said = [re.sub(r"^(\w+): ", r"`\1`: ", _one_line(entry)) for entry in entries]
        lines += [f"{title}:", "", *(f"- {entry}" for entry in said), ""]
    return lines


def _one_line(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _short(text: str) -> str:
    return re.sub(r"\b(?:torch|typing|collections\.abc)\.", "", text)


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
