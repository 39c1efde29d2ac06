"""Kills one process of a run at a random moment with kill -9, many times, and counts what was lost.

    python benchmarks/kills.py run                     # every kind of process 20 times: results/kills.json
    python benchmarks/kills.py run --kinds rank actor --times 5 --output kills.json
    python benchmarks/kills.py table                   # the table of docs/clusters.md

What has been done is kept in the output, and the command goes on from there. The moment is drawn uniformly from the
time that an undisturbed run takes, so that some are killed as they start, evaluate or save. A run that was over before
is drawn again. The kinds of Ray need the extra `ray`, and a cluster on the loopback interface is started for them:

    unshare --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up; python benchmarks/kills.py run'

A run has *finished* if it ended with exit code 0 with all of its steps or episodes, after the command was given again
where the killed process is the one that a user starts. It is the *same* as an undisturbed one if its final policy and
its log (without times), or all episodes of the evaluation, are. *Repeated* are the steps between the checkpoint that a
run went on from and the last row of its log, or the most episodes that an evaluation can have begun again. *Lost* are
the rollouts that were being made when an actor or an environment was killed: nobody learns from their steps, others are
made instead, and the number is the most that it can be. *Left* are processes and files of shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "kills.json"
STEPS, CHECKPOINT, EPISODES = 8000, 800, 300
TOY = ("env=toy_reach", "env.num_envs=8", "agent=impala", "data.rollout_length=10")
SMALL = ("network.trunk.width=16", "network.trunk.depth=1", f"total_steps={STEPS}", "run_dir=run")
INTERVALS = ("log.every=80", "log.tensorboard=false", "eval.every=4000", f"checkpoint.every={CHECKPOINT}")
TRAIN = ("-m", "mtrl.train", *SMALL, *INTERVALS, "eval.episodes_per_task=2", "resume=auto")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--standalone")
EVALUATE = ("-m", "mtrl.evaluate", f"episodes_per_task={EPISODES}", "out=evaluation", "actors=2")
GYM = ("env=gym", "env.ids=[Pendulum-v1]", "env.num_envs=8", "env.num_workers=2", "env.reports_success=false")
ROLLOUT = 80
"""Steps of a rollout: ten in each of eight slots, or half as many in each of two actors."""
SLOTS = 20
"""Slots of an evaluation worker: five of each task."""
ADDRESS = "127.0.0.1:6398"
MARK = "MTRL_KILLS"
"""Environment variable of everything that this process starts."""


@dataclass(frozen=True)
class Kind:
    """A kind of process.

    Attributes:
        title: Regular expression for its command line.
        command: Arguments of Python.
        again: Whether the command has to be given again, because the killed process ends the run.
        same: Whether the result is that of an undisturbed run.
        loses: The most steps that are lost with it.
        ray: Whether it belongs to a Ray cluster.
    """

    title: str
    command: tuple[str, ...]
    again: bool = False
    same: bool = False
    loses: int = 0
    ray: bool = False


KINDS = {
    "learner": Kind(r"-m mtrl\.train", (*TRAIN, *TOY), again=True, same=True),
    "rank": Kind(r"-u -m mtrl\.train", (*TORCHRUN, *TRAIN, *TOY), same=True),
    "environment worker": Kind(r"mtrl\.envs\.worker", (*TRAIN, *GYM, *TOY[2:]), again=True, loses=ROLLOUT),
    "actor": Kind(r"mtrl\.parallel\.actor'", (*TRAIN, *TOY, "actors=2"), loses=ROLLOUT // 2),
    "evaluation worker": Kind(r"mtrl\.parallel\.evaluation'", EVALUATE, same=True),
    "Ray actor": Kind(r"ray::RayActor", (*TRAIN, *TOY, "actors=2", "transport=ray"), loses=ROLLOUT // 2, ray=True),
    "Ray node": Kind(
        r"/raylet/raylet .*sockets/raylet\.", (*TRAIN, *TOY, "actors=2", "transport=ray"), loses=ROLLOUT // 2, ray=True
    ),
    "Ray evaluation worker": Kind(r"ray::messages", (*EVALUATE, "transport=ray"), same=True, ray=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


def processes(title: str) -> list[int]:
    """Processes that this one, or one of those, has started, and whose command line matches a regular expression."""
    found, mark = [], f"{MARK}={os.environ[MARK]}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            ours = mark in (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and words.strip() and int(path.name) != os.getpid() and re.search(title, words):
            found.append(int(path.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of a condition, or its last value after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def ray(*arguments: str) -> None:
    """A command of Ray's."""
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"ray {' '.join(arguments)}: {done.stdout}{done.stderr}")


class Cluster:
    """A Ray cluster on this machine: a head, and nodes with so many cores each."""

    def __init__(self, folder: Path, nodes: Sequence[int], memory: int = 80_000_000) -> None:
        """`memory`: bytes of the object store of each node."""
        self.limits = [f"--object-store-memory={memory}", "--disable-usage-stats"]
        head, port = ADDRESS.split(":")
        place = [f"--node-ip-address={head}", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        ray("start", "--head", *place, f"--num-cpus={nodes[0]}", *self.limits)
        for cores in nodes[1:]:
            self.add(cores)

    def add(self, cores: int) -> None:
        """Starts another node."""
        ray("start", f"--address={ADDRESS}", f"--num-cpus={cores}", *self.limits)

    @property
    def nodes(self) -> list[int]:
        """The process of each node but the head."""
        return processes(KINDS["Ray node"].title)


@contextmanager
def cluster(nodes: Sequence[int], memory: int = 80_000_000) -> Iterator[Cluster]:
    """A `Cluster`, of which nothing is left at the end."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Cluster(Path(folder), nodes, memory)
        finally:
            for process in processes("ray"):
                os.kill(process, signal.SIGKILL)
            wait_for(lambda: not processes("ray"), 20)


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def start(kind: Kind, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, *kind.command], cwd=folder, stdout=log, stderr=log)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Whole rows of the log of a run so far."""
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def result(folder: Path) -> Any:
    """What a run has come to: episodes of an evaluation, or the last policy and the log without times."""
    evaluation = folder / "evaluation" / "eval.json"
    if evaluation.exists():
        episodes = json.loads(evaluation.read_text())["episodes"]
        return {task: (columns["success"], columns["length"]) for task, columns in episodes.items()}
    policy = (folder / "run" / "checkpoints" / "last" / "policy" / "model.safetensors").read_bytes()
    log = [{key: x for key, x in row.items() if not key.startswith("time/")} for row in rows(folder)]
    return policy, json.dumps(log)


def finished(kind: Kind, folder: Path) -> bool:
    if "mtrl.evaluate" in kind.command:
        return all(len(successes) == EPISODES for successes, _ in result(folder).values())
    return bool(rows(folder)[-1]["step"] >= STEPS)


def killed(kind: Kind, folder: Path, after: float) -> dict[str, Any] | None:
    """Starts a run, kills a process of this kind after so many seconds, and counts.

    None if the run was over by then.
    """
    before, ended = shared_memory(), (lambda: run.poll() is not None)
    run = start(kind, folder)
    time.sleep(after)
    wait_for(lambda: ended() or processes(kind.title), 60)
    victims = processes(kind.title)
    if ended() or not victims:
        run.wait()
        return None
    victim = random.choice(victims)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in processes(""), 10)
    logged = rows(folder)
    step = logged[-1]["step"] if logged else 0
    code = run.wait(timeout=300)
    if kind.again:
        code = start(kind, folder).wait(timeout=300)
    left = "mtrl|ray::RayActor|ray::messages"
    wait_for(lambda: not processes(left), 10)
    said = (folder / "log").read_text()
    resumed = [int(number.replace(",", "")) for number in re.findall(r"Resuming run at step ([\d,]+)", said)]
    restarts = said.count("It was started again")
    if "mtrl.evaluate" in kind.command:
        repeated = SLOTS * said.count("other episodes begin again")
    else:
        repeated = step - (resumed[-1] if resumed else 0) if kind.again or kind.same else 0
    return {
        "after_s": round(after, 2),
        "step": step,
        "exit_code": code,
        "finished": code == 0 and finished(kind, folder),
        "restarts": restarts,
        "repeated": repeated,
        "lost": kind.loses * (restarts + len(resumed)),
        "left": len(processes(left)) + len({name for name in shared_memory() - before if "plasma" not in name}),
    }


def repeat(name: str, times: int, done: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Kills processes of a kind until there are so many runs; yields all of them after each."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as root, cluster([2, 2]) if kind.ray else nullcontext() as nodes:
        undisturbed = Path(root) / "undisturbed"
        if "mtrl.evaluate" in kind.command:
            (Path(root) / "trained").mkdir()
            assert start(KINDS["learner"], Path(root) / "trained").wait() == 0
            kind = Kind(kind.title, (*kind.command, f"run={root}/trained/run"), same=True, ray=kind.ray)
        undisturbed.mkdir()
        began = time.monotonic()
        assert start(kind, undisturbed).wait() == 0, (undisturbed / "log").read_text()
        duration, expected = time.monotonic() - began, result(undisturbed)
        while len(done) < times:
            folder = Path(root) / "killed"
            folder.mkdir()
            row = killed(kind, folder, random.uniform(0, duration))
            if row is not None:
                row["same"] = row["finished"] and result(folder) == expected
                done.append(row)
                print(name, row, flush=True)
                yield done
                if not row["finished"]:
                    print((folder / "log").read_text())
            if nodes is not None and not nodes.nodes:
                nodes.add(2)
            shutil.rmtree(folder)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each kind of process, in Markdown."""
    lines = [
        "| killed | runs | finished | the same as undisturbed | repeated, median (most) | lost at most | left behind |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        kind, repeated = KINDS[name], sorted(row["repeated"] for row in runs)
        unit = "episodes" if "mtrl.evaluate" in kind.command else "steps"
        of_median = f"{repeated[len(repeated) // 2]:,} ({repeated[-1]:,}) {unit}"
        same = f"{sum(row['same'] for row in runs)}" if kind.same else "cannot be"
        lost = max(row["lost"] for row in runs)
        counts = [len(runs), sum(row["finished"] for row in runs), same, of_median, f"{lost} steps"]
        cells = " | ".join(map(str, [name, *counts, sum(row["left"] for row in runs)]))
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    if options.command == "table":
        print(table(found))
        return
    os.environ[MARK] = str(os.getpid())
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in options.kinds:
        for runs in repeat(name, options.times, found.get(name, [])):
            found[name] = runs
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    if left := processes(""):
        print(f"Left behind at the end: {left}")


if __name__ == "__main__":
    main()
