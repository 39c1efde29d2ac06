"""Evaluation: every task on each of its goals with deterministic actions, kept per episode, with honest intervals."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mtrl.checks import positive
from mtrl.files import json_text, stored_number, write_atomic
from mtrl.finite import check_first, check_step
from mtrl.registry import missing_extra
from mtrl.types import Actor, EpisodeResult, EvalResult, UserError, VecEnv

# ---------------------------------------------------------------------------------------------------------------------
# Running episodes
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    actor: Actor,
    env: VecEnv,
    episodes_per_task: int,
    num_goals: int,
    protocol: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
    max_episode_steps: float = math.inf,
) -> EvalResult:
    """Runs `episodes_per_task` deterministic episodes of every task.

    Episode i of a task runs goal i of the task's `num_goals` fixed goals (cycling beyond them). The B slots work
    through the episodes in rounds: each slot runs one episode and waits for the others.

    Args:
        actor: Acts on the env's observations and tasks.
        env: Any vectorised env; its slots are reassigned.
        episodes_per_task: At least 1.
        num_goals: Goals that each task has, or 0 where the goal is the episode's seed, which then is i.
        protocol: What the numbers mean, in words and values; stored with them.
        progress: Called after every step with the numbers of finished and of all episodes. What it raises ends this.
        seed: Of the env in the first round; the following rounds count up.
        max_episode_steps: Episodes that go on for longer are truncated.

    Returns:
        Episodes ordered by task, then as run.

    Raises:
        RuntimeError: The env ran another task or goal than it was assigned.
    """
    positive(episodes_per_task=episodes_per_task)
    names = env.spec.task_names
    # Goal by goal: with as many slots as tasks, each slot then keeps its task.
    jobs = [(task, i % num_goals if num_goals else i) for i in range(episodes_per_task) for task in range(len(names))]
    episodes: list[list[EpisodeResult]] = [[] for _ in names]
    for index, start in enumerate(range(0, len(jobs), env.num_envs)):
        batch = jobs[start : start + env.num_envs]

        def finished(count: int, before: int = start) -> None:
            progress(before + count, len(jobs))

        outcomes = _run_round(actor, env, batch, seed + index, finished, max_episode_steps)
        for (task, goal), (succeeded, episode_return, length, truncated) in zip(batch, outcomes, strict=True):
            success = succeeded if env.spec.reports_success[task] else None
            episodes[task].append(EpisodeResult(names[task], goal, success, episode_return, length, truncated))
    every = tuple(itertools.chain.from_iterable(episodes))
    return EvalResult(dict(protocol), every, comparable_returns=env.spec.comparable_returns)


def _begin(env: VecEnv, jobs: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """Starts one (task, goal) per slot and returns the first observations, having checked that the env obeyed."""
    # Surplus slots repeat the last job; nobody looks at them.
    padded = [*jobs, *[jobs[-1]] * (env.num_envs - len(jobs))]
    task, goal = torch.tensor(padded, device=env.task.device).unbind(1)
    env.assign(task, goal)
    obs = env.reset(seed)
    if not (torch.equal(env.task, task) and torch.equal(env.goal, goal)):
        raise RuntimeError(
            f"The env was assigned tasks {task.tolist()} with goals {goal.tolist()}, "
            f"but runs {env.task.tolist()} with {env.goal.tolist()}."
        )
    check_first(obs, task, env.spec)
    env.assign(task)  # whatever follows while a slot waits for the others: Atari takes long to begin a given goal
    return obs


def _run_round(
    actor: Actor,
    env: VecEnv,
    jobs: Sequence[tuple[int, int]],
    seed: int,
    finished: Callable[[int], None],
    max_episode_steps: float,
) -> list[tuple[bool, float, int, bool]]:
    """One episode per job, on the first slots; any-step success, undiscounted return, length, and whether truncated."""
    B, n = env.num_envs, len(jobs)
    obs, state = _begin(env, jobs, seed), actor.initial_state(B)
    device = env.task.device
    running = torch.arange(B, device=device) < n
    success = torch.zeros_like(running)
    returns = torch.zeros(B, dtype=torch.float64, device=device)
    length = torch.zeros(B, dtype=torch.int64, device=device)
    truncated = torch.zeros_like(running)
    left = n
    while left:
        action, _, state = actor.act(obs, env.task, state, explore=False)
        step = env.step(action)
        check_step(step, length + 1, env.spec)
        success |= step.success & running
        returns += torch.where(running, step.reward, 0.0)
        length += running
        running = running & ~step.done
        truncated |= running & (length >= max_episode_steps)
        running = running & ~truncated
        obs, state = step.obs, state.masked_fill(step.done[:, None], 0)
        left = int(running.sum())
        finished(n - left)
    return list(zip(success.tolist(), returns.tolist(), length.tolist(), truncated.tolist(), strict=True))[:n]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927), without continuity correction."""
    from scipy.special import ndtri

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be in 0..n with n > 0, not {successes} of {n}.")
    z = float(ndtri(0.5 + confidence / 2))
    centre = (successes + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(successes * (n - successes) / n + z**2 / 4)
    # The limits at 0 and n successes are exact; rounding would miss them.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value (S,) per training seed; NaN for a single seed.

    With a handful of seeds it is too narrow, as every bootstrap: S belongs beside it.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values must have shape (S,) with S > 0, not {values.shape}.")
    if values.size == 1:
        return math.nan, math.nan
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(result: EvalResult) -> dict[str, Any]:
    """Statistics of an evaluation, as plain values.

    `success_rate` and `mean_return` are means over tasks; `tasks` holds, by name, `success_rate` with its 95% Wilson
    `interval` [low, high], `mean_return`, `mean_length` and the numbers of `episodes` and of those `truncated` by the
    evaluation. Success is left out where a task reports none, and its mean is over the tasks that do; returns that are
    not comparable have no mean.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for name, episodes in result.by_task.items():
        n, outcomes = len(episodes), [episode.success for episode in episodes if episode.success is not None]
        tasks[name] = {
            **_success(outcomes),
            "mean_return": math.fsum(episode.episode_return for episode in episodes) / n,
            "mean_length": sum(episode.length for episode in episodes) / n,
            "episodes": n,
            "truncated": sum(episode.truncated for episode in episodes),
        }
    means = {}
    for key in ("success_rate", "mean_return"):
        values = [task[key] for task in tasks.values() if key in task]
        if values and (key != "mean_return" or result.comparable_returns):
            means[key] = math.fsum(values) / len(values)
    return {**means, "tasks": tasks}


def _success(outcomes: Sequence[bool]) -> dict[str, Any]:
    """Success rate and interval of a task; nothing where it reports none."""
    successes, n = sum(outcomes), len(outcomes)
    return {"success_rate": successes / n, "interval": list(wilson_interval(successes, n))} if n else {}


def metrics(result: EvalResult) -> dict[str, float]:
    """Scores and summary as metrics: `eval/success_rate`, `eval/success_rate/<task>`, and the same of `eval/return`."""
    found = summary(result)
    named = {f"eval/{name}": value for name, value in result.scores.items()}
    for key, name in (("success_rate", "eval/success_rate"), ("mean_return", "eval/return")):
        if key in found:
            named[name] = found[key]
        named |= {f"{name}/{task}": values[key] for task, values in found["tasks"].items() if key in values}
    return named


def headline(result: EvalResult) -> str:
    """An evaluation in a line: means over tasks; without any, scores; without these, the return of each task."""
    found = summary(result)
    kinds = (("success", "success_rate", 3), ("return", "mean_return", 1))
    means = [f"{name} {found[key]:.{digits}f}" for name, key, digits in kinds if key in found]
    returns = ", ".join(f"{name} {task['mean_return']:.1f}" for name, task in found["tasks"].items())
    return ", ".join(means or _scores(result)) or f"returns {returns}"


def _scores(result: EvalResult) -> list[str]:
    """The scores over all tasks, if the benchmark has any."""
    return [f"{name}: {value:.3f}" for name, value in result.scores.items() if "/" not in name]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


_COLUMNS = ("goal", "success", "return", "length", "truncated")


def to_json(result: EvalResult) -> dict[str, Any]:
    """Protocol, scores, summary and every episode (by task, one list per field) as plain values."""
    episodes: dict[str, dict[str, list[Any]]] = {}
    for episode in result.episodes:
        columns = episodes.setdefault(episode.task, {name: [] for name in _COLUMNS})
        columns["goal"].append(episode.goal)
        columns["success"].append(episode.success)
        columns["return"].append(episode.episode_return)
        columns["length"].append(episode.length)
        columns["truncated"].append(episode.truncated)
    return {
        "protocol": dict(result.protocol),
        "scores": dict(result.scores),
        "has_success": result.has_success,
        "comparable_returns": result.comparable_returns,
        "summary": summary(result),
        "episodes": episodes,
    }


def from_json(data: Mapping[str, Any]) -> EvalResult:
    """The inverse of `to_json`; the summary is recomputed when asked for."""
    reported = data.get("has_success", True)  # older files say false, not null, where it is not
    episodes = [
        EpisodeResult(task, goal, success if reported else None, *rest)
        for task, columns in data["episodes"].items()
        for goal, success, *rest in zip(*_columns(columns), strict=True)
    ]
    scores = {name: stored_number(value) for name, value in data.get("scores", {}).items()}
    return EvalResult(data["protocol"], tuple(episodes), scores, data.get("comparable_returns", True))


def _columns(stored: Mapping[str, list[Any]]) -> list[list[Any]]:
    """Those of an episode, as far as the file has them."""
    columns = {name: stored[name] for name in _COLUMNS if name in stored}
    columns["return"] = list(map(stored_number, columns["return"]))
    return list(columns.values())


def write_eval(path: Path, result: EvalResult, **more: Any) -> None:
    """Writes `to_json(result)`, with `more` (step, wall time, ...) in front, as one file that appears whole.

    Raises:
        OSError: The file cannot be written.
    """
    write_atomic(path, json_text({**more, **to_json(result)}) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


Row = tuple[str, ...]


def _rows(result: EvalResult) -> tuple[Row, list[Row], list[Row]]:
    """Heading; tasks; the mean, if there is any. Columns of success are there if any task reports it."""
    found = summary(result)
    success = result.has_success
    heading = ("task", *(("success", "95% interval") if success else ()), "return", "length", "episodes")
    tasks = []
    for name, task in found["tasks"].items():
        cells = [f"{task['mean_return']:.1f}", f"{task['mean_length']:.0f}", str(task["episodes"])]
        if "interval" in task:
            low, high = task["interval"]
            cells = [f"{task['success_rate']:.2f}", f"{low:.2f} to {high:.2f}", *cells]
        elif success:
            cells = ["--", "", *cells]
        tasks.append((name, *cells))
    rate = (f"{found['success_rate']:.3f}", "") if success else ()
    mean_return = f"{found['mean_return']:.1f}" if result.comparable_returns else ""
    means = [("mean", *rate, mean_return, "", "")] if rate or mean_return else []
    return heading, tasks, means


def _caption(result: EvalResult) -> str:
    """Episodes that were truncated and scores over all tasks, if there are any, and the protocol."""
    scores = "; ".join(_scores(result))
    protocol = "; ".join(f"{key}: {value}" for key, value in result.protocol.items())
    counts = "; ".join(
        f"{name} {task['truncated']} of {task['episodes']}"
        for name, task in summary(result)["tasks"].items()
        if task["truncated"]
    )
    return "\n".join(filter(None, (f"truncated episodes: {counts}" if counts else "", scores, protocol)))


def table(result: EvalResult) -> Table:
    """Per-task results and their means for a terminal, with scores and the protocol beneath."""
    heading, tasks, means = _rows(result)
    drawn = Table(caption=_caption(result), caption_justify="left")
    for column in heading:
        drawn.add_column(column, justify="left" if column == "task" else "right")
    for row in tasks:
        drawn.add_row(*row)
    drawn.add_section()
    for row in means:
        drawn.add_row(*row, style="bold")
    return drawn


def plain_table(result: EvalResult) -> str:
    """The same as plain text, for logs and files."""
    heading, tasks, means = _rows(result)
    rows = [heading, *tasks, *means]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join([*lines, _caption(result)])


def show(result: EvalResult, console: Console | None = None) -> None:
    """Prints the table, as suits the console."""
    console = console or Console()
    if console.is_terminal:
        console.print(table(result))
    else:
        console.out(plain_table(result), highlight=False)


# ---------------------------------------------------------------------------------------------------------------------
# Video
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def record_videos(
    actor: Actor,
    env: VecEnv,
    render: Callable[[int], np.ndarray],
    folder: Path,
    goal: int = 0,
    fps: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_episode_steps: float = 10_000,
) -> list[Path]:
    """Films one deterministic episode of every task: `<folder>/<task>.mp4`, or `.gif` where ffmpeg is missing.

    A film appears when it is whole: whatever ends this before leaves those that are there.

    Args:
        actor: Acts on the env's observations and tasks.
        env: Any vectorised env; its slots are reassigned.
        render: Gives the picture (height, width, 3) uint8 of a slot.
        folder: Made if missing.
        goal: Which goal to film.
        fps: Pictures per second; one picture is taken per step.
        seed: Of the env.
        progress: Called after every step with the numbers of pictures that are done and of all. Those that an episode
            did not take because it ended early are done too.
        max_episode_steps: Films end there.

    Returns:
        The files, in the order of the tasks.

    Raises:
        UserError: imageio is not installed, or the folder cannot be written.
    """
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise missing_extra("A video", "imageio", "video") from error
    suffix = _video_suffix()
    options: dict[str, Any] = {"fps": fps, "macro_block_size": 2} if suffix == ".mp4" else {"duration": 1000 / fps}
    names = [stem + suffix for stem in _file_stems(env.spec.task_names)]
    longest = int(min(max_episode_steps, env.spec.horizon or max_episode_steps))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".tmp-", dir=folder) as unfinished:
            for start in range(0, len(names), env.num_envs):
                jobs = [(task, goal) for task in range(start, min(start + env.num_envs, len(names)))]
                files = [Path(unfinished, names[task]) for task, _ in jobs]

                def filmed(pictures: int, before: int = start) -> None:
                    progress(before * longest + pictures, len(names) * longest)

                with ExitStack() as opened:
                    writers = [opened.enter_context(imageio.get_writer(file, mode="I", **options)) for file in files]
                    _film(actor, env, jobs, seed, render, writers, filmed, longest)
                for file in files:
                    imageio.get_reader(file).close()  # fails where ffmpeg could not write it, which it does not tell
                    file.replace(folder / file.name)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"Could not write videos to {folder}: {reason}") from error
    return [folder / name for name in names]


def _file_stems(task_names: Sequence[str]) -> list[str]:
    """Names for files: those of the tasks in letters that every file system takes, no two the same."""
    stems = [re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in task_names]
    return [stem if stems.count(stem) == 1 else f"{stem}-{task}" for task, stem in enumerate(stems)]


def _film(
    actor: Actor,
    env: VecEnv,
    jobs: Sequence[tuple[int, int]],
    seed: int,
    render: Callable[[int], np.ndarray],
    writers: Sequence[Any],
    filmed: Callable[[int], None],
    longest: int,
) -> None:
    filming = set(range(len(jobs)))
    obs, state = _begin(env, jobs, seed), actor.initial_state(env.num_envs)
    for t in range(longest):
        # Before the step: after a done, the slot already shows its next episode.
        for slot in filming:
            writers[slot].append_data(render(slot))
        action, _, state = actor.act(obs, env.task, state, explore=False)
        step = env.step(action)
        filming = {slot for slot in filming if not step.done[slot]}
        filmed(len(filming) * (t + 1) + (len(jobs) - len(filming)) * longest)
        if not filming:
            break
        obs = step.obs


def _video_suffix() -> str:
    try:
        importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return ".gif"
    return ".mp4"
