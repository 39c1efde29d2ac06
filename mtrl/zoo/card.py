"""The card of a policy: what it was measured to do, and how it was made."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mtrl.envs
from mtrl.config import TrainConfig, load_train_yaml
from mtrl.files import json_text, stored_number, write_atomic
from mtrl.policy import find_policy, load_policy
from mtrl.registry import construct
from mtrl.run.checkpoint.codec import CheckpointError, load_state
from mtrl.run.checkpoint.manifest import Content, open_sealed, read_manifest, sealed
from mtrl.run.evaluation.report import read_eval
from mtrl.run.evaluation.statistics import pooled_interval, return_interval, summary
from mtrl.run.logger import read_rows
from mtrl.run.reading import read_json, read_text, reason
from mtrl.state import shown
from mtrl.types import EvalResult, UserError

FORMAT = 1
CARD = "card.json"
FILES = ("config.json", "model.safetensors")
POINTS = 10
"""Of a curve, at most, while exploring; and as many evaluations."""


@dataclass(frozen=True)
class Card:
    """Content of `card.json`, without its sha256."""

    format: int
    name: str
    protocol: dict[str, Any]
    """What the numbers mean."""
    measured: dict[str, Any]
    """See `measured`."""
    scores: dict[str, Any]
    """What the benchmark makes of the episodes."""
    files: dict[str, Any]
    """Bytes and SHA-256 of each."""
    parameters: int
    env_steps: int
    updates: int
    wall_s: float
    """Seconds that the run took, with its evaluations."""
    seed: int
    command: str
    resumed: int
    """How often the run was stopped and went on."""
    commits: list[str]
    """Of this package, in the order of the run's sessions."""
    environment: dict[str, Any]
    """Versions and machine of the last session."""
    config: dict[str, Any]
    """Settings of the run."""
    curve: list[dict[str, Any]]
    """`step`, `minutes`, and success or return while `exploring` and in `official` evaluations."""
    curve_of: str

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"it has format {shown(self.format)}; this version reads {FORMAT}")
        env, tasks = self.config.get("env"), self.measured.get("tasks")
        if not isinstance(env, dict) or not isinstance(env.get("name"), str) or not isinstance(tasks, dict):
            raise ValueError("it lacks the environment or the tasks")


def measured(result: EvalResult) -> dict[str, Any]:
    """`summary`, with the number of `successes` of each task, and the 95% intervals of the other numbers.

    `interval` is of the success rate, `return_interval` of the mean return; of a task, and over all tasks. An interval
    that cannot be told is NaN.
    """
    statistics = summary(result)
    for name, episodes in result.by_task.items():
        outcomes = [episode.success for episode in episodes if episode.success is not None]
        successes = {"successes": sum(outcomes)} if outcomes else {}
        interval = return_interval([[episode.episode_return for episode in episodes]])
        statistics["tasks"][name] |= {**successes, "return_interval": list(interval)}
    if "success_rate" in statistics:
        statistics["interval"] = list(pooled_interval(result))
    if "mean_return" in statistics:
        returns = [[episode.episode_return for episode in episodes] for episodes in result.by_task.values()]
        statistics["return_interval"] = list(return_interval(returns))
    return statistics


def compared(result: EvalResult, card: Card) -> str:
    """How an evaluation agrees with the card of its policy, in one line.

    It differs where each of two numbers lies outside of the other's interval: success, or return where there is none.
    """
    ours, theirs = measured(result), card.measured
    both = ours.keys() & theirs.keys()
    means = [f"{what} {ours[key]:.{d}f} (card: {theirs[key]:.{d}f})" for what, key, _, d in _NUMBERS if key in both]
    tasks = [name for name in ours["tasks"] if _differ(ours["tasks"][name], theirs["tasks"].get(name, {}))]
    line = f"{means[0].capitalize()}." if means else ""
    if tasks or _differ(ours, theirs):
        places = ", ".join(tasks) or "the mean"
        return f"Differs from its card beyond the intervals in {places}. {line}".rstrip()
    return f"Agrees with its card within the intervals. {line}".rstrip()


_NUMBERS = (("success", "success_rate", "interval", 3), ("return", "mean_return", "return_interval", 1))


def _differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    for _, key, interval, _ in _NUMBERS:
        if key in ours and key in theirs:
            return _outside(ours[key], theirs[interval]) and _outside(theirs[key], ours[interval])
    return False


def _outside(value: float, interval: Sequence[float | None]) -> bool:
    low, high = map(stored_number, interval)
    return value < low or value > high  # an unknown interval holds everything


def read_card(folder: Path) -> Card:
    """Reads the card of a policy. Raises `UserError` if it is damaged, or that of another policy."""
    file = CARD
    try:
        card: Card = construct("card", Card, open_sealed(read_json(folder / file, folder)))
        for file in FILES:
            content: Content = construct("files", Content, card.files.get(file))
            content.check(folder / file, folder)
    except (OSError, ValueError, UserError) as error:
        what = "cannot be read" if file == CARD else f"is of another policy: {file}"
        raise UserError(f"{folder / CARD} {what}: {reason(error)}.") from error
    return card


def make_card(run: Path, name: str) -> tuple[Card, Path]:
    """The card of a run's newest intact checkpoint and of the evaluation at its step; and the folder of its policy.

    Raises:
        UserError: It is no run, there is no evaluation at that step, or a file is damaged.
    """
    if not (run / "checkpoints").is_dir():
        raise UserError(f"No run in {run}: expected a run folder (with checkpoints/).")
    folder = find_policy(run)
    config = load_train_yaml(run / "config.yaml")
    step = _step(folder.parent)
    evaluation = run / "eval" / f"{step:012d}.json"
    if not evaluation.is_file():
        raise UserError(f"The last checkpoint of {run} is of step {step:,}, which was not evaluated: resume the run.")
    result = read_eval(evaluation, run)
    result = replace(result, scores=mtrl.envs.evaluation_protocol(config.env, config.seed).scores(result))
    state = load_state(folder.parent / "training_state" / "run")
    sessions = _sessions(run)
    of, curve = _curve(read_rows(run / "metrics.jsonl"), step)
    card = Card(
        format=FORMAT,
        name=name,
        protocol=dict(result.protocol),
        measured=measured(result),
        scores=dict(result.scores),
        files={file: vars(Content.of(folder / file)) for file in FILES},
        parameters=sum(parameter.numel() for parameter in load_policy(folder).network.parameters()),
        env_steps=state["env_steps"],
        updates=state["updates"],
        wall_s=state["wall_time"],
        seed=config.seed,
        command=_command(sessions[0]["command"]),
        resumed=len(sessions) - 1,
        commits=list(dict.fromkeys(_commit(session) for session in sessions)),
        environment={key: value for key, value in sessions[-1].items() if key not in _TOLD},
        config=_settings(config),
        curve=curve,
        curve_of=of,
    )
    return card, folder


_TOLD = ("time", "command", "git commit", "git changes")
"""Entries of `env.txt` that have their own place in a card, or none."""


def _step(checkpoint: Path) -> int:
    try:
        return read_manifest(checkpoint).step
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Checkpoint {checkpoint} is damaged: {reason(error)}.") from error


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Without the folder, which is the business of whoever ran it."""
    settings: dict[str, Any] = json.loads(json.dumps(config.plain()))
    return {key: value for key, value in settings.items() if key != "run_dir"}


def _command(line: str) -> str:
    """A command without the run's folder."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    return shlex.join(word for word in words if not re.match(r"\+*(run_dir|resume)=", word))


def _commit(session: Mapping[str, str]) -> str:
    commit, changes = session.get("git commit", "unknown"), session.get("git changes", "0 files")
    return commit if changes == "0 files" or len(commit) != 40 else f"{commit} with changes in {changes}"


def _sessions(run: Path) -> list[dict[str, str]]:
    """The entries of `env.txt`, for each session of the run."""
    try:
        blocks = read_text(run / "env.txt", run).strip().split("\n\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'env.txt'} cannot be read: {reason(error)}.") from error
    pairs = [[line.partition(": ") for line in block.splitlines()] for block in blocks]
    sessions = [{key: value for key, _, value in lines} for lines in pairs]
    if "command" not in sessions[0]:
        raise UserError(f"{run / 'env.txt'} cannot be read: it has no command.")
    return sessions


def _curve(rows: Sequence[Mapping[str, Any]], last: int) -> tuple[str, list[dict[str, Any]]]:
    """What a curve is of, and its points: a few rows of the log up to a step, and a few evaluations."""
    rows = [row for row in rows if row["step"] <= last]
    for name in ("success_rate", "return"):
        rows_of = {
            column: [row for row in rows if isinstance(row.get(key), int | float)]
            for column, key in (("exploring", f"train/{name}_mean"), ("official", f"eval/{name}"))
        }
        points: dict[int, dict[str, Any]] = {}
        for column, key in (("exploring", f"train/{name}_mean"), ("official", f"eval/{name}")):
            for row in _some(rows_of[column]):
                point = points.setdefault(row["step"], {"step": row["step"], "minutes": row.get("time/wall_s", 0) / 60})
                point[column] = row[key]
        if points:
            return name.removesuffix("_rate"), [points[step] for step in sorted(points)]
    return "", []


def _some(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Evenly spread, with the last."""
    count = min(len(rows), POINTS)
    return [rows[(index + 1) * len(rows) // count - 1] for index in range(count)]


def write_card(card: Card, policy: Path, out: Path, readme: str) -> None:
    """Makes the folder of a policy with its card, in place of an earlier one.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    if out.exists() and not (out / CARD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty, and not the folder of a policy with a card: choose another.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(policy / file, out / file)
        document = sealed(json.loads(json_text(asdict(card))))
        write_atomic(out / CARD, json_text(document, indent=1) + "\n")
        write_atomic(out / "README.md", readme)
    except OSError as error:
        raise UserError(f"Cannot write to {out}: {error.strerror or error}.") from error
