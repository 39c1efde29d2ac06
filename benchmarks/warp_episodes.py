"""Success in MuJoCo Warp beside the official physics, goal by goal: of scripted policies, or of a trained one.

    python benchmarks/warp_episodes.py                                # 50 scripted policies, 10 goals each
    python benchmarks/warp_episodes.py --policy mt50                  # a policy that comes with the package, or a run
    python benchmarks/warp_episodes.py --policy mt10 --tasks reach-v3 push-v3 --goals 5
    python benchmarks/warp_episodes.py --device cuda

The numbers go into `results/warp_episodes.json`, a row for each policy and task, after each task; rows that are there
are not measured again, so that it can be stopped. On a CPU a task takes minutes, with its kernels. Then it prints the
table. `physics=rollout` stands for the official physics, as it is the same bit for bit; each physics has a process of
its own, since each has its own mujoco.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtrl
import mtrl.envs
from mtrl.envs.metaworld.catalog import MT50
from mtrl.files import json_text, write_atomic
from results import RESULTS

SCRIPTED = "scripted"
SEED = 5
"""Of the goals."""
PHYSICS = ("rollout", "warp")


def actions_of(policy: str, env: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The policy as a function of observations and tasks, without its noise."""
    if policy == SCRIPTED:
        from mtrl.distill.scripted import Scripted

        teacher = Scripted(env.spec)
        return lambda obs, task: teacher.label(obs, task, obs[:, :0])[0]
    loaded = mtrl.load_policy(policy, device=str(env.task.device)).for_env(env.spec)
    return lambda obs, task: loaded.act(obs, task)


@torch.no_grad()
def episodes(policy: str, task: str, goals: int, physics: str, device: str) -> dict[str, Any]:
    """An episode for each of the first goals of a task: the step of its first success, or None."""
    env = mtrl.envs.make("metaworld", tasks=[task], num_envs=goals, seed=SEED, physics=physics, device=device)
    act = actions_of(policy, env)
    env.assign(env.task, torch.arange(goals, device=env.task.device))
    obs, step = env.reset(), 0
    first = torch.zeros_like(env.task)
    ended = torch.zeros_like(env.task, dtype=torch.bool)
    start = time.perf_counter()
    while not (ended | (first > 0)).all():
        step += 1
        result = env.step(act(obs, env.task))
        first = torch.where((first == 0) & ~ended & result.success, step, first)
        obs, ended = result.obs, ended | result.truncated | result.terminated
    found: dict[str, Any] = {"first_success": [number or None for number in first.tolist()]}
    found["seconds"] = round(time.perf_counter() - start, 1)
    if physics == "warp":
        found["unstable"] = int(env.control_step.unstable.sum())
        found["overflow"] = int(env.control_step.overflow.sum())
    env.close()
    return found


def in_process(options: argparse.Namespace, task: str, physics: str) -> dict[str, Any]:
    """`episodes` in another process."""
    device = options.device if physics == "warp" else "cpu"
    command = [sys.executable, __file__, "--policy", options.policy, "--tasks", task, "--goals", str(options.goals)]
    done = subprocess.run([*command, "--device", device, "--one", physics], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{task} with physics={physics} failed with exit code {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Successes of each policy and task in both physics, and the median step of the first one, as a Markdown table."""
    lines = ["| policy | task | official | warp | first success: official | warp |", "|" + " --- |" * 6]
    for row in rows:
        steps = [[step for step in row[physics]["first_success"] if step] for physics in PHYSICS]
        counts = [f"{len(found)} of {len(row['rollout']['first_success'])}" for found in steps]
        medians = [str(sorted(found)[len(found) // 2]) if found else "" for found in steps]
        lines.append(f"| {row['policy']} | {row['task']} | {' | '.join([*counts, *medians])} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=SCRIPTED)
    parser.add_argument("--tasks", nargs="+", default=MT50)
    parser.add_argument("--goals", type=int, default=10, help="of each task")
    parser.add_argument("--device", default="cpu", help="of Warp")
    parser.add_argument("--output", type=Path, default=RESULTS / "warp_episodes.json")
    parser.add_argument("--one", choices=PHYSICS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        torch.set_num_threads(1)
        (task,) = options.tasks
        print(json.dumps(episodes(options.policy, task, options.goals, options.one, options.device)))
        return

    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    known = {(row["policy"], row["task"]) for row in rows}
    for task in options.tasks:
        if (options.policy, task) in known:
            continue
        found = {physics: in_process(options, task, physics) for physics in PHYSICS}
        rows.append({"policy": options.policy, "task": task, "device": options.device, **found})
        write_atomic(options.output, "[\n" + ",\n".join(map(json_text, rows)) + "\n]\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
