"""Evaluate a trained policy.

python -m mtrl.evaluate run=runs/...                            # the official protocol: per-task table, eval.json
python -m mtrl.evaluate run=runs/... video=true                 # and a film of every task
python -m mtrl.evaluate run=runs/... env.split=test             # another setting of its environment
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mtrl.envs
from mtrl.config import MAX_EPISODE_STEPS, load_yaml, parse, run_or_exit, split_paths, stored_entry
from mtrl.policy import find_policy, load_policy
from mtrl.registry import construct, unknown
from mtrl.run.console import NO_RESULTS, Progress
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.run.evaluation.report import show, write_eval
from mtrl.run.evaluation.video import record_videos
from mtrl.system.cores import available_cores
from mtrl.types import Actor, EvalResult, UserError


def evaluate_run(
    run: str,
    video: bool = False,
    episodes_per_task: int | None = None,
    max_episode_steps: int | None = None,
    device: str = "cpu",
    out: str | None = None,
    env: dict[str, Any] | None = None,
) -> EvalResult:
    """Evaluates a run's newest intact checkpoint, or a given one, prints the table and writes `eval.json`.

    Args:
        run: Run folder or a checkpoint in it.
        video: Whether to record a video of one episode of each task.
        episodes_per_task: By default the run's setting.
        max_episode_steps: By default the run's setting.
        out: Output folder; by default the run folder.
        env: Changes to the environment's settings.
    """
    folder = Path(run)
    run_dir = next((f for f in (folder, *folder.parents) if (f / "config.yaml").is_file()), None)
    policy_folder = find_policy(folder)
    if run_dir is None:
        raise UserError(f"No config.yaml in {folder} or above it: expected a run folder or a checkpoint in one.")
    stored = run_dir / "config.yaml"
    config = load_yaml(stored)
    stored_entry(config, "env.name", str, stored)
    node, seed = {**config["env"], **(env or {})}, stored_entry(config, "seed", int, stored)
    if wrong := sorted({"seed", "device", "slots_per_task", "render"} & node.keys()):
        raise UserError(f"env.{wrong[0]} is not a setting of an environment.")
    if episodes_per_task is None:
        episodes_per_task = stored_entry(config, "eval.episodes_per_task", int, stored)
    if max_episode_steps is None:
        max_episode_steps = MAX_EPISODE_STEPS
        if "max_episode_steps" in config["eval"]:  # not in runs of earlier versions
            max_episode_steps = stored_entry(config, "eval.max_episode_steps", int, stored)
    policy = load_policy(policy_folder, device)
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))  # torch ignores CPU quotas
    protocol = mtrl.envs.evaluation_protocol(node, seed)
    evaluator = Evaluator(protocol, mtrl.envs.make, seed, episodes_per_task, max_episode_steps, device)
    try:
        adapted = policy.for_env(evaluator.env.spec)
        began = time.perf_counter()
        with Progress() as progress:

            def report(done: int, total: int) -> None:
                rate = done / (time.perf_counter() - began)
                progress.update(done, total, rate, NO_RESULTS, {}, "evaluation", unit="episodes")

            result = evaluator(adapted.actor, report)
        if new := [name for name in adapted.tasks if name not in policy.tasks]:
            result = replace(result, protocol={**result.protocol, "not trained in": ", ".join(new)})
        target = Path(out) if out else run_dir
        write_eval(target / "eval.json", result, policy=str(policy_folder))
        show(result)
        if video:
            film(adapted.actor, evaluator, target / "videos")
    except OSError as error:
        raise UserError(f"Cannot write to {out or run_dir}: {error.strerror or error}.") from error
    finally:
        evaluator.close()
    return result


def film(actor: Actor, evaluator: Evaluator, folder: Path) -> None:
    """Records a video of goal 0 of every task."""
    try:
        env: Any = mtrl.envs.make(**evaluator.settings, seed=evaluator.seed, num_envs=None, render=True)
    except UserError as error:
        raise UserError(f"{evaluator.settings['name']} cannot be filmed: {error}") from error
    began = time.perf_counter()
    try:
        longest = evaluator.max_episode_steps(env.spec)
        with Progress() as progress:

            def report(done: int, total: int) -> None:
                rate = done / (time.perf_counter() - began)
                progress.update(done, total, rate, NO_RESULTS, {}, "filming", unit="images")

            seed = evaluator.seed
            paths = record_videos(actor, env, env.render, folder, seed=seed, progress=report, max_episode_steps=longest)
        for path in paths:
            print(path)
    finally:
        env.close()


def main() -> None:
    """Command line: `key=value` arguments of `evaluate_run`, and `env.key=value` for the environment."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nKeys: run, video, episodes_per_task, max_episode_steps, device, out, env.*")
        return 0
    keywords: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    settings, paths = split_paths(arguments, ("run", "out"))
    for override in parse(settings):
        key, value = override.key_or_group, override.value()
        if key.startswith("env."):
            changes[key.removeprefix("env.")] = value
        else:
            keywords[key] = value
    if "env" in keywords:
        raise UserError(
            unknown(
                "key",
                "env",
                ["run", "video", "episodes_per_task", "max_episode_steps", "device", "out", "env.<option>"],
            )
        )
    construct("evaluate", evaluate_run, {**keywords, **paths, "env": changes})
    return 0


if __name__ == "__main__":
    main()
