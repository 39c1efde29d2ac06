"""Finished runs, read from their folders, and the groups that they form."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtrl.config import flat, load_yaml, stored_entry
from mtrl.registry import unknown
from mtrl.run.reading import read_json, read_text, reason
from mtrl.types import UserError

Clock = Literal["steps", "minutes"]
"""What the progress of runs is measured in: environment steps over all slots, or minutes of training alone."""

NOT_COMPARED = ("seed", "run_dir", "log", "checkpoint", "eval")
"""Settings that make no other group: what is logged and when. How a policy is evaluated is told by its protocol."""

NONE = (math.nan, math.nan)


@dataclass(frozen=True)
class Evaluation:
    """What a policy was measured to do at some point of training."""

    steps: float
    """At the end the `total_steps` of the run, which the last rollout may exceed."""
    minutes: float
    """Of collecting and learning, without evaluations."""
    wall_minutes: float
    """With evaluations."""
    protocol: Mapping[str, Any]
    """In words, without the number of the run's seed."""
    measures: Mapping[str, Mapping[str, float]]
    """By measure ("success", the name of a score, "return") and task."""
    intervals: Mapping[str, tuple[float, float]]
    """Of the success in a task, over the episodes of the one policy."""
    comparable_returns: bool


@dataclass(frozen=True)
class FinishedRun:
    """A run that reached its end."""

    path: str
    settings: Mapping[str, Any]
    """By dotted key, without those that are `NOT_COMPARED`."""
    seed: int
    counts_updates: bool
    """Whether its end was given in updates, which then count as its steps."""
    evaluations: tuple[Evaluation, ...]
    """In the order of training."""
    environment: tuple[str, ...]
    """Lines of `env.txt`: versions, device and command of each session."""

    def times(self, clock: Clock) -> list[float]:
        """When it was evaluated."""
        return [evaluation.steps if clock == "steps" else evaluation.minutes for evaluation in self.evaluations]

    def scores(self, measure: str, tasks: Sequence[str], clock: Clock, time: float) -> np.ndarray:
        """The scores (K,) in tasks at a time, linear between evaluations."""
        curves = ([evaluation.measures[measure][task] for evaluation in self.evaluations] for task in tasks)
        return np.array([np.interp(time, self.times(clock), curve) for curve in curves])


def read_runs(paths: Sequence[str]) -> list[FinishedRun]:
    """Reads runs that can be compared.

    Raises:
        UserError: A run cannot be read or is unfinished, is given twice, or was evaluated in other tasks or by another
            protocol than the first one.
    """
    if not paths:
        raise UserError("Expected the folders of runs, found none: runs/a* runs/b*")
    runs = [read_run(Path(path)) for path in paths]
    given: dict[str, str] = {}
    for run, path in zip(runs, paths, strict=True):
        if (before := given.setdefault(str(Path(path).resolve()), path)) is not path:
            raise UserError(f"{run.path} is given twice, also as {before}.")
    first = runs[0]
    tasks, protocol = set(_tasks(first)), first.evaluations[-1].protocol
    for run in runs:
        if other := tasks ^ set(_tasks(run)):
            raise UserError(
                f"{run.path} cannot be compared with {first.path}: only one of them has {_some(sorted(other))}."
            )
        for evaluation in run.evaluations:
            if differ := differing_keys([protocol, evaluation.protocol]):
                key = differ[0]
                raise UserError(
                    f"{run.path} cannot be compared with {first.path}: it was evaluated by another protocol, "
                    f"{key}: {evaluation.protocol.get(key)} instead of {protocol.get(key)}."
                )
    return runs


def read_run(path: Path) -> FinishedRun:
    """Reads a run folder, or a file that benchmarks/results.py stored. Raises `UserError` unless it is finished."""
    environment: list[str] = []
    try:
        if path.suffix == ".json":
            stored = json.loads(read_text(path, path.parent))  # settings may be infinite
            source, config, found = path, stored["config"], stored["evaluations"]
            environment = stored.get("environment", [])
        else:
            source, config = path / "config.yaml", load_yaml(path / "config.yaml")
            files = [file for file in sorted((path / "eval").glob("*.json")) if file.stem.isdecimal()]
            found = [read_json(file, path) for file in files]
            with suppress(OSError, ValueError):
                environment = read_text(path / "env.txt", path).splitlines()
        seed = stored_entry(config, "seed", int, source)
        counts_updates = config.get("total_updates") is not None
        total = stored_entry(config, "total_updates" if counts_updates else "total_steps", int, source)
        evaluations = tuple(_evaluation(one, seed, total) for one in found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: it is not a run with its evaluations ({reason(error)}).") from error
    if not evaluations or evaluations[-1].steps < total:
        reached = f"{evaluations[-1].steps:,.0f}" if evaluations else "no step"
        raise UserError(f"{path} is not finished: its last evaluation is of {reached}, and it ends at {total:,}.")
    settings = {key: value for key, value in flat(config).items() if key.split(".")[0] not in NOT_COMPARED}
    return FinishedRun(str(path), settings, seed, counts_updates, evaluations, tuple(environment))


def is_finished(path: Path) -> bool:
    """Whether a run has reached its end, and its final policy was evaluated."""
    try:
        read_run(path)
    except UserError:
        return False
    return True


def _evaluation(stored: Mapping[str, Any], seed: int, total: int) -> Evaluation:
    measures: dict[str, dict[str, float]] = {}
    by_task = stored["summary"]["tasks"].items()
    for key, measure in (("success_rate", "success"), ("mean_return", "return")):
        measures[measure] = {task: float(found[key]) for task, found in by_task if key in found}
    intervals = {
        task: (float(low), float(high)) for task, found in by_task for low, high in [found.get("interval", NONE)]
    }
    for name, value in stored.get("scores", {}).items():
        score, slash, task = name.partition("/")
        if slash:
            measures.setdefault(score.replace("_", " "), {})[task] = float(value)
    words = {key: re.sub(rf"\bseed {seed}\b", "the seed", str(word)) for key, word in stored["protocol"].items()}
    seconds = float(stored["training_s"])
    return Evaluation(
        steps=min(float(stored["step"]), total),
        minutes=seconds / 60,
        wall_minutes=float(stored.get("wall_s", seconds)) / 60,
        protocol=words,
        measures=measures,
        intervals=intervals,
        comparable_returns=bool(stored.get("comparable_returns", True)),
    )


def common_measure(runs: Sequence[FinishedRun]) -> tuple[str, list[str]]:
    """What runs are compared by, and in which tasks: success if any reports it, else a score, else the return."""
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    for measure in ("success", *evaluations[0].measures, "return"):
        by_task = [evaluation.measures.get(measure, {}) for evaluation in evaluations]
        if by_task[0] and measure != "return" and all(found.keys() == by_task[0].keys() for found in by_task):
            return measure, list(by_task[0])
    return "return", list(evaluations[0].measures["return"])


def _tasks(run: FinishedRun) -> Iterable[str]:
    """All of the tasks; success may be reported by some of them only."""
    return run.evaluations[-1].measures["return"]


def groups(runs: Sequence[FinishedRun], by: Sequence[str] = ()) -> dict[str, list[FinishedRun]]:
    """Runs that differ only in their seeds, by what tells them from most groups, in the order of their seeds.

    Args:
        by: Keys of settings or of their groups (`aggregation`, `agent.gamma`). Only these make a group then.

    Raises:
        UserError: No run has such a setting, or two runs have the same settings and seed.
    """
    seen: dict[tuple[int, str], str] = {}
    for run in runs:
        if (before := seen.setdefault((run.seed, repr(sorted(run.settings.items()))), run.path)) is not run.path:
            raise UserError(f"{run.path} has the settings and the seed of {before}: it is no other sample.")
    differ = differing_keys([run.settings for run in runs])
    for key in by:
        valid = {key for run in runs for key in run.settings}
        if not any(_inside(name, [key]) for name in valid):
            raise UserError(unknown("setting", key, sorted({*differ, *(name.split(".")[0] for name in valid)})))
    telling = _telling(runs, [key for key in differ if not by or _inside(key, by)])
    found: dict[str, list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(_label(run, telling), []).append(run)
    names = _names([group[0] for group in found.values()], telling)
    return {name: sorted(group, key=lambda run: run.seed) for name, group in zip(names, found.values(), strict=True)}


def _names(runs: Sequence[FinishedRun], telling: Sequence[str]) -> list[str]:
    """Names of groups, from a run of each: the settings in which it differs from most, and all if there are none.

    Those that a component lacks go without saying, unless that leaves two groups with one name.
    """
    usual = {key: Counter(repr(run.settings.get(key)) for run in runs).most_common(1)[0][0] for key in telling}
    short, long = [], []
    for run in runs:
        other = [key for key, value in usual.items() if repr(run.settings.get(key)) != value]
        replaced = [key.removesuffix(".name") for key in other if key.endswith(".name")]
        has = [key for key in other if run.settings.get(key) is not None or not _inside(key, replaced)]
        short.append(_label(run, has or telling))
        long.append(_label(run, other or telling))
    return short if len(set(short)) == len(short) else long


def _label(run: FinishedRun, keys: Sequence[str]) -> str:
    """The values of some settings, as on the command line."""
    values = ((key.removesuffix(".name"), run.settings.get(key)) for key in keys)
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in values) or "all runs"


def differing_inside(found: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    """Settings in which runs of the same group differ."""
    return sorted({key for runs in found.values() for key in differing_keys([run.settings for run in runs])})


def _telling(runs: Sequence[FinishedRun], keys: Sequence[str]) -> list[str]:
    """A few of the keys, which tell apart what all of them do: names of components, and what else it takes."""

    def count(some: Sequence[str]) -> int:
        return len({_label(run, some) for run in runs})

    chosen = sorted(keys, key=lambda key: not key.endswith("name"))
    for key in reversed(chosen):
        if count(without := [other for other in chosen if other != key]) == count(keys):
            chosen = without
    return chosen


def differing_keys(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have the same value everywhere."""
    keys = dict.fromkeys(key for node in nodes for key in node)
    return [key for key in keys if any(repr(node.get(key)) != repr(nodes[0].get(key)) for node in nodes)]


def _inside(key: str, nodes: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{node}.") for node in nodes)


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
