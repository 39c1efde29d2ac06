"""A page about finished runs: curves, tables, differences of settings, versions, in one HTML file.

python -m mtrl.report runs/a* runs/b*                           # report.html
python -m mtrl.report runs/*/ by=aggregation out=pcgrad.html    # groups by this setting; elsewhere
python -m mtrl.report runs/*/ figures=figures                   # and every figure as SVG and PDF, a column wide
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtrl.config import parse_with_runs, run_or_exit
from mtrl.files import write_atomic
from mtrl.registry import construct
from mtrl.report.comparison import Comparison, compare
from mtrl.report.figures import Groups, check_matplotlib, draw_all, save
from mtrl.report.films import films
from mtrl.report.metrics import logged_rows
from mtrl.report.page import page
from mtrl.report.relations import relations
from mtrl.report.runs import FinishedRun, common_measure, groups, read_runs
from mtrl.types import UserError

MOST = 12
"""Groups in the figures."""


def report(runs: list[str], by: str | None = None, out: str = "report.html", figures: str | None = None) -> list[Path]:
    """Writes the page. Returns the paths of what was written.

    Args:
        runs: Run folders. The group of the first is what the others are compared with.
        by: Settings that make a group, with commas between them; by default all in which the runs differ.
        out: The page.
        figures: A folder for the figures.
    """
    check_matplotlib("A report")
    found = read_runs(runs)
    by_group = groups(found, [] if by is None else by.split(","))
    measure, tasks = common_measure(found)
    shown = _best(by_group, measure)
    rows = {run.path: logged_rows(run) for own in shown.values() for run in own}
    drawn, related = draw_all(shown, rows, measure, tasks), relations(shown)
    comparison, filmed = _comparison(found, [] if by is None else by.split(",")), films(shown, measure, tasks)
    target = Path(out)
    try:
        text = page(by_group, shown, comparison, drawn, related, filmed)
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror or error}.") from error
    try:
        write_atomic(target, text)
        return [
            target,
            *(path for one in (*drawn, *related.drawn) for path in (save(one, Path(figures)) if figures else ())),
        ]
    except OSError as error:
        raise UserError(f"Cannot write {error.filename or out}: {error.strerror or error}.") from error


def _best(found: Groups, measure: str) -> Groups:
    """The first group, and those with the highest final measure."""
    first, *others = found

    def final(name: str) -> float:
        scores = [value for run in found[name] for value in run.evaluations[-1].measures[measure].values()]
        return -sum(scores) / len(scores)

    kept = {first, *sorted(others, key=final)[: MOST - 1]}
    return {name: runs for name, runs in found.items() if name in kept}


def _comparison(runs: list[FinishedRun], by: list[str]) -> Comparison | str:
    """At equal steps and minutes; at minutes alone where some runs count updates; or the reason why not."""
    mixed = len({run.counts_updates for run in runs}) > 1
    try:
        return compare(runs, by, ("minutes",) if mixed else ("steps", "minutes"))
    except UserError as error:
        return str(error)


def main() -> None:
    """Command line: run folders, and `key=value` arguments of `report`."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys: by, out, figures")
        return 0
    for path in construct("report", report, parse_with_runs(arguments, ("by", "out", "figures"))):
        print(path)
    return 0


if __name__ == "__main__":
    main()
