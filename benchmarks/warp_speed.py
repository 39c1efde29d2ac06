"""Environment steps per second of Meta-World on MuJoCo Warp, over the number of slots per task.

    python benchmarks/warp_speed.py --device cuda --output warp.json         # mt10 and mt50, and rollout beside them
    python benchmarks/warp_speed.py --device cuda --env mt10 --slots-per-task 800 --variants   # how Warp is run
    python benchmarks/warp_speed.py --device cuda --env mt10 --compile       # compiles the kernels first, in all cores
    python benchmarks/warp_speed.py --device cpu --env mt1 --slots-per-task 2 --steps 2 --rounds 1   # that it runs

Per size: steps per second of `step` with random actions, after the kernels are compiled (reported apart), and which
shares of the time are physics, observation with reward and success, and everything else (resets, bookkeeping). Each
share is measured with a CUDA graph of that part alone. Rates are medians over rounds. Each size runs in a process of
its own, and so does `physics=rollout`, which is another mujoco.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import mtrl.envs
import mtrl.registry
from mtrl.system.cores import available_cores

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one stream": {"forked": False},
    "most iterations": {"conditional": False},
    "one stream, most iterations": {"forked": False, "conditional": False},
}
"""Settings of Warp that are compared."""


def rate(call: Callable[[], Any], num_envs: int, steps: int, rounds: int, device: str) -> float:
    """Steps per second of all slots: the median over rounds, after one that is not counted."""
    rates = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            call()
        _wait(device)
        rates.append(steps * num_envs / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def compile_kernels(env: str, device: str) -> None:
    """Fills the cache of kernels: a process for each scene, as many at once as there are cores."""
    from mtrl.envs.metaworld.catalog import MT10, MT50
    from mtrl.envs.metaworld.goals import Benchmark, official_goals
    from mtrl.envs.metaworld.resets import reset_pool

    names = {"mt1": ("reach-v3",), "mt10": MT10, "mt50": MT50}[env]
    pool = reset_pool(names, official_goals(Benchmark("", names), 0))
    tasks = {resets.scene: name for name, resets in zip(names, pool, strict=True)}
    code = "import mtrl.envs; mtrl.envs.make('mt1', task={!r}, physics='warp', device={!r}).close()"

    def make(task: str) -> int:
        return subprocess.run([sys.executable, "-c", code.format(task, device)]).returncode

    start = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as executor:
        failures = sum(map(bool, executor.map(make, tasks.values())))
    print(f"{env}: {len(tasks)} scenes in {time.perf_counter() - start:.0f} s, {failures} failed", flush=True)
    if failures:
        sys.exit(1)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def options_of(env: str) -> dict[str, Any]:
    return {"task": "reach-v3"} if env == "mt1" else {}


def measure_rollout(options: argparse.Namespace) -> dict[str, Any]:
    """The physics of the CPU."""
    settings = {"physics": "rollout", "slots_per_task": options.slots, **options_of(options.env)}
    env = mtrl.envs.make(options.env, **settings)
    env.reset()
    action = torch.rand(env.num_envs, 4) * 2 - 1
    steps_per_s = rate(lambda: env.step(action), env.num_envs, options.steps, options.rounds, "cpu")
    return {"physics": "rollout", "num_envs": env.num_envs, "steps_per_s": steps_per_s}


def measure_warp(options: argparse.Namespace) -> dict[str, Any]:
    """Steps per second, and the shares of the parts."""
    from mtrl.envs.metaworld.warp_packages import load

    packages = load()
    from mtrl.envs.metaworld.warp_physics import Settings, WarpVecEnv, compiled

    made: list[WarpVecEnv] = []

    def make(suite: Any, num_envs: int, seed: int, device: str) -> Any:
        settings = Settings(**VARIANTS[options.variant])
        made.append(WarpVecEnv(packages, suite, num_envs, seed, device, settings))
        return made[0]

    mtrl.registry.register("physics", "measured")(make)
    given = {"slots_per_task": options.slots, "device": options.device, **options_of(options.env)}
    mtrl.envs.make(options.env, physics="measured", **given)
    (env,) = made
    env.reset()
    action = torch.rand(env.num_envs, 4, device=options.device) * 2 - 1
    inputs = env.inputs(action)
    physics_of = env.control_step.simulate(inputs)
    parts = {
        "step": lambda: env.step(action),
        "physics": _of(compiled(packages, env.control_step.simulate, inputs), inputs),
        "outcome": _of(compiled(packages, lambda given: env.control_step.evaluate(given, physics_of), inputs), inputs),
    }
    rates = {
        name: rate(call, env.num_envs, options.steps, options.rounds, options.device) for name, call in parts.items()
    }
    whole = rates["step"]
    memory = torch.cuda.mem_get_info() if options.device != "cpu" else (0, 0)
    return {
        "physics": "warp",
        "variant": options.variant,
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "num_envs": env.num_envs,
        "scenes": len(env.control_step.worlds),
        "seconds_to_compile": round(env.seconds_to_compile, 1),
        "steps_per_s": whole,
        "share_of_physics": whole / rates["physics"],
        "share_of_outcome": whole / rates["outcome"],
        "memory_gb": (memory[1] - memory[0]) / 1e9,
        "overflow": int(env.control_step.overflow.sum()),
        "unstable": int(env.control_step.unstable.sum()),
    }


def _of(function: Callable[[Any], Any], inputs: Any) -> Callable[[], Any]:
    return lambda: function(inputs)


def in_process(options: argparse.Namespace, *given: str) -> dict[str, Any]:
    """Measures in another process; a failure becomes a row too, so that the others are still measured."""
    command = [sys.executable, __file__, "--one", "--device", options.device]
    command += ["--steps", str(options.steps), "--rounds", str(options.rounds), *given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["mt10", "mt50"], choices=("mt1", "mt10", "mt50"))
    parser.add_argument("--slots-per-task", nargs="+", type=int, default=[80, 400, 1600])
    parser.add_argument("--rollout-slots", type=int, default=16, help="per task, of physics=rollout; 0: not measured")
    parser.add_argument("--variants", action="store_true", help="compare the ways in which Warp can be run")
    parser.add_argument("--compile", action="store_true", help="only compile the kernels")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50, help="of every slot in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers, written after each row")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--physics", default="warp", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="as it is", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        options.env, options.slots = options.env[0], options.slots_per_task[0]
        measure = measure_warp if options.physics == "warp" else measure_rollout
        print(json.dumps(measure(options)))
        return

    if options.compile:
        for env in options.env:
            compile_kernels(env, options.device)
        return

    rows = []
    for env in options.env:
        runs = [("warp", slots, variant) for slots in options.slots_per_task for variant in VARIANTS]
        runs = [run for run in runs if options.variants or run[2] == "as it is"]
        if options.rollout_slots:
            runs.append(("rollout", options.rollout_slots, "as it is"))
        for physics, slots, variant in runs:
            given = ("--env", env, "--slots-per-task", str(slots), "--physics", physics, "--variant", variant)
            row = {"env": env, "physics": physics, "variant": variant, **in_process(options, *given)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.output:
                options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
