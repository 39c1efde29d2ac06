"""Forward transfer to ten tasks of Meta-World from a policy that was distilled in the other forty.

    python benchmarks/transfer.py                           # every variant that results/ lacks, seed 1
    python benchmarks/transfer.py scratch all seed=2 seed=3
    python benchmarks/transfer.py --show                    # the table, and docs/transfer.svg
    python benchmarks/transfer.py name=try tasks=2 total_steps=20000 pretrain_steps=4000 episodes=1    # a trial

The ten are every fifth task in alphabetical order, one multi-task run for all of them. A run that was stopped goes on.

Forward transfer is Continual World's (Wolczyk et al. 2021, section 3): (AUC - AUC_scratch) / (1 - AUC_scratch) of each
task, with the area under its success rate while exploring, over training, in [0, 1].

Differences from the paper:
    1. AUC_scratch is the mean over the seeds of the variant `scratch`.
    2. The tasks are learned together, not one after another.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.envs.metaworld.catalog import MT50
from mtrl.registry import unknown
from mtrl.relate.transfer import Curve, auc, forward_transfer
from mtrl.report.runs import is_finished
from mtrl.run.evaluation.statistics import bootstrap_interval
from results import DOCS, RESULTS, _pyplot, store

HELD_OUT = sorted(MT50)[::5]
TRAINED = [task for task in MT50 if task not in HELD_OUT]
GOOD = 0.8
"""The success rate of which the table says when it is reached."""

PRETRAINED = "{pretrained}"
VARIANTS = {
    "scratch": [],
    # Of tasks that it does not know, a policy with a head for each task gives the trunk and the normalisation: with
    # init_from_parts=[trunk,obs_norm], the run is the same.
    "all": [f"init_from={PRETRAINED}"],
    "l2_sp": [f"init_from={PRETRAINED}", "l2_sp.policy=1"],
    # The shipped policy was distilled in all fifty tasks. Its standard deviation was not: only actions are compared.
    "kickstart": ["distill=kickstart", "aux_losses.teacher.teacher.path=mt50", "aux_losses.teacher.loss.name=mse"],
}
PRETRAINING = ["agent=distill", "agent.loss.name=smooth_l1", "data.slots_per_task=6", "data.batch_size=40"]
PRETRAINING += ["data.max_episode_steps=250", "eval.every=0", "eval.episodes_per_task=1"]
DEFAULTS = {"name": "transfer", "tasks": "10", "total_steps": "1500000", "pretrain_steps": "500000", "episodes": "50"}


def steps_to(curve: Curve, rate: float) -> float:
    """Steps at the first entry with this success rate; infinity if there is none."""
    return next((step for step, success in curve if success >= rate), float("inf"))


def train(run: Path, tasks: Sequence[str], options: Sequence[str]) -> None:
    """Runs or resumes a run, unless it is finished."""
    if is_finished(run):
        return
    given = ["env=metaworld", f"env.tasks=[{','.join(tasks)}]", *options, f"run_dir={run}", "resume=auto"]
    subprocess.run([sys.executable, "-m", "mtrl.train", *given], check=True)


def train_variant(variant: str, seed: str, settings: dict[str, str]) -> None:
    """Trains one variant, after the policy that it starts from, unless its result is stored."""
    name, number, steps = settings["name"], int(settings["tasks"]), int(settings["total_steps"])
    if (RESULTS / name / variant / f"seed{seed}.json").exists():
        return
    runs = Path("runs") / name
    pretrained, run = runs / "pretrained", runs / f"{variant}_seed{seed}"
    if PRETRAINED in "".join(VARIANTS[variant]):
        train(pretrained, TRAINED[: 4 * number], [*PRETRAINING, f"total_steps={settings['pretrain_steps']}"])
    evaluation = ["eval.every=0", f"eval.episodes_per_task={settings['episodes']}"]
    options = [option.replace(PRETRAINED, str(pretrained)) for option in VARIANTS[variant]]
    budget = [f"total_steps={steps}", *evaluation, f"log.every={max(steps // 40, 1)}", f"seed={seed}"]
    train(run, HELD_OUT[:number], [*budget, *options])
    print(store(run, f"{name}/{variant}", per_task=True))


def curve_of(run: dict[str, Any], column: str) -> Curve:
    """A column of a stored training curve, without the rows in which no episode ended."""
    index = run["training_curve"]["columns"].index(column)
    return [(row[0], row[index]) for row in run["training_curve"]["rows"] if row[index] is not None]


def areas(run: dict[str, Any]) -> dict[str, float]:
    """The area of each task."""
    return {task: auc(curve_of(run, f"success_rate of {task}")) for task in run["evaluations"][-1]["episodes"]}


def show(name: str) -> None:
    """Prints the table of the stored variants, and draws their curves into docs/."""
    stored = {
        variant: [json.loads(path.read_text()) for path in sorted((RESULTS / name / variant).glob("seed*.json"))]
        for variant in VARIANTS
    }
    stored = {variant: runs for variant, runs in stored.items() if runs}
    if "scratch" not in stored:
        sys.exit(f"results/{name} has no variant scratch, with which the others are compared: train it first.")
    of_scratch = [areas(run) for run in stored["scratch"]]
    scratch = {task: float(np.mean([found[task] for found in of_scratch])) for task in of_scratch[0]}
    print(f"| variant | seeds | steps to {GOOD} (millions) | AUC | forward transfer | 95% interval (bootstrap) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant, runs in stored.items():
        found = [areas(run) for run in runs]
        reached = [steps_to(curve_of(run, "success_rate while exploring"), GOOD) / 1e6 for run in runs]
        gains = [forward_transfer(area, scratch[task]) for by_task in found for task, area in by_task.items()]
        low, high = bootstrap_interval(gains)
        steps = " ".join(f"{step:.2f}" if step < float("inf") else "never" for step in reached)
        area = np.mean([list(by_task.values()) for by_task in found])
        print(f"| {variant} | {len(runs)} | {steps} | {area:.3f} | {np.mean(gains):.3f} | {low:.3f} to {high:.3f} |")
    draw(name, stored)


def draw(name: str, stored: dict[str, list[dict[str, Any]]]) -> None:
    """Writes docs/NAME.svg: success while exploring, averaged over tasks, of every run."""
    plt = _pyplot(name)
    figure, axes = plt.subplots(figsize=(6, 4))
    for index, (variant, runs) in enumerate(stored.items()):
        for run in runs:
            steps, rates = np.array(curve_of(run, "success_rate while exploring")).T
            axes.plot(steps / 1e6, rates, color=f"C{index}", label=variant if run is runs[0] else None)
    axes.set(xlabel="environment steps (millions)", ylabel="success rate exploring", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    given = [word.partition("=")[::2] for word in arguments if "=" in word]
    variants = [word for word in arguments if "=" not in word and word != "--show"]
    seeds = [value for key, value in given if key == "seed"]
    settings = DEFAULTS | {key: value for key, value in given if key != "seed"}
    for what, word, valid in [
        *(("variant", variant, VARIANTS) for variant in variants),
        *(("setting", key, DEFAULTS) for key in settings),
    ]:
        if word not in valid:
            sys.exit(unknown(what, word, list(valid)))
    if "--show" in arguments:
        show(settings["name"])
        return
    for seed in seeds or ["1"]:
        for variant in variants or VARIANTS:
            train_variant(variant, seed, settings)


if __name__ == "__main__":
    main(sys.argv[1:])
