"""Environment steps per second of training with asynchronous actors, as ratios to training without, side by side.

    python benchmarks/actors.py env=toy_reach agent=impala                    # 1 actor, and one per core
    python benchmarks/actors.py env=mt10 agent=ppo --actors 2 4 --rounds 5 --updates 3 --output actors.json
    taskset -c 0 python benchmarks/actors.py env=mt10 agent=ppo --actors      # of one core: N can give N times this
    python benchmarks/actors.py env=mt10 agent=impala --actors 2 --ray 2      # beside two in the Ray cluster that runs

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
from mtrl.parallel.ray_actors import RayActors
from mtrl.parallel.transport import LocalProcesses, Transport
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
        while not idle(getattr(self.source, "transport", None)):
            time.sleep(0.05)
        return steps / elapsed


def idle(transport: Transport | None) -> bool:
    """Whether a rollout of each actor waits."""
    if isinstance(transport, LocalProcesses):
        return all(process.connection.poll() for process in transport.processes.values())
    if isinstance(transport, RayActors):
        rollouts = [running.rollout for running in transport.running.values()]
        return len(transport._ray.wait(rollouts, num_returns=len(rollouts), timeout=0)[0]) == len(rollouts)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    cores = available_cores()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="as for mtrl.train: env=... agent=...")
    parser.add_argument("--actors", nargs="*", type=int, default=sorted({1, cores}))
    parser.add_argument("--ray", type=int, default=0, help="also so many actors with transport=ray")
    parser.add_argument("--updates", type=int, default=10, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)

    kinds = [(count, "local") for count in [0, *options.actors]] + [(options.ray, "ray")] * bool(options.ray)
    candidates = {
        (count, transport): Candidate(
            train_config(composed([*options.overrides, f"actors={count}", f"transport={transport}"], "train"))
        )
        for count, transport in kinds
    }
    rates: dict[tuple[int, str], list[float]] = {kind: [] for kind in kinds}
    waited: dict[tuple[int, str], list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds + 1):  # the first is not counted
        for kind, candidate in candidates.items():
            rates[kind].append(candidate.rate(options.updates))
            waited[kind].append(candidate.waited)
    rows = []
    for kind, candidate in candidates.items():
        candidate.held.close()
        (count, transport), own, serial = kind, rates[kind][1:], rates[0, "local"][1:]
        row = {
            "actors": count,
            "transport": transport,
            "steps_per_s": statistics.median(own),
            "of_serial": statistics.median(a / b for a, b in zip(own, serial, strict=True)),
            "waited": statistics.median(waited[kind][1:]),
        }
        rows.append(row)
        print(
            f"{count:3} actors, {transport:5} {row['steps_per_s']:9.0f} steps/s {row['of_serial']:6.2f} of serial, "
            f"learner waits {row['waited']:4.0%}"
        )
    if options.output:
        machine = {"cores": cores, "machine": platform.machine(), "torch": torch.__version__}
        options.output.write_text(json.dumps({**machine, "command": options.overrides, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
