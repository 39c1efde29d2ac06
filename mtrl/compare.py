"""Compare finished runs with each other.

python -m mtrl.compare runs/a* runs/b*                          # groups of runs that differ only in their seeds
python -m mtrl.compare runs/*/ by=aggregation                   # groups by this setting; by=agent,network by several
python -m mtrl.compare runs/*/ at=minutes                       # only at equal minutes of training, or at=steps
python -m mtrl.compare runs/*/ format=latex                     # or csv, markdown, text
python -m mtrl.compare runs/*/ out=table.md                     # into a file; its suffix says the format
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from mtrl.config import parse_with_runs, run_or_exit
from mtrl.files import write_atomic
from mtrl.registry import construct
from mtrl.report.comparison import Comparison, compare
from mtrl.report.runs import Clock, read_runs
from mtrl.report.tables import show, to_csv, to_latex, to_markdown, to_text
from mtrl.types import UserError

Format = Literal["text", "csv", "markdown", "latex"]
FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": to_text,
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}
SUFFIXES = {".csv": "csv", ".md": "markdown", ".tex": "latex"}


def compare_runs(
    runs: list[str],
    by: str | None = None,
    at: Clock | None = None,
    format: Format | None = None,
    out: str | None = None,
) -> None:
    """Prints how groups of runs differ, or writes it to a file.

    Args:
        runs: Run folders. The group of the first is what the others are compared with.
        by: Settings that make a group, with commas between them; by default all in which the runs differ.
        at: What is equal; by default both are shown.
        format: By default that of the suffix of `out`, else text.
        out: Output file.
    """
    keys = [] if by is None else by.split(",")
    comparison = compare(read_runs(runs), keys, get_args(Clock) if at is None else (at,))
    if out is None and format is None:
        show(comparison)
        return
    suffix = "" if out is None else Path(out).suffix
    text = FORMATS[format or SUFFIXES.get(suffix, "text")](comparison)
    if out is None:
        print(text, end="")
        return
    try:
        write_atomic(Path(out), text)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error
    print(out)


def main() -> None:
    """Command line: run folders, and `key=value` arguments of `compare_runs`."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys: by, at, format, out")
        return 0
    construct("compare", compare_runs, parse_with_runs(arguments, ("by", "out")))
    return 0


if __name__ == "__main__":
    main()
