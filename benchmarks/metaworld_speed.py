"""Environment steps per second of Meta-World's physics, side by side in one run, and their ratios.

    python benchmarks/metaworld_speed.py --env mt10 --num-envs 160 --threads 2

Rounds alternate between the candidates, so that whatever else runs on the machine slows all of them. The ceiling is
`mujoco.rollout` alone: five steps and a sixth for the poses, same models, no observation, no reward.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout

import mtrl.envs
from mtrl.envs.metaworld.rollout_physics import CONTROL, FRAME_SKIP, RolloutVecEnv, Scene, Simulation

PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


def stepper(env: Any, actions: torch.Tensor) -> Callable[[], None]:
    """A function that steps the environment once with each of the actions (T, B, 4)."""
    env.reset()

    def run() -> None:
        for action in actions:
            env.step(action)

    return run


def ceiling(env: RolloutVecEnv, actions: torch.Tensor, threads: int) -> Callable[[], None]:
    """The same number of steps of bare physics, in open loop from the current states."""
    scenes: dict[Scene, list[Simulation]] = {}
    for simulation in env._simulations:
        assert simulation is not None
        scenes.setdefault(simulation.scene, []).append(simulation)
    pool = Rollout(nthread=threads)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for simulations in scenes.values():
        models, first = [simulation.model for simulation in simulations], simulations[0].model
        states = np.zeros((len(models), mujoco.mj_stateSize(first, PHYSICS)))
        control = np.zeros((len(models), FRAME_SKIP + 1, mujoco.mj_stateSize(first, CONTROL)))
        for state, moves, simulation in zip(states, control, simulations, strict=True):
            mujoco.mj_getState(simulation.model, simulation.data, state, PHYSICS)
            mujoco.mj_getState(simulation.model, simulation.data, moves[0], CONTROL)
            moves[:] = moves[0]
        data = [mujoco.MjData(first) for _ in range(threads)]
        outputs = {
            "state": np.zeros((len(models), FRAME_SKIP + 1, states.shape[1])),
            "sensordata": np.zeros((len(models), FRAME_SKIP + 1, first.nsensordata)),
        }
        calls.append(((models, data, states, control), outputs))

    def run() -> None:
        for _ in actions:
            for (models, data, states, control), outputs in calls:
                pool.rollout(
                    models,
                    data,
                    states,
                    control,
                    control_spec=int(CONTROL),
                    nstep=FRAME_SKIP + 1,
                    skip_checks=True,
                    **outputs,
                )
                states[:] = outputs["state"][:, FRAME_SKIP - 1]

    return run


def measure(candidates: dict[str, Callable[[], None]], steps: int, rounds: int) -> dict[str, float]:
    """Steps per second of each candidate, over all rounds but a first one that warms up."""
    seconds = dict.fromkeys(candidates, 0.0)
    for i in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name] += (time.perf_counter() - start) * (i > 0)
    return {name: rounds * steps / duration for name, duration in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="mt10", choices=("mt10", "mt25", "mt50"))
    parser.add_argument("--num-envs", type=int, default=160)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=20, help="of every slot in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--official", action="store_true", help="the published environments too: slow to make")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    shape = (options.steps, options.num_envs, 4)
    actions = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    make = {"name": options.env, "num_envs": options.num_envs}
    rollout = {n: mtrl.envs.make(physics="rollout", num_workers=n, **make) for n in {1, options.threads}}
    candidates = {f"rollout, {n} threads": stepper(env, actions) for n, env in sorted(rollout.items())}
    print(f"peak memory with {len(rollout)} x {options.num_envs} slots: ", end="")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    candidates[f"ceiling, {options.threads} threads"] = ceiling(rollout[options.threads], actions, options.threads)
    if options.official:
        for workers in (0, options.threads):
            env = mtrl.envs.make(physics="official", num_workers=workers, **make)
            candidates[f"official, {workers} workers"] = stepper(env, actions)

    speed = measure(candidates, options.steps * options.num_envs, options.rounds)
    best = speed[f"ceiling, {options.threads} threads"]
    for name, steps_per_second in speed.items():
        print(f"{name:22} {steps_per_second:8.0f} steps/s  {steps_per_second / best:5.2f} of the ceiling")


if __name__ == "__main__":
    main()
