"""Figures of groups of runs, as wide as the column of a paper. Needs matplotlib."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.files import replacing
from mtrl.registry import missing_extra
from mtrl.report.metrics import Matrix, Series, common_times, matrices, series
from mtrl.report.runs import Clock, FinishedRun
from mtrl.report.statistics import band, profile

COLUMN = 3.4
"""Width in inches of a column in papers of two columns."""
INK = "#222222"
"""Of lines and text: a page replaces it by the colour of its own text."""
COLORS = ("#2f7ebc", "#e6550d", "#31a354", "#c06aa8", "#d9a000", "#56b4e9", "#8c6bb1", "#a0785a", "#7f7f7f", "#d6404e")
"""Legible on white and on black."""
STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "grid.color": INK,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
TOGETHER = 4
"""Most groups in a figure of bars."""

Groups = Mapping[str, Sequence[FinishedRun]]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""What each run logged, by its path."""

EXPLORING = {"success": "train/success_rate_mean", "return": "train/return_mean"}
"""What a measure is called while training."""
BY_GROUP: dict[str, str] = {
    "grad/*_conflict_rate": "Share of pairs of tasks whose gradients conflict.",
    "grad/*_cosine_mean": "Mean cosine of the gradients of pairs of tasks.",
    "train/*_dormant_ratio": "Share of units that are hardly ever active.",
    "train/*_effective_rank": "Effective rank of the features.",
}
"""Metrics of which each group has a curve."""
BY_TASK: dict[str, str] = {
    "train/success_rate": "Success of each task while exploring.",
    "train/return": "Return of each task while exploring.",
    "train/task_share": "Share of each task in the training data.",
    "train/value_scale": "Scale of each task's values.",
    "grad/*_task_weight": "Weight of each task's loss.",
    "train/*_routing_entropy": "Entropy of each task's choice of modules.",
}
"""Metrics of which each group has a map of tasks over time."""
LAST: dict[str, str] = {
    "grad/*_cosine": "Cosines of the tasks' gradients, logged last.",
    "train/*_routing": "Each task's use of modules, logged last.",
}
"""Matrices."""


@dataclass(frozen=True)
class Drawn:
    """A figure with its name in file names, and a sentence."""

    name: str
    caption: str
    figure: Any


def check_matplotlib(what: str = "A figure") -> None:
    """Raises `UserError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra(what, "matplotlib", "plot") from error


def lines_by_task(metrics: Mapping[str, Mapping[str, Series]]) -> Any:
    """Metrics of a run over its steps, one below the other, each with a line for each task."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, every = _new(1.5 * len(metrics) + 0.2, len(metrics), sharex=True)
        tasks = list(dict.fromkeys(task for by_task in metrics.values() for task in by_task if task))
        colors = _colors(tasks)
        for axes, (name, by_task) in zip(every, metrics.items(), strict=True):
            for task, (steps, values) in by_task.items():
                axes.plot(steps, values, ".-", color=colors.get(task, INK), lw=0.8 if task else 1.6, ms=2)
            axes.set_title(name, loc="left")
        every[-1].set_xlabel("environment steps")
        _legend(figure, colors if len(colors) <= 12 else {})
    return figure


def draw_all(groups: Groups, rows: Rows, measure: str, tasks: Sequence[str]) -> list[Drawn]:
    """Every figure for which something is known.

    Args:
        groups: Runs by the name of their group, first the baseline.
        measure: What the runs are compared by.
        tasks: In which tasks.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        drawn = [_progress(groups, rows, measure, tasks, clock) for clock in ("steps", "minutes")]
        drawn += _bars(groups, measure, tasks)
        if measure != "return":
            drawn.append(_profiles(groups, measure, tasks))
        for patterns, draw in ((BY_TASK, _by_task), (BY_GROUP, _by_group), (LAST, _last)):
            for pattern, caption in patterns.items():
                drawn += draw(groups, rows, pattern, caption)
    return drawn


def _new(height: float, panels: int = 1, sharex: bool = False) -> tuple[Any, list[Any]]:
    """A figure of a height in inches, with panels below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    return figure, [axes for (axes,) in figure.subplots(panels, 1, squeeze=False, sharex=sharex)]


def _legend(figure: Any, colors: Mapping[str, str]) -> None:
    """Names of groups below the axes; the figure grows by them."""
    from matplotlib.lines import Line2D

    if len(colors) < 2:
        return
    labels = [textwrap.fill(name, 58) for name in colors]
    columns = 2 if max(map(len, labels)) < 28 else 1
    lines = sum(label.count("\n") + 1 for label in labels)
    handles = [Line2D([], [], color=color, lw=3) for color in colors.values()]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.14 * -(-lines // columns) + 0.05)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def _colors(names: Sequence[str]) -> dict[str, str]:
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def _time_label(clock: Clock, groups: Groups) -> str:
    if clock == "minutes":
        return "minutes of training"
    return "updates" if all(run.counts_updates for runs in groups.values() for run in runs) else "environment steps"


def _line(axes: Any, times: np.ndarray, values: np.ndarray, color: str, **style: Any) -> None:
    """The mean of values (S, N) over runs, with the band of its 95% interval."""
    middle, low, high = band(values)
    axes.plot(times, middle, color=color, **style)
    axes.fill_between(times, low, high, color=color, alpha=0.18, lw=0)


def _over_time(runs: Sequence[FinishedRun], rows: Rows, name: str, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """Times (N,) and values (S, N) of a metric in the runs that logged it."""
    found = [series(run, rows[run.path], name, clock) for run in runs]
    known = [(times, values) for times, values in found if len(times)]
    grid = common_times([times for times, _ in known])
    return grid, np.array([np.interp(grid, times, values) for times, values in known]).reshape(len(known), len(grid))


def _progress(groups: Groups, rows: Rows, measure: str, tasks: Sequence[str], clock: Clock) -> Drawn:
    """Mean over tasks over time: evaluated, and while exploring."""
    figure, (axes,) = _new(2.2)
    colors = _colors(list(groups))
    for name, runs in groups.items():
        if measure in EXPLORING:
            times, values = _over_time(runs, rows, EXPLORING[measure], clock)
            if len(times):
                _line(axes, times, values, colors[name], alpha=0.5, lw=0.8)
        first, last = max(run.times(clock)[0] for run in runs), min(run.times(clock)[-1] for run in runs)
        if first <= last:
            at = sorted({first, last, *(time for time in runs[0].times(clock) if first <= time <= last)})
            scores = np.array([[run.scores(measure, tasks, clock, time).mean() for time in at] for run in runs])
            _line(axes, np.array(at), scores, colors[name], marker="o", ms=3)
        else:
            ends = [run.scores(measure, tasks, clock, run.times(clock)[-1]).mean() for run in runs]
            axes.plot(np.mean([run.times(clock)[-1] for run in runs]), np.mean(ends), "o", ms=3, color=colors[name])
    axes.set(xlabel=_time_label(clock, groups), ylabel=measure)
    if measure == "success":
        axes.set_ylim(0, 1.02)
    _legend(figure, colors)
    caption = (
        f"{measure.capitalize()} over {_time_label(clock, groups)}: mean over tasks and runs, with the 95% interval "
        "over runs. Dots are evaluations; thin lines are measured while exploring."
    )
    return Drawn(f"progress_{clock}", caption, figure)


def _bars(groups: Groups, measure: str, tasks: Sequence[str]) -> list[Drawn]:
    """The final measure of each task, sorted by the first group; a few groups in each figure, always with the first."""
    first, *others = groups
    chunks = [others[start : start + TOGETHER - 1] for start in range(0, len(others), TOGETHER - 1)] or [[]]
    colors, drawn = _colors(list(groups)), []
    final = {
        name: np.array([[run.evaluations[-1].measures[measure][task] for task in tasks] for run in runs])
        for name, runs in groups.items()
    }
    order = np.argsort(-final[first].mean(0), kind="stable")
    for number, chunk in enumerate(chunks):
        shown = [first, *chunk]
        figure, (axes,) = _new(0.55 + len(tasks) * max(0.13, 0.075 * len(shown)))
        thickness = 0.8 / len(shown)
        for index, name in enumerate(shown):
            middle, low, high = band(final[name])
            if len(groups[name]) == 1 and measure == "success":
                low, high = np.array([groups[name][0].evaluations[-1].intervals[task] for task in tasks]).T
            places = np.arange(len(tasks)) + (index - (len(shown) - 1) / 2) * thickness
            errors = np.nan_to_num(np.clip([middle - low, high - middle], 0, None))[:, order]
            style = {"ecolor": INK, "error_kw": {"lw": 0.6}}
            axes.barh(places, middle[order], thickness * 0.9, xerr=errors, color=colors[name], **style)
        axes.set_yticks(range(len(tasks)), [tasks[index] for index in order])
        axes.set(ylim=(len(tasks) - 0.4, -0.6), xlabel=f"{measure} of the final policies")
        if measure == "success":
            axes.set_xlim(0, 1.02)
        axes.grid(axis="y", visible=False)
        _legend(figure, {name: colors[name] for name in shown})
        caption = f"Final {measure} of each task, with the 95% interval over runs; of a single run, over its episodes."
        drawn.append(Drawn(f"tasks_{number + 1}" if len(chunks) > 1 else "tasks", caption, figure))
    return drawn


def _profiles(groups: Groups, measure: str, tasks: Sequence[str]) -> Drawn:
    figure, (axes,) = _new(2.0)
    colors = _colors(list(groups))
    final = {
        name: np.array([[run.evaluations[-1].measures[measure][task] for task in tasks] for run in runs])
        for name, runs in groups.items()
    }
    highest = max(1.0, *(float(scores.max()) for scores in final.values()))
    thresholds = np.linspace(min(0.0, *(float(scores.min()) for scores in final.values())), highest, 101)
    for name, scores in final.items():
        _line(axes, thresholds, profile(scores, thresholds), colors[name], drawstyle="steps-post")
    axes.set(xlabel=f"{measure} τ", ylabel="share of tasks above τ", ylim=(0, 1.02))
    _legend(figure, colors)
    return Drawn("profile", f"Performance profile: in what share of the tasks the final {measure} exceeds τ.", figure)


def _by_group(groups: Groups, rows: Rows, pattern: str, caption: str) -> list[Drawn]:
    """A curve for each group of each metric that a pattern names."""
    drawn = []
    for metric in _names(rows, pattern):
        figure, (axes,) = _new(1.8)
        colors: dict[str, str] = {}
        for name, color in _colors(list(groups)).items():
            times, values = _over_time(groups[name], rows, metric, "steps")
            if len(times):
                _line(axes, times, values, color)
                colors[name] = color
        axes.set(xlabel=_time_label("steps", groups), ylabel=metric.partition("/")[2].replace("_", " "))
        _legend(figure, colors)
        drawn.append(Drawn(_file(metric), f"{metric}: {caption}", figure))
    return drawn


def _by_task(groups: Groups, rows: Rows, pattern: str, caption: str) -> list[Drawn]:
    """A map of tasks over time for each group of each metric that a pattern names."""
    drawn = []
    for metric in _names(rows, f"{pattern}/*"):
        panels: dict[str, tuple[Matrix, np.ndarray]] = {}
        for name, runs in groups.items():
            tasks = _tasks(rows[runs[0].path], metric)
            found = {task: _over_time(runs, rows, f"{metric}/{task}", "steps") for task in tasks}
            found = {task: (times, values) for task, (times, values) in found.items() if len(times)}
            if found:
                grid = common_times([times for times, _ in found.values()], 60)
                lines = [np.interp(grid, times, values.mean(0)) for times, values in found.values()]
                if len(grid):
                    panels[_title(name, groups)] = ((list(found), [], np.array(lines).tolist()), grid)
        if not panels:
            continue
        every = np.concatenate([np.ravel(numbers) for (_, _, numbers), _ in panels.values()])
        limits = (0.0, 1.0) if metric == "train/success_rate" else (float(np.nanmin(every)), float(np.nanmax(every)))
        figure = maps(
            {name: matrix for name, (matrix, _) in panels.items()},
            limits,
            times={name: grid for name, (_, grid) in panels.items()},
            time_label=_time_label("steps", groups),
        )
        drawn.append(Drawn(_file(metric), f"{metric}: {caption} Mean over runs.", figure))
    return drawn


def _last(groups: Groups, rows: Rows, pattern: str, caption: str) -> list[Drawn]:
    """The matrices of each group that a pattern names, as they were logged last."""
    found = {name: [matrices(rows[run.path]) for run in runs] for name, runs in groups.items()}
    drawn = []
    for metric in sorted({key for tables in found.values() for one in tables for key in one if fnmatch(key, pattern)}):
        panels: dict[str, Matrix] = {}
        for name, tables in found.items():
            known = [one[metric] for one in tables if metric in one]
            same = [one for one in known if one[:2] == known[0][:2]]
            if same:
                numbers = np.mean([np.array(one[2], dtype=float) for one in same], axis=0)
                panels[_title(name, groups)] = (same[0][0], same[0][1], numbers.tolist())
        signed = metric.endswith("_cosine")
        figure = maps(panels, (-1.0, 1.0) if signed else (0.0, 1.0), "RdBu" if signed else "viridis")
        drawn.append(Drawn(_file(metric), f"{metric}: {caption} Mean over runs.", figure))
    return drawn


def maps(
    panels: Mapping[str, Matrix],
    limits: tuple[float, float],
    colors: str = "viridis",
    times: Mapping[str, np.ndarray] | None = None,
    time_label: str = "",
) -> Any:
    """Matrices below each other, with one scale of colours.

    Args:
        panels: By title.
        limits: Of the scale.
        times: Of the columns, in place of names.
    """
    import matplotlib as mpl

    heights = [min(0.11 * len(rows), 3.2) for rows, _, _ in panels.values()]
    longest = max((len(name) for _, columns, _ in panels.values() for name in columns), default=0)
    with mpl.rc_context(STYLE):
        figure, every = _new(sum(heights) + (0.5 + 0.045 * longest) * len(panels) + 0.1, len(panels))
        for axes, (name, (rows, columns, numbers)), height in zip(every, panels.items(), heights, strict=True):
            size = min(6.0, 66 * height / len(rows))
            image = axes.imshow(
                numbers, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="none"
            )
            axes.set_yticks(range(len(rows)), rows, fontsize=size)
            if times is None:
                axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
            else:
                first, last = times[name][0], times[name][-1]
                image.set_extent((first, last if last > first else first + 1, len(rows) - 0.5, -0.5))
                axes.set_xlabel(time_label)
            axes.grid(visible=False)
            axes.set_title(textwrap.fill(name, 50), loc="left")
            figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).outline.set_visible(False)
    return figure


@dataclass(frozen=True)
class TaskMap:
    """Tasks in a plane."""

    name: str
    tasks: Sequence[str]
    positions: np.ndarray
    """(K, 2)."""
    share: float
    """Of their differences, which the plane shows."""
    groups: Sequence[Sequence[str]]
    """Names of tasks: a group has a colour."""

    @property
    def title(self) -> str:
        farthest = np.linalg.norm(self.positions[:, None] - self.positions, axis=-1).max()
        shown = f"{self.share:.0%} of the differences; the largest distance is {farthest:.2g}"
        return f"{self.name}: {shown}" if self.name else shown


def task_maps(panels: Sequence[TaskMap]) -> Any:
    """Maps of tasks below each other. Names are in a column on each side, so that none covers another."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, every = _new(sum(max(1.7, 0.065 * len(one.tasks)) + 0.2 for one in panels), len(panels))
        for axes, one in zip(every, panels, strict=True):
            color = {task: COLORS[g % len(COLORS)] for g, group in enumerate(one.groups) for task in group}
            by_x = sorted(zip(one.positions.tolist(), one.tasks, strict=True), key=lambda point: point[0][0])
            half = len(by_x) // 2
            _named_points(axes, by_x[:half], color, "right", -0.03)
            _named_points(axes, by_x[half:], color, "left", 1.03)
            axes.set(aspect="equal", adjustable="datalim")
            axes.axis("off")
            axes.margins(0.08)
            axes.set_title(textwrap.fill(one.title, 60), loc="center")
    return figure


def _named_points(
    axes: Any, points: Sequence[tuple[Sequence[float], str]], color: Mapping[str, str], align: str, at: float
) -> None:
    """Points with a line from each to its name, in a column `at` a share of the width."""
    for row, ((x, y), task) in enumerate(sorted(points, key=lambda point: point[0][1])):
        axes.plot(x, y, "o", color=color[task], ms=3.5)
        line = {"arrowstyle": "-", "color": color[task], "lw": 0.4, "relpos": (float(align == "right"), 0.5)}
        where = {"xytext": (at, (row + 0.5) / len(points)), "textcoords": "axes fraction", "ha": align, "va": "center"}
        axes.annotate(task, (x, y), **where, fontsize=6, color=color[task], arrowprops={**line, "shrinkA": 1})


def _title(name: str, groups: Groups) -> str:
    """Of a panel; none for the only one."""
    return name if len(groups) > 1 else ""


def _names(rows: Rows, pattern: str) -> list[str]:
    """Names of logged metrics that a pattern names: without their tasks if it ends in `/*`."""
    keys = dict.fromkeys(key for logged in rows.values() for row in logged for key in row if fnmatch(key, pattern))
    depth = pattern.count("/")
    of_tasks = pattern.endswith("/*")
    found = {"/".join(key.split("/")[:2]) for key in keys if of_tasks or key.count("/") == depth}
    return sorted(name for name in found if fnmatch(name, pattern.removesuffix("/*")))


def _tasks(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(f"{metric}/"))
    return [key.removeprefix(f"{metric}/") for key in keys]


def _file(metric: str) -> str:
    return re.sub(r"\W+", "_", metric)


def svg(drawn: Drawn) -> str:
    """A figure as an element of a page, in the colour of the page's text, with names of its own."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": drawn.name}):
        drawn.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = _own_ids(text, drawn.name)
    return re.sub(r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', text, count=1)


def _own_ids(text: str, prefix: str) -> str:
    """Keeps the ids that something refers to, once each, with a prefix."""
    unseen = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))

    def named(found: re.Match[str]) -> str:
        if found[1] not in unseen:
            return ""
        unseen.remove(found[1])
        return f' id="{prefix}-{found[1]}"'

    text = re.sub(r'\sid="([^"]*)"', named, text)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", text)


def save(drawn: Drawn, folder: Path) -> list[Path]:
    """Writes a figure as SVG and as PDF. Returns the paths. Raises `OSError`."""
    import matplotlib as mpl

    paths = [folder / f"{drawn.name}.{suffix}" for suffix in ("svg", "pdf")]
    for path in paths:
        with mpl.rc_context({"svg.hashsalt": drawn.name}), replacing(path) as temporary:
            date = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
            drawn.figure.savefig(temporary, format=path.suffix[1:], metadata=date)
    return paths
