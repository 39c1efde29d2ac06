"""Trains the default agent on MT10 with one component changed at a time, all with one budget, and stores the results.

    python benchmarks/component_runs.py                     # every variant that results/ lacks, seed 1
    python benchmarks/component_runs.py pcgrad moore seed=2
    python benchmarks/results.py render                     # then: the table and the plot in docs/results.md

A run that was stopped goes on. Every trunk has the default's width, 256; the rest of a variant is the preset in
configs/ as it is (experts multiply the parameters, and activations differ: `relu` is the default with those of the
other trunks). Two runs side by side, each with a core of its own, take less time than one after the other on both:

    taskset -c 0 python benchmarks/component_runs.py default moore &
    taskset -c 1 python benchmarks/component_runs.py film paco
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mtrl.registry import unknown
from results import RESULTS, store

NAME = "mt10_components"
BUDGET = ["env=mt10", "total_steps=3000000", "eval.every=0"]
VARIANTS = {
    "default": [],
    "soft_modules": ["network=soft_modules"],
    "moore": ["network=moore", "network.trunk.width=256"],
    "paco": ["network=paco", "network.trunk.width=256"],
    "mmoe": ["network=mmoe"],
    "film": ["network=film", "network.trunk.width=256"],
    "sum": ["aggregation=sum"],
    "pcgrad": ["aggregation=pcgrad"],
    "cagrad": ["aggregation=cagrad"],
    "a5c": ["task_sampling=a5c"],
    "a5c_mild": ["task_sampling=a5c", "task_sampling.tau=1"],
    "no_popart": ["value_norm=none"],
    "relu": ["network.trunk.activation=relu", "network.trunk.init=he_uniform"],
    "bfloat16": ["precision=bfloat16"],
}
"""The default is an MLP with a head per task, the mean of the gradients, uniform sampling, PopArt."""


def train(variant: str, seed: str) -> None:
    """Runs or resumes one variant, unless its result is stored."""
    if (RESULTS / NAME / variant / f"seed{seed}.json").exists():
        return
    run = Path("runs") / NAME / f"{variant}_seed{seed}"
    options = [f"resume={run}"] if run.exists() else [*BUDGET, *VARIANTS[variant], f"seed={seed}", f"run_dir={run}"]
    subprocess.run([sys.executable, "-m", "mtrl.train", *options], check=True)
    print(store(run, f"{NAME}/{variant}"))


def main(arguments: Sequence[str]) -> None:
    seeds = [word.removeprefix("seed=") for word in arguments if word.startswith("seed=")]
    variants = [word for word in arguments if not word.startswith("seed=")]
    for variant in variants:
        if variant not in VARIANTS:
            sys.exit(unknown("variant", variant, list(VARIANTS)))
    for seed in seeds or ["1"]:
        for variant in variants or VARIANTS:
            train(variant, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
