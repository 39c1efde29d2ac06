"""Environment steps per second of training in several ranks, as a ratio to one process with as many threads.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 benchmarks/ranks_speed.py env=mt10 agent=ppo
    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 benchmarks/ranks_speed.py env=toy_reach agent=impala --updates 20

Both learn from the same numbers of slots and samples. Everything is timed that training does, apart from logs,
evaluations and checkpoints. The two take turns in short rounds, in which the other ranks wait for the first one while
that trains alone, with all cores. Each is compared with the other of the same round; the numbers are medians.

`exchange` is the share of the first rank's time in which it adds up gradients and statistics with the others, and
includes the waiting for slower ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrl.config import TrainConfig, composed, train_config
from mtrl.parallel.ranks import ProcessGroup, started_ranks
from mtrl.run.loop import seed_everything
from mtrl.run.timing import PhaseTimer
from mtrl.train import make_learner, make_source
from mtrl.types import ONE_PROCESS, Ranks


class TimedGroup(ProcessGroup):
    """Measures the time in which tensors are added up, and their bytes."""

    seconds = 0.0
    sent = 0

    def _sum_in_place(self, x: Tensor) -> Tensor:
        began = time.perf_counter()
        result = super()._sum_in_place(x)
        self.seconds += time.perf_counter() - began
        self.sent += x.numel() * x.element_size()
        return result


class Candidate:
    """A training run without logs, evaluations and checkpoints, on given cores."""

    def __init__(self, config: TrainConfig, ranks: Ranks, cores: set[int]) -> None:
        self.ranks, self.cores, self.held = ranks, cores, ExitStack()
        os.sched_setaffinity(0, cores)
        seed_everything(config.seed + ranks.rank)
        self.source, episodes, _ = make_source(config, PhaseTimer(), print, self.held, ranks)
        self.learner = make_learner(config, episodes, self.source)
        self.source.connect(self.learner.policy)

    def iterate(self) -> int:
        """Collects and learns once; returns the number of steps of all ranks."""
        steps = self.source.collect(self.learner, 0.0) * self.ranks.size
        for batch in self.source.batches():
            metrics = self.learner.update(batch, 0.0)
            assert all(torch.isfinite(value).all() for value in metrics.values() if value.ndim == 0)
        return steps

    def rate(self, updates: int) -> tuple[float, float]:
        """Steps per second over this many iterations, and the seconds."""
        os.sched_setaffinity(0, self.cores)
        torch.set_num_threads(len(self.cores))
        self.ranks.gather(None)  # begin together
        began = time.perf_counter()
        steps = sum(self.iterate() for _ in range(updates))
        elapsed = time.perf_counter() - began
        return steps / elapsed, elapsed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="as for mtrl.train: env=... agent=...")
    parser.add_argument("--updates", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    every_core = os.sched_getaffinity(0)
    with started_ranks() as started:
        if not isinstance(started, ProcessGroup):
            parser.error("start it with torchrun --nproc-per-node=2")
        ranks = TimedGroup(started.store)
        config = train_config(composed(options.overrides, "train"))
        joint = Candidate(config, ranks, os.sched_getaffinity(0))
        alone = Candidate(config, ONE_PROCESS, every_core) if ranks.rank == 0 else joint  # only used in the first rank
        rows: list[dict[str, float]] = []
        for _ in range(options.rounds + 1):  # the first is not counted
            of_alone, _ = ranks.first(lambda: alone.rate(options.updates))
            ranks.seconds = ranks.sent = 0
            of_joint, elapsed = joint.rate(options.updates)
            row = {"alone": of_alone, "ranks": of_joint, "ratio": of_joint / of_alone}
            row |= {"exchange": ranks.seconds / elapsed, "bytes": ranks.sent / options.updates}
            rows.append(row)
        median: dict[str, Any] = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
        print(
            f"one process, {len(every_core)} threads: {median['alone']:.0f} steps/s; {ranks.size} ranks: "
            f"{median['ranks']:.0f} steps/s, {median['ratio']:.2f} of it. Exchange: {median['exchange']:.0%} of the "
            f"time, {median['bytes'] / 1e6:.2f} MB per iteration."
        )
        if options.output and ranks.rank == 0:
            machine = {"cores": len(every_core), "machine": platform.machine(), "torch": torch.__version__}
            numbers = {**machine, "command": options.overrides, "ranks": ranks.size, "median": median, "rounds": rows}
            options.output.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
