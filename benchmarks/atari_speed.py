"""Frames per second of the Atari environments alone, side by side in one run, as ratios to raw ale-py.

    python benchmarks/atari_speed.py                                       # pong and atari6, one thread and all
    python benchmarks/atari_speed.py --games pong atari57 --slots-per-game 8 32 --threads 16 --output speed.json

What is compared: this project's `env=atari`, ale-py's own `AtariVectorEnv` with the same settings (same-step
autoreset, one per game, all at work at once, as many threads), and where it is installed EnvPool, alone and under
`env=atari env.backend=envpool`. Actions are drawn beforehand, uniformly from each game's own. A step is four frames.

The candidates take turns in short rounds, and each is compared with ale-py on as many threads in the same round, so
that whatever else runs on the machine slows all of them; the numbers are medians over rounds. Episodes go on from round
to round, and those that end are reset in the time that is measured. The process keeps the memory that it frees, as
`python -m mtrl.train` does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from mtrl.envs.atari.rows import EnvPoolRows
from mtrl.envs.atari.suite import named_games
from mtrl.envs.atari.vector import FRAME_SKIP, AtariVecEnv
from mtrl.system.cores import available_cores
from mtrl.system.tuning import keep_freed_memory

Backend = Literal["ale", "envpool"]


class Candidate(Protocol):
    """Something whose steps are timed."""

    def run(self) -> None:
        """Takes all steps of a round."""
        ...


class Mtrl:
    """This project's environment. Its actions, as their ranks among those of the game, are everybody's."""

    def __init__(self, games: Sequence[str], num_envs: int, threads: int, steps: int, backend: Backend = "ale") -> None:
        self.env = AtariVecEnv(games, num_envs, num_workers=threads, backend=backend)
        self.env.reset()
        mask = torch.tensor(self.env.spec.action_mask)
        generator = torch.Generator().manual_seed(0)
        self.actions = torch.multinomial(mask[self.env.task].float(), steps, True, generator=generator).T
        self.ranks = (mask.cumsum(1) - 1)[self.env.task, self.actions].numpy()  # (T, B)

    def run(self) -> None:
        for action in self.actions:
            self.env.step(action)


class Pools:
    """A pool of another library for each game, all at work at once. `actions` is (T, games, slots of a game)."""

    def __init__(self, pools: Sequence[Any], actions: NDArray[Any]) -> None:
        self.pools, self.actions = pools, actions
        for pool in pools:
            pool.reset()

    def run(self) -> None:
        for action in self.actions:
            for pool, own in zip(self.pools, action, strict=True):
                pool.send(own)
            for pool in self.pools:
                pool.recv()


def ale(mtrl: Mtrl, games: Sequence[str], num_envs: int) -> Pools:
    """ale-py's vector environments with the same settings."""
    rows = num_envs // len(games)
    pools = [AtariVectorEnv(game, rows, autoreset_mode="SameStep", **mtrl.env._options) for game in games]
    return Pools(pools, mtrl.ranks.reshape(len(mtrl.ranks), len(games), rows))


def env_pool(mtrl: Mtrl, games: Sequence[str], num_envs: int) -> Pools:
    """EnvPool's environments with the same settings, next-step autoreset."""
    import envpool

    rows = num_envs // len(games)
    settings = [EnvPoolRows(game, rows, **mtrl.env._options)._settings for game in games]
    pools = [envpool.make_gymnasium(seed=0, **own) for own in settings]
    return Pools(pools, mtrl.ranks.reshape(len(mtrl.ranks), len(games), rows).astype(np.int32))


def measure(candidates: dict[str, Candidate], frames: int, rounds: int) -> dict[str, dict[str, float]]:
    """Frames per second and the ratio to the first candidate in the same round: medians over all but a first round."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate.run()
            rates[name].append(frames / (time.perf_counter() - start))
    first = next(iter(rates.values()))
    return {
        name: {
            "frames_per_s": statistics.median(rate[1:]),
            "of_ale": statistics.median(r / ale for r, ale in zip(rate[1:], first[1:], strict=True)),
        }
        for name, rate in rates.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    cores = available_cores()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["pong", "atari6"], help="games or sets of games, each by itself")
    parser.add_argument("--slots-per-game", nargs="+", type=int, default=[16])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--steps", type=int, default=50, help="of every slot in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()

    rows = []
    for name in options.games:
        games = named_games(name)
        for slots_per_game in options.slots_per_game:
            num_envs = slots_per_game * len(games)
            for threads in options.threads:
                mtrl = Mtrl(games, num_envs, threads, options.steps)
                candidates: dict[str, Candidate] = {"ale-py": ale(mtrl, games, num_envs), "mtrl": mtrl}
                try:
                    candidates["EnvPool"] = env_pool(mtrl, games, num_envs)
                    candidates["mtrl on EnvPool"] = Mtrl(games, num_envs, threads, options.steps, "envpool")
                except ImportError:
                    print("EnvPool is not installed: left out (pip install envpool).")
                measured = measure(candidates, FRAME_SKIP * options.steps * num_envs, options.rounds)
                print(f"{name} ({len(games)} games), {num_envs} slots, {threads} threads")
                for candidate, numbers in measured.items():
                    rate, ratio = numbers["frames_per_s"], numbers["of_ale"]
                    print(f"  {candidate:15} {rate:9.0f} frames/s {ratio:6.2f} of ale-py")
                    setting = {"games": name, "num_envs": num_envs, "threads": threads}
                    rows.append({**setting, "candidate": candidate, **numbers})
    if options.output:
        machine = {"cores": cores, "machine": platform.machine(), "ale-py": version("ale-py")}
        options.output.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
