"""Watch and repair a sweep that python -m mtrl.train -m began.

python -m mtrl.sweep status runs/...                            # which of its runs are done, running, failed, waiting
python -m mtrl.sweep restart runs/...                           # continues those that failed, begins those that wait
python -m mtrl.sweep restart runs/... hydra/launcher=joblib hydra.launcher.n_jobs=4    # by another launcher
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtrl.config import parse, run_or_exit
from mtrl.registry import unknown
from mtrl.sweep.jobs import read_jobs, status
from mtrl.sweep.launch import restart
from mtrl.types import UserError


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    command, *rest = arguments
    if command not in ("status", "restart"):
        raise UserError(unknown("command", command, ["status", "restart"]))
    if not rest:
        raise UserError(f"{command} needs the folder of a sweep: python -m mtrl.sweep {command} runs/...")
    folder, *settings = rest
    if command == "restart":
        for override in parse(settings):
            if not override.key_or_group.startswith(("hydra/launcher", "hydra.launcher")):
                raise UserError(
                    f"{override.input_line}: a restart takes only settings of the launcher, hydra/launcher=..."
                )
        return restart(Path(folder), settings)
    if settings:
        raise UserError(f"status takes one folder, and not {' '.join(settings)}.")
    print("\n".join(status(read_jobs(Path(folder)))))
    return 0


if __name__ == "__main__":
    main()
