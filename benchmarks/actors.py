"""Environment steps per second of training with asynchronous actors, as ratios to training without, side by side.

    python benchmarks/actors.py env=toy_reach agent=impala                    # 1 actor, and one per core
    python benchmarks/actors.py env=mt10 agent=ppo --actors 2 4 --rounds 5 --updates 3 --output actors.json
    taskset -c 0 python benchmarks/actors.py env=mt10 agent=ppo --actors      # of one core: N can give N times this

Everything is timed that training does, apart from logs, evaluations and checkpoints: acting, simulation, learning, and
what passes between the processes. The candidates take turns in short rounds, and each is compared with the serial one
of the same round, so that whatever else runs on the machine slows all of them; the numbers are medians over rounds.
A round begins with one update that is not timed, so that actors are as busy when the clock starts as when it stops,
and ends when all are idle, so that they take nothing from the next candidate.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from mtrl.config import TrainConfig, composed, train_config
from mtrl.parallel.transport import LocalProcesses
from mtrl.run.loop import seed_everything
from mtrl.run.timing import PhaseTimer
from mtrl.system.cores import available_cores
from mtrl.system.tuning import threads_beside
from mtrl.train import make_learner, make_source


class Candidate:
    """A training run without logs, evaluations and checkpoints."""

    def __init__(self, config: TrainConfig) -> None:
        seed_everything(config.seed)
        self.timer, self.config = PhaseTimer(), config
        self.held = ExitStack()
        self.source, episodes, _ = make_source(config, self.timer, print, self.held)
        self.learner = make_learner(config, episodes, self.source)
        self.source.connect(self.learner.policy)
        self.waited = 0.0

    def iterate(self) -> int:
        """Collects and learns once; returns the number of steps."""
        steps = self.source.collect(self.learner, 0.0)
        for batch in self.source.batches():
            metrics = self.learner.update(batch, 0.0)
        assert all(torch.isfinite(value).all() for value in metrics.values())  # waits for the device, too
        return steps

    def rate(self, updates: int) -> float:
        """Steps per second over this many iterations."""
        with threads_beside(self.config.actors):
            self.iterate()
            self.timer.reset()
            start = time.perf_counter()
            steps = sum(self.iterate() for _ in range(updates))
            elapsed = time.perf_counter() - start
            self.waited = self.timer.seconds.get("wait", 0.0) / elapsed
        transport = getattr(self.source, "transport", None)
        if isinstance(transport, LocalProcesses):
            while not all(process.connection.poll() for process in transport.processes.values()):
                time.sleep(0.05)
        return steps / elapsed


def main(arguments: Sequence[str] | None = None) -> None:
    cores = available_cores()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="as for mtrl.train: env=... agent=...")
    parser.add_argument("--actors", nargs="*", type=int, default=sorted({1, cores}))
    parser.add_argument("--updates", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)

    candidates = {
        count: Candidate(train_config(composed([*options.overrides, f"actors={count}"], "train")))
        for count in [0, *options.actors]
    }
    rates: dict[int, list[float]] = {count: [] for count in candidates}
    waited: dict[int, list[float]] = {count: [] for count in candidates}
    for _ in range(options.rounds + 1):  # the first is not counted
        for count, candidate in candidates.items():
            rates[count].append(candidate.rate(options.updates))
            waited[count].append(candidate.waited)
    rows = []
    for count, candidate in candidates.items():
        candidate.held.close()
        own, serial = rates[count][1:], rates[0][1:]
        row = {
            "actors": count,
            "steps_per_s": statistics.median(own),
            "of_serial": statistics.median(a / b for a, b in zip(own, serial, strict=True)),
            "waited": statistics.median(waited[count][1:]),
        }
        rows.append(row)
        print(
            f"{count:3} actors {row['steps_per_s']:9.0f} steps/s {row['of_serial']:6.2f} of serial, "
            f"learner waits {row['waited']:4.0%}"
        )
    if options.output:
        machine = {"cores": cores, "machine": platform.machine(), "torch": torch.__version__}
        options.output.write_text(json.dumps({**machine, "command": options.overrides, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
