"""Films of the policies of runs, for a page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtrl.report.runs import FinishedRun
from mtrl.run.evaluation.video import VIDEOS, file_stems

MOST = 40
"""Films on a page: browsers of phones show no more."""
MOST_BYTES = 24 * 2**20
"""Of the files of all films on a page."""
TYPES = {".mp4": "video/mp4", ".gif": "image/gif"}


@dataclass(frozen=True)
class Film:
    """An episode of a policy, as `python -m mtrl.evaluate run=... video=true` records it."""

    path: Path
    task: str
    caption: str

    @property
    def url(self) -> str:
        """The whole film, as the address of an element of a page."""
        return f"data:{TYPES[self.path.suffix]};base64,{b64encode(self.path.read_bytes()).decode()}"


def films(groups: Mapping[str, Sequence[FinishedRun]], measure: str, tasks: Sequence[str]) -> list[Film]:
    """The films of one run of each group, its first that has any; tasks with the lowest final measure come first."""

    def difficulty(task: str) -> float:
        return sum(run.evaluations[-1].measures[measure][task] for runs in groups.values() for run in runs)

    stems = dict(zip(tasks, file_stems(tasks), strict=True))
    filmed = {name: [run for run in runs if (Path(run.path) / VIDEOS).is_dir()][:1] for name, runs in groups.items()}
    return [
        Film(path, task, f"{task}: {name}, seed {run.seed}")
        for task in sorted(tasks, key=difficulty)
        for name, runs in filmed.items()
        for run in runs
        for suffix in TYPES
        if (path := Path(run.path) / VIDEOS / f"{stems[task]}{suffix}").is_file()
    ]


def that_fit(found: Sequence[Film]) -> list[Film]:
    """Those that a page has room for, the first ones first."""
    kept: list[Film] = []
    total = 0
    for film in found:
        size = film.path.stat().st_size
        if len(kept) < MOST and total + size <= MOST_BYTES:
            kept.append(film)
            total += size
    return kept
