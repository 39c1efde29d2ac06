"""Whether two checkouts train the same policy, bit for bit: for changes that must change no number.

    git worktree add ../before <commit> && python benchmarks/same_parameters.py ../before .
    python benchmarks/same_parameters.py ../before . --only mt10_ppo gym

Each run is made in both, on this machine and one after the other, with the command line of each. Compared are the
tensors of the last policy and of the whole learner's state (networks, optimisers, statistics): the same shapes with
the same bytes, whatever their names. Prints a table, and ends with exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

SHORT = ("log.every=20000", "log.tensorboard=false", "eval.every=0", "eval.episodes_per_task=1", "checkpoint.every=0")
ATARI = "env.games=[pong,boxing,qbert]"
RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mt10_ppo": (("env=mt10", "agent=ppo", "total_steps=120000"),),
    "mt10_ppo_resumed": (("env=mt10", "agent=ppo", "total_steps=80000"), ("total_steps=160000",)),
    "mt10_sac": (("env=mt10", "agent=sac", "total_steps=42000"),),
    "mt10_impala": (("env=mt10", "agent=impala", "total_steps=40000"),),
    "atari3_popart": (("+experiment=atari3_popart", "total_steps=40000"),),
    "gym": (("env=gym", "total_steps=40000"),),
    "gym_actors": (("env=gym", "agent=impala", "actors=1", "total_steps=4000"),),
}
"""Commands of each run; those after the first resume it."""


def train(checkout: Path, commands: Sequence[Sequence[str]], run_dir: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    for i, arguments in enumerate(commands):
        where = [f"resume={run_dir}"] if i else [f"run_dir={run_dir}", *SHORT]
        command = [sys.executable, "-m", "mtrl.train", *arguments, *where]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def tensors(file: Path) -> Counter[tuple[str, str]]:
    """Shape and digest of each tensor in a file."""
    with safe_open(file, framework="np") as opened:
        arrays = [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
    return Counter((f"{array.dtype}{array.shape}", hashlib.sha256(array.tobytes()).hexdigest()) for array in arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    differ = False
    print("| run | policy tensors | learner tensors | same |\n| --- | --- | --- | --- |")
    for name in options.only:
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for side in ("before", "after"):
                run_dir = Path(folder) / side
                train(getattr(options, side).resolve(), RUNS[name], run_dir)
                last = (run_dir / "checkpoints" / "last").resolve()
                learner = last / "training_state" / "learner" / "state.safetensors"
                found.append((tensors(last / "policy" / "model.safetensors"), tensors(learner)))
        same = found[0] == found[1]
        differ |= not same
        counts = " | ".join(str(part.total()) for part in found[1])
        print(f"| {name} | {counts} | {'yes' if same else 'NO'} |", flush=True)
    sys.exit(differ)


if __name__ == "__main__":
    main()
