"""Trains on a Ray cluster of three nodes on this machine, kills an actor and then a node, and counts what was lost.

    unshare --net --pid --fork --kill-child --mount-proc sh -c \\
        'ip link set lo up; python benchmarks/ray_nodes.py env=mt10 agent=impala data.rollout_length=50'

The nodes are processes that Ray's own command starts (`ray start`), the head and one other with a core each, a third
with two, and talk to one another over the loopback interface. Three actors share the slots. The actor is killed with
kill -9 when a third of the steps are done, the third node, with what runs on it, when two thirds are. Training goes on
with the cores that are left, to its last step.

What is counted: the rollouts that the dead were making, which are lost; nothing is repeated, since the learner lives.
At the end no process and no shared memory may be left, except the cluster, which is then ended as well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kills import MARK, cluster, processes, rows, shared_memory, wait_for

ACTORS = 3
NODES = (1, 1, 2)
"""Cores of each. The last one dies, with an actor on each of its cores at most."""
ACTOR = r"^ray::RayActor"
HOUR = 3600.0


def trained(overrides: Sequence[str], steps: int, folder: Path) -> dict[str, Any]:
    """Trains, kills, and returns what is known afterwards."""
    before = shared_memory()
    with cluster(NODES, memory=200_000_000) as nodes:
        command = [sys.executable, "-m", "mtrl.train", *overrides, f"actors={ACTORS}", "transport=ray"]
        command += [f"total_steps={steps}", f"log.every={steps // 60}", "run_dir=run"]
        with (folder / "log").open("wb") as log:
            run = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

        def step() -> int:
            logged = rows(folder)
            return int(logged[-1]["step"]) if logged else 0

        def kill(after: int, victims: Callable[[], list[int]]) -> int:
            """Kills the newest process when so many steps are done; returns the step."""
            wait_for(lambda: step() >= after or run.poll() is not None, HOUR)
            os.kill(max(victims()), signal.SIGKILL)
            return step()

        began = time.monotonic()
        killed = {
            "an actor": kill(steps // 3, lambda: processes(ACTOR)),
            "a node": kill(2 * steps // 3, lambda: nodes.nodes),
        }
        code = run.wait(timeout=HOUR)
        seconds = time.monotonic() - began
        wait_for(lambda: not processes(f"{ACTOR}|mtrl"), 30)
        left = [Path(f"/proc/{process}/cmdline").read_text()[:200] for process in processes(f"{ACTOR}|mtrl")]
    logged = [row for row in rows(folder) if "train/actor_restarts" in row]
    restarts = logged[-1]["train/actor_restarts"]
    return {
        "command": list(overrides),
        "exit_code": code,
        "steps": logged[-1]["step"],
        "seconds": round(seconds),
        "killed_at_step": killed,
        "actor_restarts": restarts,
        "rollouts_lost_at_most": 1 + NODES[-1],
        "repeated": 0,
        "left_of_the_run": left,
        "left_of_the_cluster": len(processes("ray")) + len(shared_memory() - before),
        "rows": [
            {key: row[key] for key in row if key in ("step", "train/return_mean", "time/wall_s")}
            for row in logged[::10]
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="as for mtrl.train: env=... agent=...")
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    os.environ[MARK] = str(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        found = trained(options.overrides, options.steps, Path(folder))
        print((Path(folder) / "log").read_text())
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
