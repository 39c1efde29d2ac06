"""Environment steps per second of Meta-World, side by side in one run, as ratios to the bare physics.

    python benchmarks/metaworld_speed.py                                 # mt1, mt10 and mt50, one thread and all
    python benchmarks/metaworld_speed.py --env mt10 --num-envs 40 160 640 --threads 1 2 --output speed.json

What is compared: the published environments as `gymnasium.make_vec("Meta-World/...")` makes them (sync: in this
process; async: a process each), this project's `physics=rollout`, EnvPool where it is installed, and the ceiling:
`mujoco.rollout` alone, five steps and a sixth for the poses, on the same models, from the same states, with the same
controls, without observations and rewards.

All candidates take the same random actions from a reset. They take turns in short rounds, and each is compared with
the ceiling (one thread per core) of the same round, so that whatever else runs on the machine slows all of them; the
numbers are medians over rounds. Memory is the peak of a process that makes the environment and steps it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import metaworld
import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from numpy.typing import NDArray

import mtrl.envs
from mtrl.envs.metaworld.rollout_physics import CONTROL, FRAME_SKIP, RolloutVecEnv
from mtrl.envs.metaworld.scenes import Scene
from mtrl.system.cores import available_cores

PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS
Array = NDArray[Any]


class Candidate(Protocol):
    """Something whose steps are timed."""

    num_envs: int

    def reset(self) -> None:
        """Goes back to the first state. Not timed."""
        ...

    def run(self) -> None:
        """Takes all steps of a round."""
        ...


class Batched:
    """This project's physics."""

    def __init__(self, name: str, num_envs: int, threads: int, actions: torch.Tensor) -> None:
        options = {"task": "push-v3"} if name == "mt1" else {}
        env = mtrl.envs.make(name, num_envs=num_envs, physics="rollout", num_workers=threads, **options)
        assert isinstance(env, RolloutVecEnv)
        self.env, self.num_envs, self.actions = env, num_envs, actions

    def reset(self) -> None:
        self.env.reset(seed=0)

    def run(self) -> None:
        for action in self.actions:
            self.env.step(action)


class Ceiling:
    """The bare physics of a `Batched` candidate."""

    def __init__(self, batched: Batched, threads: int) -> None:
        self.num_envs, env = batched.num_envs, batched.env
        batched.reset()
        simulations = [env._simulation(slot) for slot in range(self.num_envs)]
        scenes: dict[Scene, list[int]] = {}
        for slot, simulation in enumerate(simulations):
            scenes.setdefault(simulation.scene, []).append(slot)
        states = [np.empty(mujoco.mj_stateSize(s.model, PHYSICS)) for s in simulations]
        for state, simulation in zip(states, simulations, strict=True):
            mujoco.mj_getState(simulation.model, simulation.data, state, PHYSICS)
        controls = []
        for action in batched.actions:
            env.step(action)
            controls.append(env._control.copy())
        control = np.repeat(np.array(controls)[:, :, None], FRAME_SKIP + 1, axis=2)  # (T, B, steps, 9)
        self.pool, self.steps = Rollout(nthread=threads), len(controls)
        self.calls = []
        for slots in scenes.values():
            models = [simulations[slot].model for slot in slots]
            data = [mujoco.MjData(models[0]) for _ in range(threads)]
            first = np.array([states[slot] for slot in slots])
            outputs = {
                "state": np.zeros((len(slots), FRAME_SKIP + 1, first.shape[1])),
                "sensordata": np.zeros((len(slots), FRAME_SKIP + 1, models[0].nsensordata)),
            }
            self.calls.append((models, data, first, first.copy(), np.ascontiguousarray(control[:, slots]), outputs))

    def reset(self) -> None:
        for _, _, first, state, _, _ in self.calls:
            state[:] = first

    def run(self) -> None:
        settings = {"control_spec": int(CONTROL), "nstep": FRAME_SKIP + 1, "skip_checks": True}
        for t in range(self.steps):
            for models, data, _, state, control, outputs in self.calls:
                self.pool.rollout(models, data, state, control[t], **settings, **outputs)
                state[:] = outputs["state"][:, FRAME_SKIP - 1]


class Official:
    """The published vector environments, one environment per task (`mt1`: as many as asked for)."""

    def __init__(self, name: str, num_envs: int, strategy: str, actions: torch.Tensor) -> None:
        if name == "mt1":
            self.env = gymnasium.make_vec(
                "Meta-World/MT1", num_envs=num_envs, vectorization_mode=strategy, env_name="push-v3", seed=0
            )
        else:
            self.env = gymnasium.make_vec(f"Meta-World/{name.upper()}", vector_strategy=strategy, seed=0)
        self.num_envs, self.actions = self.env.num_envs, actions[:, : self.env.num_envs].numpy()

    def reset(self) -> None:
        self.env.reset(seed=0)

    def run(self) -> None:
        for action in self.actions:
            self.env.step(action)


class EnvPool:
    """EnvPool's own port, one pool per task, all pools at work at once."""

    def __init__(self, name: str, num_envs: int, threads: int, actions: torch.Tensor) -> None:
        import envpool

        tasks = ("push-v3",) if name == "mt1" else tuple(getattr(metaworld, name.upper())().train_classes)
        self.num_envs, per_task = num_envs, num_envs // len(tasks)
        self.actions = actions.unflatten(1, (len(tasks), per_task)).numpy()
        camel = ["".join(word.capitalize() for word in task.removesuffix("-v3").split("-")) for task in tasks]
        self.pools = [
            envpool.make_gymnasium(f"MetaWorld/{task}-v3", num_envs=per_task, num_threads=threads, seed=0)
            for task in camel
        ]

    def reset(self) -> None:
        for pool in self.pools:
            pool.reset()

    def run(self) -> None:
        for action in self.actions:
            for pool, own in zip(self.pools, action, strict=True):
                pool.send(own)
            for pool in self.pools:
                pool.recv()


def groups(name: str, num_envs: int, threads: Sequence[int], actions: torch.Tensor) -> Iterator[dict[str, Candidate]]:
    """Candidates that take turns, each group with the ceiling on all cores (the last of `threads`).

    All at once would need more than 24 GB with mt50. So whoever takes a group empties it. Candidates of different
    groups are compared by their ratios to the ceiling.
    """
    cores = threads[-1]
    for count in threads:
        batched = Batched(name, num_envs, count, actions)
        group: dict[str, Candidate] = {f"rollout, {count} threads": batched}
        group |= {f"ceiling, {n} threads": Ceiling(batched, n) for n in sorted({count, cores})}
        del batched
        if count == cores:
            try:
                group["EnvPool"] = EnvPool(name, num_envs, cores, actions)
            except ImportError:
                print("EnvPool is not installed: left out (pip install envpool).")
        yield group
    official = [Official(name, num_envs, strategy, actions) for strategy in ("sync", "async")]
    group = {"official sync": official[0], "official async": official[1]}
    group[f"ceiling, {cores} threads"] = Ceiling(Batched(name, num_envs, cores, actions), cores)
    yield group
    for candidate in official:
        candidate.env.close()


def measure(candidates: dict[str, Candidate], ceiling: str, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Steps per second and the ratio to the ceiling of the same round: medians over all rounds but a first one."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, candidate in candidates.items():
            candidate.reset()
            start = time.perf_counter()
            candidate.run()
            rates[name].append(steps * candidate.num_envs / (time.perf_counter() - start))
    return {
        name: {
            "steps_per_s": statistics.median(rate[1:]),
            "of_ceiling": statistics.median(r / best for r, best in zip(rate[1:], rates[ceiling][1:], strict=True)),
        }
        for name, rate in rates.items()
    }


def peak_memory(name: str, num_envs: int) -> float:
    """Peak of a fresh process that makes the environment and steps it, GB."""
    command = [sys.executable, __file__, "--memory-of", name, "--num-envs", str(num_envs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def print_own_peak_memory(name: str, num_envs: int) -> None:
    """What `peak_memory` runs."""
    batched = Batched(name, num_envs, available_cores(), torch.zeros(20, num_envs, 4))
    batched.reset()
    batched.run()
    # Not `ru_maxrss`: a process that another starts begins with the peak of that one.
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e9)


def main(arguments: Sequence[str] | None = None) -> None:
    cores = available_cores()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["mt1", "mt10", "mt50"], choices=("mt1", "mt10", "mt50"))
    parser.add_argument("--num-envs", nargs="+", type=int, help="slots; by default 16 for mt1, 160, 500")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--steps", type=int, default=20, help="of every slot in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory_of:
        print_own_peak_memory(options.memory_of, options.num_envs[0])
        return

    rows = []
    for name in options.env:
        for num_envs in options.num_envs or [{"mt1": 16, "mt10": 160, "mt50": 500}[name]]:
            actions = torch.rand((options.steps, num_envs, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
            print(f"{name}, {num_envs} slots")
            seen: set[str] = set()
            for group in groups(name, num_envs, sorted({*options.threads, cores}), actions):
                measured = measure(group, f"ceiling, {cores} threads", options.steps, options.rounds)
                for candidate, numbers in measured.items():
                    if candidate in seen:
                        continue
                    seen.add(candidate)
                    rate, ratio = numbers["steps_per_s"], numbers["of_ceiling"]
                    print(f"  {candidate:20} {rate:8.0f} steps/s {ratio:6.2f} of ceiling", flush=True)
                    rows.append({"env": name, "num_envs": group[candidate].num_envs, "candidate": candidate, **numbers})
                group.clear()
            memory = peak_memory(name, num_envs)
            print(f"  {memory:.2f} GB at the peak")
            rows.append({"env": name, "num_envs": num_envs, "peak_memory_gb": memory})
    if options.output:
        machine = {"cores": cores, "machine": platform.machine(), "mujoco": version("mujoco")}
        options.output.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
