"""Meta-World's benchmarks as environments.

Registers `mt1`, `mt10`, `mt25`, `mt50` and `metaworld` (any list of tasks), and the meta-learning benchmarks `ml1`,
`ml10`, `ml25` and `ml45`, whose observations hide the goal. Simulations are registered under the kind "physics".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl import registry
from mtrl.envs.base import check_num_envs
from mtrl.envs.metaworld.catalog import DESCRIPTIONS, TASKS_OF, TIERS
from mtrl.envs.metaworld.goals import NUM_GOALS, Benchmark, official_goals
from mtrl.types import EnvSpec, EvalResult, EvaluationProtocol, UserError, VecEnv

MAX_HORIZON = 500
"""Length of an episode of the published environments."""
OBS_SIZE, ACTION_SIZE = 39, 4


@dataclass(frozen=True)
class Suite:
    """Tasks and goals to simulate."""

    task_names: tuple[str, ...]
    goals: tuple[NDArray[np.float64], ...]
    """The official random vectors of each task, (50, size) each: object and goal positions."""
    goal_visible: bool
    """Whether the goal is part of the observation; if not, it is replaced by zeros."""
    reward_version: str
    horizon: int

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            task_names=self.task_names,
            obs_shape=(OBS_SIZE,),
            obs_dtype=torch.float32,
            action_kind="continuous",
            action_dim=ACTION_SIZE,
            action_mask=((True,) * ACTION_SIZE,) * len(self.task_names),
            horizon=self.horizon,
            reports_success=(True,) * len(self.task_names),
            comparable_returns=self.reward_version == "v2" or len(self.task_names) == 1,
            num_goals=NUM_GOALS,
            task_descriptions=tuple(DESCRIPTIONS[name] for name in self.task_names),
        )


def metaworld(
    benchmark: str,
    num_envs: int | None,
    seed: int,
    device: str,
    task: str | None = None,
    tasks: Sequence[str] | None = None,
    split: Literal["train", "test"] = "train",
    physics: str = "rollout",
    reward_version: Literal["v1", "v2"] = "v2",
    horizon: int = MAX_HORIZON,
    goal_seed: int | None = None,
    num_workers: int | None = None,
    render: bool = False,
    slots_per_task: int = 1,
) -> VecEnv:
    """A benchmark of Meta-World.

    Use it for a list of your own of Meta-World's tasks; the presets are its benchmarks.

    Args:
        benchmark: Registered name of the benchmark.
        num_envs: Total number of slots; None for `slots_per_task` for each task.
        seed: Seed of the generator that draws the goal of each episode from the 50 of its task.
        device: Device of the tensors in a step.
        task: The task of `mt1` and `ml1`.
        tasks: The tasks of `metaworld`.
        split: Split of `ml1`, `ml10`, `ml25` and `ml45`.
        physics: Registered name of the simulation.
        reward_version: Version of the published reward.
        horizon: Steps of an episode, at most 500.
        goal_seed: Seed with which the official class draws the 50 goals; None for `seed`.
        num_workers: Threads or processes of the physics; None for one per core.
        render: Whether `render` will be used.
        slots_per_task: See `num_envs`.

    Raises:
        UserError: A value is invalid, or Meta-World is not installed.
    """
    chosen = _benchmark(benchmark, task, tasks, split)
    # All arguments are checked before goals are drawn, which may take half a minute.
    registry.lookup("physics", physics)
    num_envs = check_num_envs(num_envs, len(chosen.task_names), slots_per_task)
    if not 1 <= horizon <= MAX_HORIZON:
        raise UserError(f"horizon must be from 1 to {MAX_HORIZON}, not {horizon}: Meta-World's episodes end there.")
    goal_seed = seed if goal_seed is None else goal_seed
    if not 0 <= goal_seed < 2**32:
        raise UserError(f"Meta-World's seed must be from 0 to 2**32 - 1, not {goal_seed}.")
    try:
        version("metaworld")
    except PackageNotFoundError:
        raise UserError("Meta-World is not installed: pip install metaworld==3.1.1") from None
    goals = official_goals(chosen, goal_seed)
    suite = Suite(chosen.task_names, goals, chosen.goal_visible, reward_version, horizon)
    simulation = {"num_envs": num_envs, "seed": seed, "device": device, "num_workers": num_workers, "render": render}
    return registry.build("physics", {"name": physics}, suite=suite, **simulation)


def _benchmark(name: str, task: str | None, tasks: Sequence[str] | None, split: Literal["train", "test"]) -> Benchmark:
    """The benchmark described by the options of `metaworld`. Raises `UserError`."""
    official = "" if name == "metaworld" else name.upper()
    asked = {"metaworld": "tasks", "mt1": "task", "ml1": "task"}.get(name)
    for option, value in (("task", task), ("tasks", tasks)):
        if option == asked and value is None:
            raise UserError(f"{name} needs a value for: {option}.")
        if option != asked and value is not None:
            raise UserError(
                f"{name} has no option {option!r}: its tasks are {'given as ' + asked if asked else 'fixed'}."
            )
    if split == "test" and not name.startswith("ml"):
        raise UserError(f"{name} has no test split: ml1, ml10, ml25 and ml45 have one.")
    if task is not None:
        return Benchmark(official, (task,), split)
    if tasks is None:
        return Benchmark(official, TASKS_OF[official][split], split)
    if isinstance(tasks, str) or not len(tasks):
        raise UserError(f"tasks must be a list of Meta-World tasks, not {tasks!r}: for example [reach-v3, push-v3].")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"Each task may be named once, found {', '.join(tasks)}.")
    return Benchmark(official, tuple(tasks))


class MetaworldEvaluation(EvaluationProtocol):
    """Evaluation on the published environments, regardless of the simulation used in training."""

    def record_settings(self) -> dict[str, Any]:
        return {**self.settings, "physics": "official"}

    def words(self) -> dict[str, Any]:
        hidden = self.settings["name"].startswith("ml")
        goal_seed = self.settings.get("goal_seed")
        return {
            "physics": f"official (metaworld {version('metaworld')}, mujoco {version('mujoco')})",
            "reward": self.settings.get("reward_version", "v2"),
            "goals": f"the fixed goals of seed {self.seed if goal_seed is None else goal_seed}, goal i in episode i",
            "goal in the observation": "no" if hidden else "yes",
            **({"split": self.settings.get("split", "train")} if hidden else {}),
        }

    def scores(self, result: EvalResult) -> dict[str, float]:
        """Mean success rate over the tasks of each tier of difficulty, if there is more than one."""
        rates = {name: np.mean([bool(e.success) for e in episodes]) for name, episodes in result.by_task.items()}
        tiers = {tier: [rates[name] for name in tasks if name in rates] for tier, tasks in TIERS.items()}
        means = {f"success_{tier}": float(np.mean(values)) for tier, values in tiers.items() if values}
        return means if len(means) > 1 else {}


for _name in ("metaworld", "mt1", "ml1", *(name.lower() for name in TASKS_OF)):
    registry.register("env", _name)(functools.partial(metaworld, _name))
    registry.register("evaluation", _name)(MetaworldEvaluation)
