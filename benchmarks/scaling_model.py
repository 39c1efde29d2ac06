"""Predicts how training with many actors and learners scales, from constants that are measured on this machine.

    python benchmarks/scaling_model.py measure     # results/scaling_constants.json: minutes, on cores that are idle
    python benchmarks/scaling_model.py table       # the table of docs/distributed.md from it
    python benchmarks/scaling_model.py check       # beside training here with 1, 2 and 4 actors: on idle cores;
                                                   # results/scaling_check.json

The model is a queue. An actor reads the newest weights, acts for a rollout, sends it, and waits until its learner has
received it. A learner receives its share of the rollouts of an update one by one, computes its gradients, adds them up
with the other learners after each step, and publishes the weights. As learners wait for one another, one is simulated.
Weights and rollouts pass its link one after the other. Every actor and every learner has a core or an accelerator of
its own, of the kind that the constants were measured on.

Computing is measured in seconds of the processor, with one thread, so that other programs on the machine change it
little; only the exchange of gradients between two processes (gloo) is measured by the clock, as the fastest of many.
The bandwidth of a link is not measured but given: --link, in bytes per second.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed

from mtrl.config import composed, train_config
from mtrl.parallel.actor import broadcast_tree
from mtrl.run.timing import PhaseTimer
from mtrl.system.memory import SharedTensors, WeightBroadcast, copy_into, leaves
from mtrl.train import make_learner, make_source

RESULTS = Path(__file__).parents[1] / "results" / "scaling_constants.json"
RUNS = {
    "Meta-World MT10": ["env=mt10", "agent=impala", "data.rollout_length=50"],
    "Atari Pong": ["env=atari", "env.games=pong", "agent=impala", "torso=shallow_cnn"],
}
ROLLOUTS = 64
"""Rollouts of an update, of all learners together: at most this many learners have one each."""
SLOTS = 10
"""Slots of an actor."""
ACTORS, LEARNERS = (1, 2, 4, 16, 64, 256, 1000), (1, 8, 64)
CHECK = RESULTS.with_name("scaling_check.json")
LINK = 1.25e9
"""Bytes per second: a network of 10 Gbit/s."""


@dataclass(frozen=True)
class Constants:
    """Of one benchmark on one machine."""

    rollout_steps: int
    """Environment steps of a rollout."""
    act_s: float
    """Seconds in which an actor makes one: weights, inference, simulation, writing it."""
    rollout_bytes: int
    weights_bytes: int
    receive_s: float
    """Seconds in which a learner receives a rollout."""
    update_s: float
    """Seconds in which a learner computes its part of an update, for each rollout in it."""
    publish_s: float
    """Seconds in which a learner publishes its weights."""
    gradient_bytes: int
    """Of one gradient step."""
    gradient_steps: int
    """Of an update."""
    latency_s: float
    """Seconds in which two processes add up one number."""
    exchange_bytes_per_s: float
    """Bytes of gradients that two processes add up in a second."""

    def exchange_s(self, learners: int) -> float:
        """Seconds of an update in which gradients go around a ring, twice, in parts of 1 / learners."""
        passes = 2 * (learners - 1)
        each = self.latency_s + self.gradient_bytes / learners / self.exchange_bytes_per_s
        return self.gradient_steps * passes * each


class Prediction(NamedTuple):
    steps_per_s: float
    """Environment steps of all actors per second."""
    lag: float
    """Mean age of the weights that a rollout was made with when it is learned from, in updates."""
    busy: dict[str, float]
    """Share of the time in which each part works."""

    @property
    def bottleneck(self) -> str:
        return max(self.busy, key=lambda part: self.busy[part])


def predict(
    constants: Constants, actors: int, learners: int, rollouts: int = ROLLOUTS, link: float = LINK
) -> Prediction:
    """Simulates one learner with its share of the actors until it is in its stride, and then as long again.

    Args:
        rollouts: Of an update, of all learners together.
        link: Bytes per second between a learner and its actors.
    """
    c, own = constants, actors // learners
    share = rollouts // learners
    update_s = share * c.update_s + c.exchange_s(learners) + c.publish_s
    events = [(i * c.act_s / own, i, "begins") for i in range(own)]  # time, actor, what happens
    waiting: deque[int] = deque()  # actors whose rollouts have arrived
    began = [0] * own  # updates before the rollout of each actor
    link_free, busy, received, updates = 0.0, False, 0, 0
    in_stride = 20 + 4 * own // share
    lags: list[int] = []
    start = now = 0.0
    while updates < 2 * in_stride:
        now, actor, event = heapq.heappop(events)
        if event in ("begins", "sends"):
            size = c.weights_bytes if event == "begins" else c.rollout_bytes
            link_free = max(link_free, now) + size / link
            after = (link_free + c.act_s, actor, "sends") if event == "begins" else (link_free, actor, "arrives")
            heapq.heappush(events, after)
            if event == "begins":
                began[actor] = updates
        elif event == "arrives":
            waiting.append(actor)
        elif event == "received":
            lags.append(updates - began[actor])
            heapq.heappush(events, (now, actor, "begins"))
            busy, received = False, received + 1
            if received == share:
                busy, received = True, 0
                heapq.heappush(events, (now + update_s, -1, "updated"))
        else:
            busy, updates = False, updates + 1
            if updates == in_stride:
                start, lags = now, []
        if waiting and not busy:
            busy = True
            heapq.heappush(events, (now + c.receive_s, waiting.popleft(), "received"))
    per_s = in_stride / (now - start)  # updates
    parts = {
        "actors": share * c.act_s / own,
        "receiving": share * c.receive_s,
        "update": share * c.update_s + c.publish_s,
        "exchange": c.exchange_s(learners),
        "link": share * (c.rollout_bytes + c.weights_bytes) / link,
    }
    return Prediction(
        per_s * share * c.rollout_steps * learners,
        statistics.fmean(lags),
        {part: per_s * seconds for part, seconds in parts.items()},
    )


def table(constants: dict[str, Constants], link: float = LINK) -> str:
    """A row for each number of actors and learners, in Markdown."""
    names = list(constants)
    lines = [
        "| actors | learners | " + " | ".join(f"{name}: steps/s | lag | bottleneck" for name in names) + " |",
        "| --- " * (2 + 3 * len(names)) + "|",
    ]
    for actors in ACTORS:
        for learners in LEARNERS:
            if learners <= actors:
                found = [predict(constants[name], actors, learners, link=link) for name in names]
                cells = [f"{p.steps_per_s:,.0f} | {p.lag:.1f} | {p.bottleneck}" for p in found]
                lines.append(f"| {actors:,} | {learners} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], repeats: int = 5, clock: Callable[[], float] = time.process_time) -> float:
    """The fastest of some repetitions, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        began = clock()
        work()
        found.append(clock() - began)
    return min(found[1:])


def exchanging(numbers: int) -> None:
    """One of two processes that add up numbers: the first prints the seconds of the fastest time."""
    torch.distributed.init_process_group("gloo")
    gradient = torch.ones(numbers)
    fastest = seconds(lambda: torch.distributed.all_reduce(gradient), 30, time.perf_counter)
    if torch.distributed.get_rank() == 0:
        print(fastest)
    torch.distributed.destroy_process_group()


def exchange_s(numbers: int) -> float:
    """Seconds in which two processes of this machine add up so many numbers."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launcher, __file__, "exchanging", str(numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def measured(overrides: Sequence[str]) -> Constants:
    """Constants of a run with the settings of `mtrl.train`."""
    torch.set_num_threads(1)
    acting, learning = (
        train_config(composed([*overrides, *more], "train")) for more in ([f"env.num_envs={SLOTS}"], ["seed=2"])
    )
    with ExitStack() as held:
        source, episodes, _ = make_source(acting, PhaseTimer(), print, held)
        learner = make_learner(acting, episodes, source)
        source.connect(learner.policy)
        rollouts: list[Any] = []

        def collect() -> None:
            source.collect(learner, 0.0)
            rollouts[:] = source.batches()

        collect_s = seconds(collect)
        (rollout,) = rollouts
        weights = broadcast_tree(learner.policy, episodes.sampler.probabilities())
        broadcast, own = WeightBroadcast.like(weights), {key: tensor.clone() for key, tensor in flat(weights).items()}
        publish_s = seconds(lambda: broadcast.publish(weights))
        read_s = seconds(lambda: [own[key].copy_(tensor) for key, tensor in flat(weights).items()])
        slot = SharedTensors.like(vars(rollout))
        write_s = seconds(lambda: copy_into(slot.tensors, vars(rollout)))
        receive_s = seconds(lambda: [tensor.clone() for _, tensor in leaves(slot.tensors)])
        steps = [step.parameters for step in learner.optimizers.values()]
    with ExitStack() as held:
        source, episodes, _ = make_source(learning, PhaseTimer(), print, held)
        learner = make_learner(learning, episodes, source)
        source.connect(learner.policy)
        source.collect(learner, 0.0)
        (batch,) = source.batches()
        update_s = seconds(lambda: learner.update(batch, 0.0), 3)
    numbers = sum(parameter.numel() for parameters in steps for parameter in parameters)
    one, all_of_them = exchange_s(1), exchange_s(numbers)
    size = rollout.task.numel()
    return Constants(
        rollout_steps=size,
        act_s=collect_s + read_s + write_s,
        rollout_bytes=sum(tensor.nbytes for _, tensor in leaves(vars(rollout))),
        weights_bytes=sum(tensor.nbytes for _, tensor in leaves(weights)),
        receive_s=receive_s,
        update_s=update_s * size / batch.task.numel(),
        publish_s=publish_s,
        gradient_bytes=4 * numbers,
        gradient_steps=learning.agent.get("num_epochs", 1) * learning.agent.get("num_minibatches", 1),
        latency_s=one / 2,  # two passes
        exchange_bytes_per_s=4 * numbers / max(all_of_them - one, 1e-9),
    )


def flat(tree: dict[str, Any]) -> dict[tuple[str, ...], torch.Tensor]:
    return dict(leaves(tree))


def machine() -> dict[str, Any]:
    """What the constants depend on besides the settings."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": names[0] if names else platform.machine(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def stored() -> dict[str, Constants]:
    return {name: Constants(**of_run) for name, of_run in json.loads(RESULTS.read_text())["constants"].items()}


def on_cores(constants: Constants, actors: int, cores: int) -> float:
    """Steps per second as predicted, or what so few cores can do if all of them always work."""
    c = constants
    work = c.act_s + c.receive_s + c.update_s + c.publish_s / actors  # seconds for a rollout
    return min(predict(c, actors, 1, rollouts=actors, link=float("inf")).steps_per_s, cores * c.rollout_steps / work)


def check(rounds: int) -> None:
    """Steps per second with 1, 2 and 4 actors, of as many slots each, beside what is predicted for these cores."""
    constants, rows = stored(), []
    for name, overrides in RUNS.items():
        for actors in (1, 2, 4):  # an update has a rollout of each
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "actors.json"
                script = str(Path(__file__).with_name("actors.py"))
                command = [sys.executable, script, *overrides, f"env.num_envs={SLOTS * actors}"]
                command += ["--actors", str(actors), "--rounds", str(rounds), "--output", str(output)]
                subprocess.run(command, check=True)
                found = json.loads(output.read_text())
            measured, predicted = found["rows"][1]["steps_per_s"], on_cores(constants[name], actors, found["cores"])
            print(f"{name}, {actors}: {measured:.0f} steps/s, predicted {predicted:.0f}: {predicted / measured:.2f}")
            rows.append({"training": name, "actors": actors, "steps_per_s": measured, "predicted": predicted})
    CHECK.write_text(json.dumps({**machine(), "cores": found["cores"], "rows": rows}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure")
    commands.add_parser("table").add_argument("--link", type=float, default=LINK, help="bytes per second")
    commands.add_parser("check").add_argument("--rounds", type=int, default=7)
    commands.add_parser("exchanging").add_argument("numbers", type=int)  # what `measure` starts in two processes
    options = parser.parse_args(arguments)
    if options.command == "measure":
        found = {name: asdict(measured(overrides)) for name, overrides in RUNS.items()}
        RESULTS.write_text(json.dumps({**machine(), "runs": RUNS, "constants": found}, indent=1) + "\n")
        print(RESULTS.read_text())
    elif options.command == "table":
        print(table(stored(), options.link))
    elif options.command == "check":
        check(options.rounds)
    else:
        exchanging(options.numbers)


if __name__ == "__main__":
    main()
