"""Keeps finished runs as small files under results/, and makes docs/results.md and its plots from them.

python benchmarks/results.py store RUN NAME     # results/NAME/seed<N>.json from a run folder
python benchmarks/results.py render             # docs/results.md and docs/results_*.svg from results/

NAME/VARIANT in place of NAME makes the run part of a comparison: one table and one plot for all variants of NAME.
The table in README.md has the names in `IN_README` only, so that runs of your own change nothing there.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from speed_sections import speed_sections

from mtrl.config import load_yaml
from mtrl.files import json_text
from mtrl.run.evaluation.statistics import bootstrap_interval, wilson_interval

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
README_MARKERS = ("<!-- results: written by benchmarks/results.py -->", "<!-- end of results -->")

IN_README = (
    "mt10_ppo",
    "mt10_no_torso",
    "mt50_ppo",
    "mt50_no_torso",
    "mt10_distill",
    "mt50_distill",
    "mt10_sac",
    "atari_pong",
)
"""Names of results, as they are ordered in the table of README.md."""

PUBLISHED: dict[str, tuple[tuple[float, ...], dict[str, tuple[float, ...]]]] = {
    "mt10": (
        (0.4, 1, 2, 3, 5, 7.5, 10, 15, 20),
        {
            "published SAC, width 256": (0.15, 0.28, 0.50, 0.58, 0.65, 0.70, 0.70, 0.75, 0.74),
            "published SAC, width 1024": (0.19, 0.41, 0.64, 0.74, 0.77, 0.85, 0.87, 0.87, 0.87),
            "published SAC, width 4096": (0.27, 0.60, 0.70, 0.74, 0.81, 0.90, 0.92, 0.92, 0.93),
        },
    ),
    "mt50": (
        (2, 5, 10, 15, 20),
        {
            "published SAC, width 256": (0.11, 0.21, 0.29, 0.35, 0.38),
            "published SAC, width 1024": (0.15, 0.31, 0.48, 0.53, 0.58),
            "published SAC, width 4096": (0.22, 0.45, 0.59, 0.65, 0.70),
        },
    ),
}
"""Environment steps in millions, and the success of published SAC there (metaworld v3 environments, reward v2): read
off the figures of rainx0r/mtrl (final policies' IQ-filtered mean, +-.01)."""


def store(run: Path, name: str, per_task: bool = False) -> Path:
    """Writes what the docs need of a run: settings, machine, every evaluation, and the training curve.

    Args:
        per_task: Whether the curve also has the success of each task.
    """
    config = load_yaml(run / "config.yaml")
    del config["run_dir"]  # of one machine
    evaluations = [json.loads(path.read_text()) for path in sorted((run / "eval").glob("*.json"))]
    curves = {"success_rate while exploring": "train/success_rate_mean"}
    if per_task:
        curves |= {f"success_rate of {task}": f"train/success_rate/{task}" for task in evaluations[-1]["episodes"]}
    if _scored(evaluations):
        curves = {f"score of {game} while exploring": f"train/return/{game}" for game in evaluations[-1]["episodes"]}
    curve = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        values = [None if (value := row.get(key)) is None else round(value, 4) for key in curves.values()]
        if values != [None] * len(values):
            curve.append([row["step"], round(row["time/wall_s"], 1), *values])
    kept = {
        "config": config,
        "environment": [_without_paths(line) for line in (run / "env.txt").read_text().splitlines()],
        "evaluations": evaluations,
        "training_curve": {"columns": ["step", "wall_s", *curves], "rows": curve},
    }
    path = RESULTS / name / f"seed{config['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(kept) + "\n")
    return path


def _scored(evaluations: list[dict[str, Any]]) -> bool:
    """Whether the tasks have scores, as games do, and do not succeed or fail."""
    return not evaluations[-1].get("has_success", True)


def _without_paths(line: str) -> str:
    """A line of env.txt; of a command, what another machine can repeat."""
    if not line.startswith("command: "):
        return line
    arguments = [word for word in shlex.split(line) if "=" in word and not word.startswith(("run_dir=", "resume="))]
    return f"command: python -m mtrl.train {shlex.join(arguments)}"


def render() -> None:
    """Rewrites docs/results.md: a table and a plot for each name under results/."""
    parts = [
        "# Results",
        "",
        "Made by `python benchmarks/results.py render` from the runs stored under `results/`. Protocol: see"
        " [Evaluation protocol](protocol.md). Every row is the policy at that step, not the best of a series.",
        "",
    ]
    groups = _groups("*/seed*.json")
    for name, variants in {**groups, **_groups("*/*/seed*.json")}.items():
        if _scored(next(iter(variants.values()))[0]["evaluations"]):
            parts += [*_games(name, variants), ""]
        elif name in groups:
            parts += [*_section(name, variants[name]), ""]
        else:
            parts += [*_comparison(name, variants), ""]
    parts += speed_sections(RESULTS)
    (DOCS / "results.md").write_text("\n".join(parts).rstrip() + "\n")
    _update_readme({name: variants[name] for name, variants in groups.items()})


def _groups(pattern: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by name and variant; where there are no variants, the name stands for the only one."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(RESULTS.glob(pattern)):
        variants = groups.setdefault(path.relative_to(RESULTS).parts[0], {})
        variants.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    return groups


def _update_readme(groups: dict[str, list[dict[str, Any]]]) -> None:
    """Writes one row for each name of `IN_README` between the markers in README.md, and nothing else."""
    lines = ["| runs | command | seeds | steps | success or score | minutes each |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name in IN_README:
        runs = groups[name]
        finals = [run["evaluations"][-1] for run in runs]
        success = " ".join(map(_in_one_number, finals))
        steps = " ".join(dict.fromkeys(f"{final['step']:,}" for final in finals))
        minutes = " ".join(f"{final['wall_s'] / 60:.0f}" for final in finals)
        seeds = " ".join(str(run["config"]["seed"]) for run in runs)
        lines.append(f"| {name} | `{_command_of_all(runs)}` | {seeds} | {steps} | {success} | {minutes} |")
    write_between(ROOT / "README.md", README_MARKERS, lines)


def write_between(page: Path, markers: tuple[str, str], lines: Sequence[str]) -> None:
    """Replaces the lines between two markers of a page."""
    before, rest = page.read_text().split(markers[0])
    page.write_text("\n".join([before + markers[0], *lines, markers[1]]) + rest.split(markers[1])[1])


def _in_one_number(evaluation: dict[str, Any]) -> str:
    """Success; of one game its score; of several, whose scores cannot be averaged, the human-normalised mean."""
    summary = evaluation["summary"]
    if "success_rate" in summary:
        return f"{summary['success_rate']:.3f}"
    if len(summary["tasks"]) == 1:
        return f"{summary['mean_return']:.1f}"
    return f"{evaluation['scores']['human_normalised_iqm']:.3f}"


def _section(name: str, runs: list[dict[str, Any]]) -> list[str]:
    lines = [f"## {name}", "", *_note(name), _protocol(runs), ""]
    lines += [*_runs_table(runs), "", *_tasks_table(runs), "", *_commands(runs), "", f"![{name}](results_{name}.svg)"]
    _plot(name, runs)
    return lines


def _protocol(runs: list[dict[str, Any]]) -> str:
    protocols = [run["evaluations"][-1]["protocol"] for run in runs]
    # What differs between the runs (the goals follow from the seed) is given for each.
    merged = {key: " / ".join(dict.fromkeys(str(p[key]) for p in protocols)) for key in protocols[0]}
    return f"Protocol: {'; '.join(f'{key}: {value}' for key, value in merged.items())}."


def _commands(runs: list[dict[str, Any]]) -> list[str]:
    return ["Commands:", "", "```", *map(_command, runs), "```"]


def _games(name: str, variants: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A section on runs whose tasks are games: scores and per-game curves, of each variant beside the others."""
    runs = [run for own in variants.values() for run in own]
    games = list(dict.fromkeys(game for run in runs for game in _games_of(run)))
    lines = [f"## {name}", "", *_note(name), _protocol(runs), ""]
    lines += ["Mean score, and in brackets the 95% bootstrap interval over the episodes of the one policy.", ""]
    lines += [f"| variant | seed | steps (frames of each game) | {' | '.join(games)} | training, minutes |"]
    lines += ["| --- | --- | --- |" + " --- |" * len(games) + " --- |"]
    for variant, own in variants.items():
        for run in own:
            for evaluation in run["evaluations"]:
                step = evaluation["step"]
                scores = {game: _score(episodes["return"]) for game, episodes in evaluation["episodes"].items()}
                cells = [scores.get(game, "") for game in games]
                lines.append(
                    f"| {variant} | {run['config']['seed']} | {step:,} ({_frames(step, run):.1f}M) "
                    f"| {' | '.join(cells)} | {evaluation['training_s'] / 60:.0f} |"
                )
    _plot_games(name, variants, games)
    return [*lines, "", *_commands(runs), "", f"![{name}](results_{name}.svg)"]


def _score(returns: list[float]) -> str:
    low, high = bootstrap_interval(returns)
    return f"{np.mean(returns):,.1f} ({low:,.1f} to {high:,.1f})"


def _games_of(run: dict[str, Any]) -> list[str]:
    return list(run["evaluations"][-1]["episodes"])


def _frames(step: Any, run: dict[str, Any]) -> Any:
    """Millions of frames of each game of a run: a step is four frames, and the games share the steps evenly."""
    return 4e-6 * step / len(_games_of(run))


def _plot_games(name: str, variants: dict[str, list[dict[str, Any]]], games: list[str]) -> None:
    plt = _pyplot(name)
    figure, all_axes = plt.subplots(1, len(games), figsize=(5 * len(games) + 1, 4), squeeze=False)
    lines = [(variant, run) for variant, runs in variants.items() for run in runs]
    for game, axes in zip(games, all_axes[0], strict=True):
        for number, (variant, run) in enumerate(lines):
            if game not in _games_of(run):
                continue
            rows = np.array(run["training_curve"]["rows"], dtype=float)  # NaN where no episode ended
            column = 2 + _games_of(run).index(game)
            known = rows[~np.isnan(rows[:, column])]
            label = f"{variant}, seed {run['config']['seed']}"
            axes.plot(_frames(known[:, 0], run), known[:, column], color=f"C{number}", label=label)
            for evaluation in run["evaluations"]:
                mean = np.mean(evaluation["episodes"][game]["return"])
                axes.plot(_frames(evaluation["step"], run), mean, "o", color=f"C{number}")
        axes.set(xlabel="frames of the game (millions)", title=game)
        axes.grid(alpha=0.3)
    all_axes[0, 0].set(ylabel="score exploring; dots: deterministic")
    all_axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(DOCS / f"results_{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _runs_table(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| seed | steps | success | wall-clock (training only) | peak memory |", "| --- | --- | --- | --- | --- |"]
    finals = []
    for run in runs:
        for evaluation in run["evaluations"]:
            lines.append(
                f"| {run['config']['seed']} | {evaluation['step']:,} | {evaluation['summary']['success_rate']:.3f} "
                f"| {evaluation['wall_s'] / 60:.0f} min ({evaluation['training_s'] / 60:.0f}) "
                f"| {evaluation['peak_memory_bytes'] / 2**30:.1f} GiB |"
            )
        finals.append(run["evaluations"][-1]["summary"]["success_rate"])
    if len(finals) > 1:
        low, high = bootstrap_interval(finals)
        lines += ["", f"Mean of the final policies over {len(finals)} seeds: {np.mean(finals):.3f} "
                      f"(95% bootstrap interval over seeds {low:.3f} to {high:.3f})."]  # fmt: skip
    return lines


def _tasks_table(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| task | success of the final policies | 95% interval (Wilson) |", "| --- | --- | --- |"]
    tasks = runs[0]["evaluations"][-1]["summary"]["tasks"]
    for task in (name for name, found in tasks.items() if "success_rate" in found):
        outcomes = [flag for run in runs for flag in run["evaluations"][-1]["episodes"][task]["success"]]
        low, high = wilson_interval(sum(outcomes), len(outcomes))
        lines.append(f"| {task} | {sum(outcomes)}/{len(outcomes)} | {low:.2f} to {high:.2f} |")
    return lines


def _comparison(name: str, variants: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A section on the variants stored under results/NAME/, each beside the others."""
    final = {
        variant: np.mean([run["evaluations"][-1]["summary"]["success_rate"] for run in runs])
        for variant, runs in variants.items()
    }
    order = sorted(variants, key=lambda variant: -final[variant])
    lines = [f"## {name}", "", *_note(name)]
    lines += ["| variant | seeds | steps | success | 95% interval (Wilson) | training, minutes | command |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for variant in order:
        by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for run in variants[variant]:
            for evaluation in run["evaluations"]:
                by_step[evaluation["step"]].append(evaluation)
        for step, found in by_step.items():
            episodes = [episodes for result in found for episodes in result["episodes"].values()]
            outcomes = [flag for columns in episodes for flag in columns["success"] if flag is not None]
            low, high = wilson_interval(sum(outcomes), len(outcomes))
            minutes = np.mean([result["training_s"] for result in found]) / 60
            lines.append(
                f"| {variant} | {len(found)} | {step:,} | {np.mean(outcomes):.3f} | {low:.3f} to {high:.3f} "
                f"| {minutes:.1f} | `{_command_of_all(variants[variant])}` |"
            )
    _plot_comparison(name, {variant: variants[variant] for variant in order})
    return [*lines, "", f"![{name}](results_{name}.svg)"]


def _note(name: str) -> list[str]:
    """What results/NAME/note.md says about the runs."""
    path = RESULTS / name / "note.md"
    return [path.read_text().rstrip(), ""] if path.exists() else []


def _plot_comparison(name: str, variants: dict[str, list[dict[str, Any]]]) -> None:
    plt = _pyplot(name)
    figure, (by_step, by_minute) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for index, (variant, runs) in enumerate(variants.items()):
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": ("-", "--")[index // 10]}
        for run in runs:
            step, seconds, success, *_ = np.array(run["training_curve"]["rows"], dtype=float).T
            by_step.plot(step / 1e6, success, label=variant if run is runs[0] else None, **style)
            by_minute.plot(seconds / 60, success, **style)
            for evaluation in run["evaluations"]:
                rate = evaluation["summary"]["success_rate"]
                by_step.plot(evaluation["step"] / 1e6, rate, "o", color=style["color"])
                by_minute.plot(evaluation["wall_s"] / 60, rate, "o", color=style["color"])
    by_step.set(
        xlabel="environment steps (millions)", ylabel="success exploring; dots: official", ylim=(0, 1.02), title=name
    )
    by_minute.set(xlabel="wall-clock with evaluations (minutes)")
    for axes in (by_step, by_minute):
        axes.grid(alpha=0.3)
    by_step.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(DOCS / f"results_{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _pyplot(name: str) -> Any:
    """pyplot, such that the same data give the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name
    import matplotlib.pyplot as plt

    return plt


def _command(run: dict[str, Any]) -> str:
    """The command that began a run."""
    return next(line for line in run["environment"] if line.startswith("command: ")).removeprefix("command: ")


def _command_of_all(runs: list[dict[str, Any]]) -> str:
    """The command of the runs, without what differs between them."""
    return " ".join(word for word in _command(runs[0]).split() if not word.startswith("seed="))


def _plot(name: str, runs: list[dict[str, Any]]) -> None:
    plt = _pyplot(name)
    figure, (by_step, by_minute) = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    longest = max(run["evaluations"][-1]["step"] for run in runs) / 1e6
    for index, run in enumerate(runs):
        seed, color = run["config"]["seed"], f"C{index}"
        step, seconds, success = np.array(run["training_curve"]["rows"]).T
        evaluations = run["evaluations"]
        rates = [evaluation["summary"]["success_rate"] for evaluation in evaluations]
        for axes, exploring, evaluated in (
            (by_step, step / 1e6, [evaluation["step"] / 1e6 for evaluation in evaluations]),
            (by_minute, seconds / 60, [evaluation["wall_s"] / 60 for evaluation in evaluations]),
        ):
            axes.plot(exploring, success, color=color, alpha=0.35, label=f"seed {seed}, exploring")
            axes.plot(evaluated, rates, "o-", color=color, label=f"seed {seed}, official, deterministic")
    steps, published = PUBLISHED.get(runs[0]["config"]["env"]["name"], ((), {}))
    shown = sum(step <= 2 * longest for step in steps)
    for (label, rates), style in zip(published.items(), (":", "--", "-."), strict=False):
        by_step.plot(steps[:shown], rates[:shown], style, color="grey", label=label)
    by_step.set(xlabel="environment steps (millions)", ylabel="success rate", ylim=(0, 1.02), title=name)
    by_minute.set(xlabel="wall-clock with evaluations (minutes)")
    for axes in (by_step, by_minute):
        axes.grid(alpha=0.3)
    by_step.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(DOCS / f"results_{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", run, name]:
            print(store(Path(run), name))
        case ["render"]:
            render()
        case _:
            sys.exit(__doc__)
