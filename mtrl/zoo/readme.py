"""The card of a policy for a reader, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mtrl.files import stored_number
from mtrl.zoo.card import Card

USE = """```python
import mtrl

policy = mtrl.load_policy("{name}")  # or the path of this folder
action = policy.act(obs, task="{task}")  # raw observations (N, {shape}) -> deterministic actions{actions}
```"""


def readme(card: Card, obs_shape: Sequence[int], action: str) -> str:
    """The text of `README.md`.

    Args:
        obs_shape: Of one observation.
        action: Shape of the actions, in words.
    """
    tasks = list(card.measured["tasks"])
    use = USE.format(name=card.name, task=tasks[0], shape=", ".join(map(str, obs_shape)), actions=f" {action}")
    env = card.config["env"]["name"]
    sections = [
        f"---\n{yaml.safe_dump(metadata(card), sort_keys=False, allow_unicode=True)}---",
        f"# {card.name}",
        f"A policy of {card.parameters:,} parameters for {_number(len(tasks), 'task')} of `{env}`, trained with `mtrl` "
        f"for {card.env_steps:,} environment steps. {headline(card)}",
        f"## Use\n\n{use}\n\n`python -m mtrl.evaluate policy={card.name}` measures it again.",
        f"## Measured\n\n{_protocol(card)}\n\n{_results(card)}",
        *_scores(card),
        f"## Made\n\n{_made(card)}",
        *_curve(card),
        f"## Files\n\n{_files(card)}",
    ]
    return "\n\n".join(sections) + "\n"


def headline(card: Card) -> str:
    """Success or return with its interval; else the scores."""
    results = card.measured
    if "success_rate" in results:
        return f"Success {results['success_rate']:.3f} ({_interval(results['interval'], 3)})."
    if "mean_return" in results:
        return f"Return {results['mean_return']:.1f} ({_interval(results['return_interval'], 1)})."
    return ", ".join(f"{_words(name)} {value:.3f}" for name, value in over_all(card.scores).items()).capitalize() + "."


def over_all(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are not of one task."""
    return {name: value for name, value in scores.items() if "/" not in name}


def metadata(card: Card) -> dict[str, Any]:
    """What the hub's `model-index` asks for: task, dataset and metrics."""
    env, results = card.config["env"]["name"], card.measured
    metrics = []
    if "success_rate" in results:
        low, high = results["interval"]
        name = f"Mean success rate over {_number(len(results['tasks']), 'task')} (95% interval {low:.3f} to {high:.3f})"
        metrics.append({"type": "success_rate", "value": round(results["success_rate"], 4), "name": name})
    if "mean_return" in results:
        metrics.append({"type": "mean_reward", "value": round(results["mean_return"], 2), "name": "Mean return"})
    for name, value in over_all(card.scores).items():
        metrics.append({"type": name, "value": round(value, 4), "name": _words(name).capitalize()})
    return {
        "library_name": "mtrl",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "multi-task-learning", "mtrl", env],
        "model-index": [
            {
                "name": card.name,
                "results": [
                    {
                        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                        "dataset": {"name": env, "type": env},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }


def _protocol(card: Card) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in card.protocol.items())


def _results(card: Card) -> str:
    success = "success_rate" in card.measured
    rows = []
    for name, task in card.measured["tasks"].items():
        mean = f"{task['mean_return']:.1f}", _interval(task["return_interval"], 1), f"{task['mean_length']:.0f}"
        if "successes" in task:
            rows.append((name, f"{task['successes']} of {task['episodes']}", _interval(task["interval"], 2), *mean))
        else:
            rows.append((name, *(("", "") if success else ()), *mean))
    heading = ("task", *(("success", "95% interval") if success else ()), "return", "95% interval", "length")
    intervals = ["Intervals of returns resample the episodes (bootstrap); none of them speaks of other training seeds."]
    if success:
        intervals.insert(0, "Intervals of success are Wilson's, that of the mean over all episodes together.")
    return f"{_table(heading, rows)}\n\n{headline(card)} {' '.join(intervals)}"


def _scores(card: Card) -> list[str]:
    scores = over_all(card.scores)
    rows = [(_words(name), f"{value:.3f}") for name, value in scores.items()]
    return [f"## Scores\n\n{_table(('score', 'value'), rows)}"] if rows else []


def _made(card: Card) -> str:
    agent = card.config["agent"]["name"]
    resumed = f"; resumed {_number(card.resumed, 'time')}" if card.resumed else ""
    lines = [
        f"```\n{card.command}\n```\n",
        f"- learner: {agent}; seed {card.seed}",
        f"- {card.env_steps:,} environment steps, {card.updates:,} updates",
        f"- {card.wall_s / 60:.1f} minutes, evaluations included{resumed}",
        f"- git commit: {'; '.join(card.commits)}",
        *(f"- {key}: {value}" for key, value in card.environment.items() if value != "not installed"),
    ]
    return "\n".join(lines)


def _curve(card: Card) -> list[str]:
    if not card.curve:
        return []
    digits = 2 if card.curve_of == "success" else 1
    rows = [
        (
            f"{point['step']:,}",
            f"{point['minutes']:.1f}",
            *(f"{point[key]:.{digits}f}" if key in point else "" for key in ("exploring", "official")),
        )
        for point in card.curve
    ]
    clock = "step" if card.config.get("total_updates") is None else "update"
    heading = (clock, "minutes", f"{card.curve_of} exploring", f"{card.curve_of} in evaluations")
    return [f"## Training\n\n{_table(heading, rows)}"]


def _files(card: Card) -> str:
    rows = [(f"`{name}`", f"{file['size']:,}", f"`{file['sha256']}`") for name, file in card.files.items()]
    return _table(("file", "bytes", "SHA-256"), rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(bounds: Sequence[float | None], digits: int) -> str:
    low, high = map(stored_number, bounds)
    return f"{low:.{digits}f} to {high:.{digits}f}" if low == low else "no interval"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
