"""A page about groups of runs: one file that loads nothing else."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from mtrl.report.comparison import Comparison
from mtrl.report.figures import Drawn, Groups, svg
from mtrl.report.films import MOST, MOST_BYTES, Film, that_fit
from mtrl.report.relations import Related
from mtrl.report.runs import FinishedRun, differing_keys
from mtrl.report.tables import Table, tables

CSS = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #8883; --quiet: #666; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #16181c; --quiet: #999; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 82rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, li { max-width: 50rem; } .quiet, figcaption { color: var(--quiet); font-size: 0.85rem; }
.figures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; } svg, video, img { width: 100%; height: auto; display: block; }
.films { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.table { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding: 0.2rem 0; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child, .words td, .words th { text-align: left; overflow-wrap: anywhere; }
td:first-child { min-width: 8rem; } .table:not(.words) td + td { white-space: nowrap; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
details { margin: 0.5rem 0; } summary { cursor: pointer; }
"""


def page(
    groups: Groups,
    shown: Groups,
    comparison: Comparison | str,
    drawn: Sequence[Drawn],
    related: Related,
    films: Sequence[Film],
) -> str:
    """The page as HTML.

    Args:
        groups: All runs by the name of their group.
        shown: Those in the figures.
        comparison: Of the groups, or why there is none.
        drawn: The figures.
        related: What is known of relations between tasks.
        films: Of which the page shows those that fit.

    Raises:
        OSError: A film cannot be read.
    """
    runs = [run for own in groups.values() for run in own]
    title = f"{len(runs)} run{'s' * (len(runs) > 1)} in {len(groups)} group{'s' * (len(groups) > 1)}"
    parts = [f"<h1>{title}</h1>", *_counts(groups), "<h2>Comparison</h2>"]
    if isinstance(comparison, str):
        parts.append(f"<p>{escape(comparison)}</p>")
    else:
        for table in tables(comparison):
            lines = table.html()
            parts += lines if len(table.rows) <= 15 else _folded(table.title, lines)
        parts.append(f"<ul class=quiet>{''.join(f'<li>{escape(note)}</li>' for note in comparison.notes)}</ul>")
    parts.append("<h2>Figures</h2>")
    if len(shown) < len(groups):
        parts.append(f"<p>Of {len(groups)} groups, the first and the best {len(shown) - 1}.</p>")
    parts += ["<div class=figures>", *map(_figure, drawn), "</div>", *_relations(related), *_films(films)]
    parts += ["<h2>Settings that differ</h2>", *_settings(groups)]
    parts += ["<h2>Environment and versions</h2>", *_environment(runs)]
    parts += _folded(f"All {len(runs)} runs", _runs(groups))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(drawn: Drawn) -> str:
    caption = escape(drawn.caption)
    picture = svg(drawn).replace("<svg ", f'<svg aria-label="{caption}" ', 1)
    return f'<figure id="{drawn.name}">\n{picture}<figcaption>{caption}</figcaption>\n</figure>'


def _relations(related: Related) -> list[str]:
    if not related.drawn:
        return []
    lines = ["<h2>Which tasks belong together</h2>", "<div class=figures>", *map(_figure, related.drawn), "</div>"]
    return [*lines, *(line for table in related.agreements for line in table.html())]


def _films(films: Sequence[Film]) -> list[str]:
    """The films that fit, and a line that says how many do not and where they are."""
    if not films:
        return []
    kept = that_fit(films)
    lines = ["<h2>Films</h2>", "<div class=films>", *map(_film, kept), "</div>"]
    if left_out := [film for film in films if film not in kept]:
        folders = ", ".join(sorted({str(film.path.parent) for film in left_out}))
        limit = f"a page holds at most {MOST} of them, and {MOST_BYTES / 2**20:g} MB"
        lines.append(f"<p>{len(left_out)} of {len(films)} films are left out, as {limit}: see {escape(folders)}.</p>")
    return lines


def _film(film: Film) -> str:
    caption = escape(film.caption)
    if film.path.suffix == ".gif":
        shown = f'<img alt="{caption}" src="{film.url}">'
    else:
        shown = (
            f'<video aria-label="{caption}" controls loop muted playsinline preload=metadata src="{film.url}"></video>'
        )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{escape(title)}</summary>", *lines, "</details>"]


def _counts(groups: Groups) -> list[str]:
    """How many runs each group has; of many groups, only the number of seeds."""
    if len(groups) > 12:
        return []
    words = (f"{escape(name)} <span class=quiet>({len(runs)})</span>" for name, runs in groups.items())
    return [f"<p>{' · '.join(words)}</p>"]


def _settings(groups: Groups) -> list[str]:
    """A row for each setting that differs, and a column for each group."""
    keys = differing_keys([run.settings for runs in groups.values() for run in runs])
    if not keys:
        return ["<p>All runs have the same settings, except for their seeds.</p>"]
    rows = [[key, *(_values(runs, lambda run, key=key: str(run.settings.get(key, "")))  # type: ignore[misc]
                    for runs in groups.values())] for key in sorted(keys)]  # fmt: skip
    lines = Table("", ["setting", *groups], rows).html()
    return [line.replace("class=table", 'class="table words"') for line in lines]


def _values(runs: Sequence[FinishedRun], value: Callable[[FinishedRun], str]) -> str:
    """The values of the runs of a group."""
    return " / ".join(dict.fromkeys(map(value, runs)))


def _environment(runs: Sequence[FinishedRun]) -> list[str]:
    """What the runs were made with, and how many of them, where they differ."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        lines = dict.fromkeys(line for line in run.environment if re.match(r"[\w .-]+: ", line))
        for line in lines:
            key, _, value = line.partition(": ")
            if key not in ("time", "command"):
                found.setdefault(key, Counter())[value] += 1
    rows = [
        [key, " / ".join(value if count == len(runs) else f"{value} ({count} runs)" for value, count in values.items())]
        for key, values in found.items()
    ]
    if not rows:
        return ["<p>The runs do not tell.</p>"]
    return [line.replace("class=table", 'class="table words"') for line in Table("", ["", ""], rows).html()]


def _runs(groups: Groups) -> list[str]:
    """A row for each run."""
    rows = []
    for name, runs in groups.items():
        for run in runs:
            last = run.evaluations[-1]
            success = [value for value in last.measures.get("success", {}).values() if not math.isnan(value)]
            result = f"{sum(success) / len(success):.3f}" if success else ""
            command = next((line for line in run.environment if line.startswith("command: ")), "")
            cells = [run.path, name, str(run.seed), f"{last.steps:,.0f}", f"{last.minutes:.1f}", result]
            rows.append([*cells, command.removeprefix("command: ")])
    heading = ["run", "group", "seed", "steps", "minutes", "success", "command"]
    return [line.replace("class=table", 'class="table words"') for line in Table("", heading, rows).html()]
