"""The sections of docs/results.md that come from benchmarks of speed and cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def speed_sections(results: Path) -> list[str]:
    """Of every such file that is stored."""
    sections = {
        "metaworld_speed.json": _metaworld_speed,
        "atari_speed.json": _atari_speed,
    }
    lines: list[str] = []
    for name, section in sections.items():
        if (results / name).exists():
            lines += section(json.loads((results / name).read_text()))
    for pattern, section_of in {
        "update_cost_*.json": _update_cost,
        "actors_*.json": _actors,
        "ranks_*.json": _ranks,
    }.items():
        lines += section_of([json.loads(path.read_text()) for path in sorted(results.glob(pattern))])
    return lines


def _metaworld_speed(measured: dict[str, Any]) -> list[str]:
    """What `benchmarks/metaworld_speed.py` measured, beside the published environments."""
    lines = [
        "## Simulation speed of Meta-World",
        "",
        "Environment steps per second with random actions, side by side in one run; the ceiling is the bare physics.",
        f"Machine: {measured['cores']} cores, {measured['machine']}, mujoco {measured['mujoco']}. Command:",
        "`python benchmarks/metaworld_speed.py --output results/metaworld_speed.json`.",
        "",
        "| environment, slots | candidate | steps/s | times official sync | of the ceiling |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [row for row in measured["rows"] if "candidate" in row]
    sync = {row["env"]: row["of_ceiling"] for row in rows if row["candidate"] == "official sync"}
    for row in rows:
        ratio = row["of_ceiling"]
        lines.append(
            f"| {row['env']}, {row['num_envs']} | {row['candidate']} | {row['steps_per_s']:,.0f} "
            f"| {ratio / sync[row['env']]:.1f} | {ratio:.2f} |"
        )
    memory = [row for row in measured["rows"] if "peak_memory_gb" in row]
    peaks = ", ".join(f"{row['env']} with {row['num_envs']} slots {row['peak_memory_gb']:.2f} GB" for row in memory)
    return [*lines, "", f"Peak memory of a process with `physics=rollout`: {peaks}.", ""]


def _atari_speed(measured: dict[str, Any]) -> list[str]:
    """What `benchmarks/atari_speed.py` measured, beside ale-py's own vector environment."""
    lines = [
        "## Simulation speed of Atari",
        "",
        "Frames per second with random actions, side by side in one run; a step is four frames.",
        f"Machine: {measured['cores']} cores, {measured['machine']}, ale-py {measured['ale-py']}. Command:",
        "`python benchmarks/atari_speed.py --output results/atari_speed.json`.",
        "",
        "| games, slots | threads | candidate | frames/s | of ale-py |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in measured["rows"]:
        lines.append(
            f"| {row['games']}, {row['num_envs']} | {row['threads']} | {row['candidate']} "
            f"| {row['frames_per_s']:,.0f} | {row['of_ale']:.2f} |"
        )
    return [*lines, ""]


def _update_cost(runs: list[dict[str, Any]]) -> list[str]:
    """What `benchmarks/update_cost.py` measured: time, and in brackets memory, as ratios to `sum` with an MLP."""
    if not runs:
        return []
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for row in (row for run in runs for row in run["rows"]):
        cells = tables.setdefault(f"{row['agent']}, {row['tasks']} tasks", {})
        cells[row["aggregation"], row["trunk"]] = f"{row['of_ms']:.2f} ({row['of_mb']:.2f})"
    lines = [
        "## Cost of an update",
        "",
        "Time of an update and, in brackets, the memory that it adds: ratios to `aggregation=sum` with an MLP of equal",
        "width, in turns in one run; the networks are those of the agents' presets for Meta-World, the data random.",
        "Cells are empty where a candidate was left out: networks per task are too dear for 50 of them.",
        f"Machine: {runs[0]['device']}, {runs[0]['threads']} thread, torch {runs[0]['torch']}. Commands:",
        "",
        "```",
        *(run["command"] for run in runs),
        "```",
        "",
        f"| aggregation | trunk | {' | '.join(tables)} |",
        "| --- | --- |" + " --- |" * len(tables),
    ]
    for aggregation, trunk in next(iter(tables.values())):
        cells = " | ".join(table.get((aggregation, trunk), "") for table in tables.values())
        lines.append(f"| {aggregation} | {trunk} | {cells} |")
    return [*lines, ""]


def _actors(runs: list[dict[str, Any]]) -> list[str]:
    """What `benchmarks/actors.py` measured, for each of several trainings."""
    if not runs:
        return []
    lines = [
        "## Speed of training with actors",
        "",
        "Environment steps per second of whole training, with asynchronous actors and without, in turns in one run.",
        "No number of cores can give more than as many times the rate of one core by itself.",
        "Commands: `python benchmarks/actors.py TRAINING --output results/actors_NAME.json`, and for one core",
        "`taskset -c 0 python benchmarks/actors.py TRAINING --actors --output results/actors_NAME_1core.json`.",
        "`--ray 2` adds two in a Ray cluster of one node on the same machine.",
        "",
        "| training | cores | actors | steps/s | of serial | learner waits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        training = " ".join(run["command"])
        for row in run["rows"]:
            lines.append(
                f"| `{training}` | {run['cores']} | {row['actors']}{', Ray' * (row.get('transport') == 'ray')} "
                f"| {row['steps_per_s']:,.0f} "
                f"| {row['of_serial']:.2f} | {row['waited']:.0%} |"
            )
    return [*lines, ""]


def _ranks(runs: list[dict[str, Any]]) -> list[str]:
    """What `benchmarks/ranks_speed.py` measured, for each of several trainings."""
    if not runs:
        return []
    lines = [
        "## Speed of training in several ranks",
        "",
        "Environment steps per second of one process with a thread for each core, and of ranks with one core each,",
        "in turns. An exchange includes waiting for the slower rank. Command:",
        "`OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 benchmarks/ranks_speed.py TRAINING --output "
        "results/ranks_NAME.json`.",
        "",
        "| training | cores | one process | ranks | ratio | in exchanges | MB per iteration |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        median = run["median"]
        lines.append(
            f"| `{' '.join(run['command'])}` | {run['cores']} | {median['alone']:,.0f} | {run['ranks']}: "
            f"{median['ranks']:,.0f} | {median['ratio']:.2f} | {median['exchange']:.0%} | {median['bytes'] / 1e6:.1f} |"
        )
    return [*lines, ""]
