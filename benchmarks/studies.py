"""Trains the variants of a study, all with one budget, and stores their results.

    python benchmarks/studies.py                            # the names of the studies and of their variants
    python benchmarks/studies.py mt10_components            # every variant that results/ lacks, seed 1
    python benchmarks/studies.py mt10_components pcgrad moore seed=2
    python benchmarks/results.py render                     # then: the table and the plot in docs/results.md

A run that was stopped goes on. Two runs side by side, each with a core of its own, take less time than one after the
other on both:

    taskset -c 0 python benchmarks/studies.py mt10_components default moore &
    taskset -c 1 python benchmarks/studies.py mt10_components film paco
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtrl.envs.metaworld.catalog import MT10, MT50
from mtrl.registry import unknown
from mtrl.report.runs import is_finished
from results import RESULTS, store


class Study(NamedTuple):
    """Runs that differ in one thing each: the options of all of them, and what each variant adds."""

    budget: Sequence[str]
    variants: Mapping[str, Sequence[str]]
    before: Mapping[str, Sequence[str]] = {}
    """Runs that the variants start from, in this order, with one seed: those of which `{runs}/name` is in an option."""


def _paths(teachers: Mapping[str, str]) -> str:
    """The option for tasks with teachers from among the runs before."""
    return f"data.teacher.paths={{{','.join(f'{task}: {{runs}}/{run}' for task, run in teachers.items())}}}"


COMPONENTS = Study(
    ["env=mt10", "total_steps=3000000", "eval.every=0"],
    {
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
    },
)
"""The default is an MLP with a head per task, the mean of the gradients, uniform sampling, PopArt.

Every trunk has the default's width, 256; the rest of a variant is the preset in configs/ as it is (experts multiply the
parameters, and activations differ: `relu` is the default with those of the other trunks).
"""

FRESH = ["data.rollout_length=50", "agent.num_minibatches=4", "agent.num_epochs=8"]
"""A fifth of the data between updates, each sample learned from twice as often."""

SPECIALISTS = Study(
    ["+experiment=mt10_distill"],
    {
        variant: [
            "data.teacher.name=specialists",
            _paths({task: task for task in MT10}),
            f"aggregation={variant}",
        ]
        for variant in ("sum", "pcgrad")
    },
    before={
        task: [
            "env=mt1",
            f"env.task={task}",
            "distill=kickstart",
            "aux_losses.teacher.teacher.name=scripted",
            "aux_losses.teacher.loss.name=mse",
            "total_steps=500000",
            "eval.every=0",
        ]
        for task in MT10
    },
)
"""Ten policies, each trained in one task with rewards and a scripted teacher, into one."""

HARD = (
    "soccer-v3",
    "basketball-v3",
    "disassemble-v3",
    "stick-pull-v3",
    "push-back-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "button-press-wall-v3",
    "pick-out-of-hole-v3",
    "hand-insert-v3",
)
"""The tasks of MT50 in which the first policy of BEYOND, a student of scripted teachers, does not always succeed."""

BEYOND = Study(
    ["+experiment=mt50_distill", "total_steps=400000"],
    {
        "student": [
            "init_from={runs}/first",
            "data.teacher.name=specialists",
            _paths({task: "hard" if task in HARD else "first" for task in MT50}),
        ]
    },
    before={
        "first": ["+experiment=mt50_distill", "seed=2"],
        "hard": [
            "env=metaworld",
            f"env.tasks=[{','.join(HARD)}]",
            "init_from={runs}/first",
            "agent.obs_norm=none",
            "network.trunk.activation=relu",
            "network.trunk.width=400",
            "freeze.policy=0.1",
            "agent.optimizer.lr=2e-4",
            "agent.entropy_coef=0",
            "distill=kickstart",
            "aux_losses.teacher.teacher.path={runs}/first",
            "aux_losses.teacher.loss.name=mse",
            "aux_losses.teacher.coefficient=1",
            "total_steps=800000",
            "eval.every=0",
            "eval.stop_at_success=true",
        ],
    },
)
"""A student of scripted teachers goes on with ten tasks and rewards, then learns from that policy and from itself."""

KICKSTART = Study(
    ["env=mt10", "total_steps=1000000", "eval.every=0", "eval.episodes_per_task=10", "log.every=50000"],
    {"scratch": [], "teacher": ["distill=kickstart", "aux_losses.teacher.teacher.path=mt10"]},
)
"""The default agent with and without the shipped policy as its teacher."""

LOOKAHEAD = (
    ("reach-v3", "push-v3", "drawer-open-v3", "button-press-topdown-v3", "peg-insert-side-v3"),
    ("pick-place-v3", "door-open-v3", "drawer-close-v3", "window-open-v3", "window-close-v3"),
)
"""The best two groups of MT10 by lookahead affinity over 2M steps of the default agent (results/mt10_relations).

The measure was chosen before any group was trained. Affinities without groups have groups as good with p = .945.
"""


def _groups(groups: Sequence[Sequence[str]]) -> list[str]:
    """A trunk for each group. Two of width 176 have the parameters of one of 256, within 1%."""
    listed = ",".join(f"[{','.join(group)}]" for group in groups)
    return ["network=grouped", "network.trunk.each.width=176", f"network.trunk.groups=[{listed}]"]


def random_groups(seed: int) -> list[list[str]]:
    """Two groups of MT10 of the sizes of `LOOKAHEAD`, drawn once."""
    drawn = np.random.default_rng(seed).permutation(len(MT10))
    size = len(LOOKAHEAD[0])
    return [[MT10[task] for task in sorted(part)] for part in (drawn[:size], drawn[size:])]


GROUPS = Study(
    KICKSTART.budget,
    {
        "best_two": _groups(LOOKAHEAD),
        **{f"random_{letter}": _groups(random_groups(seed)) for seed, letter in enumerate("abc")},
    },
)
"""Two networks for groups of tasks: the best groups by a measure, and random ones of their sizes (of seeds 0, 1, 2).

One network for all tasks is the variant `scratch` of `KICKSTART`, which has the same budget. Policy and value network
have 168,528 and 160,778 parameters there, and 168,336 and 162,986 in two groups: so each of these is smaller. Of the
random ones, `random_b` is by chance one exchange of two tasks away from the best.
"""

SAMPLING = Study(
    KICKSTART.budget,
    {
        "gap": ["task_sampling=gap"],
        "adaptive_schedule": ["task_sampling=adaptive_schedule"],
        "a5c_mild": ["task_sampling=a5c", "task_sampling.tau=1"],
        "learning_progress": ["task_sampling=learning_progress"],
    },
)
"""Which tasks the slots run. Uniform shares are the variant `scratch` of `KICKSTART`, which has the same budget."""

FASTER = Study(
    KICKSTART.budget,
    {
        "fresh": ["data.rollout_length=100", "agent.num_minibatches=8"],
        "bfloat16": ["precision=bfloat16"],
    },
)
"""As many gradient steps on fresher data, and cheaper ones. The default is the variant `scratch` of `KICKSTART`."""

DISTRAL = Study(
    ["env=mt10", "total_steps=1000000", "eval.every=0"],
    {"impala": ["agent=impala"], "one_column": ["agent=distral"], "two_columns": ["agent=distral", "agent.columns=2"]},
)
"""Distral and the learner it is made of."""

SMALLER = {
    "whole": [],
    "quarter": ["torso.channels=[8,16]", "torso.width=128"],
    "fourteenth": ["torso.channels=[4,8]", "torso.width=64"],
    "twenty_fifth": ["torso.channels=[4,8]", "torso.width=40"],
}
"""Shares of the parameters of the teachers' network, about: Rusu et al. 2016 have 25, 7 and 4 percent."""

GAMES = Study(
    [
        "env=atari",
        "env.action_set=full_masked",
        "torso=shallow_cnn",
        "agent=distill",
        "agent.loss.name=forward_kl",
        "data.slots_per_task=8",
        "data.samples_per_insert=4",
        "total_steps=100000",
        "eval.every=0",
        "eval.episodes_per_task=30",
    ],
    {
        **{
            name: ["env.games=pong", "data.teacher.name=policy", "data.teacher.path={runs}/pong", *options]
            for name, options in SMALLER.items()
        },
        "two_games": [
            "env.games=[pong,boxing]",
            "data.teacher.name=specialists",
            _paths({"pong": "pong", "boxing": "boxing"}),
            "total_steps=200000",
        ],
    },
    before={
        game: [
            "+experiment=atari_pong",
            f"env.games={game}",
            "env.action_set=full_masked",
            "seed=2",
            "total_steps=1250000",
            "schedule_steps=2500000",
            "eval.every=0",
        ]
        for game in ("pong", "boxing")
    },
)
"""Students of a policy for Pong, of its size and smaller, and one of two policies for a game each."""

SCREEN = Study(
    ["env=mt10", "total_steps=2000000", "schedule_steps=5000000", "eval.every=0", "eval.stop_at_success=true"],
    {
        "default": [],
        "no_differences": ["torso=none"],
        "raw": ["agent.obs_norm=none"],
        "fresh": [*FRESH],
        "narrow": ["agent.initial_std=0.5", "agent.entropy_coef=0"],
    },
)
"""Ideas for learning in fewer steps, by the first two of the five million steps of the default."""

STUDIES = {
    "mt10_components": COMPONENTS,
    "mt10_specialists": SPECIALISTS,
    "mt50_beyond": BEYOND,
    "mt10_kickstart": KICKSTART,
    "mt10_groups": GROUPS,
    "mt10_sampling": SAMPLING,
    "mt10_faster": FASTER,
    "mt10_distral": DISTRAL,
    "atari_distill": GAMES,
    "mt10_screen": SCREEN,
}


def train(run: Path, options: Sequence[str]) -> None:
    """Runs or resumes a run, unless it is finished."""
    if is_finished(run):
        return
    subprocess.run([sys.executable, "-m", "mtrl.train", *options, f"run_dir={run}", "resume=auto"], check=True)


def _within(runs: Path, options: Sequence[str]) -> list[str]:
    return [option.replace("{runs}", str(runs)) for option in options]


def train_variant(name: str, variant: str, seed: str) -> None:
    """Trains one variant, after the runs that it starts from, unless its result is stored."""
    if (RESULTS / name / variant / f"seed{seed}.json").exists():
        return
    study, runs = STUDIES[name], Path("runs") / name
    options = study.variants[variant]
    for before, its_options in study.before.items():
        if f"{{runs}}/{before}" in " ".join(options):
            train(runs / before, _within(runs, its_options))
    run = runs / f"{variant}_seed{seed}"
    train(run, [*study.budget, *_within(runs, options), f"seed={seed}"])
    print(store(run, f"{name}/{variant}"))


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        for name, study in STUDIES.items():
            print(f"{name}: {', '.join(study.variants)}")
        return
    name, *words = arguments
    if name not in STUDIES:
        sys.exit(unknown("study", name, list(STUDIES)))
    seeds = [word.removeprefix("seed=") for word in words if word.startswith("seed=")]
    variants = [word for word in words if not word.startswith("seed=")]
    for variant in variants:
        if variant not in STUDIES[name].variants:
            sys.exit(unknown(f"variant of {name}", variant, list(STUDIES[name].variants)))
    for seed in seeds or ["1"]:
        for variant in variants or STUDIES[name].variants:
            train_variant(name, variant, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
