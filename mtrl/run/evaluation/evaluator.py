"""Evaluates policies by the protocol of their environment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mtrl.checks import positive
from mtrl.run.evaluation.episodes import Ended, Job, all_jobs, joined, run_episodes
from mtrl.types import Actor, EnvSpec, EvalResult, EvaluationProtocol, VecEnv


class Evaluator:
    """Evaluates policies in the environment of record of a protocol, with its scores.

    Args:
        protocol: Evaluation protocol of the run's environment.
        make_env: Makes an environment from its settings, `seed`, `device` and `slots_per_task`, like `mtrl.envs.make`.
        seed: Seed of the run. Meta-World's 50 goals are drawn from it.
        episodes_per_task: 50 is the official protocol of Meta-World.
        max_episode_steps: Truncates episodes of environments that have no time limit.
        device: Device of the policies.
        stop_at_success: See `run_episodes`.
    """

    def __init__(
        self,
        protocol: EvaluationProtocol,
        make_env: Callable[..., VecEnv],
        seed: int,
        episodes_per_task: int,
        max_episode_steps: int,
        device: str = "cpu",
        stop_at_success: bool = False,
    ) -> None:
        positive(episodes_per_task=episodes_per_task, max_episode_steps=max_episode_steps)
        self._protocol, self._make_env = protocol, make_env
        self.settings = protocol.record_settings() | {"device": device}
        self.seed, self.episodes_per_task, self._max_episode_steps = seed, episodes_per_task, max_episode_steps
        self._stop_at_success = stop_at_success
        self._slots_per_task = min(episodes_per_task, 5)
        self._env: VecEnv | None = None

    def __call__(self, actor: Actor, progress: Callable[[int, int], None] = lambda done, total: None) -> EvalResult:
        """Runs every episode of the protocol with deterministic actions."""
        return self.joined(self.episodes(actor, self.jobs), progress)

    @property
    def jobs(self) -> list[Job]:
        """Task and goal of every episode of the protocol."""
        spec = self.env.spec
        return all_jobs(spec, self.episodes_per_task, spec.num_goals)

    def episodes(self, actor: Actor, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Runs some of the episodes; see `run_episodes`."""
        limit = self.max_episode_steps(self.env.spec)
        return run_episodes(actor, self.env, jobs, self.seed, limit, self._stop_at_success)

    def joined(self, ended: Iterable[Ended], progress: Callable[[int, int], None]) -> EvalResult:
        """The result of all `jobs`, whoever runs them."""
        spec = self.env.spec
        result = joined(ended, self.jobs, spec, self.protocol(spec), progress)
        return replace(result, scores=self._protocol.scores(result))

    def share(self, slots_per_task: int) -> Evaluator:
        """This evaluator for a process beside others, which steps at most so many slots per task by itself."""
        share = copy.copy(self)
        share._env, share._slots_per_task = None, min(slots_per_task, self._slots_per_task)
        if share.settings.get("num_workers", 0) is None:
            share.settings = {**self.settings, "num_workers": 0}
        return share

    @property
    def env(self) -> VecEnv:
        """Made on first access, with a few slots per task: enough to keep the cores busy, in little memory."""
        if self._env is None:
            self._env = self._make_env(**self.settings, seed=self.seed, slots_per_task=self._slots_per_task)
        return self._env

    def max_episode_steps(self, spec: EnvSpec) -> float:
        """Length at which episodes are truncated; infinite if the environment has a time limit."""
        return self._max_episode_steps if spec.horizon is None else math.inf

    def protocol(self, spec: EnvSpec) -> dict[str, Any]:
        """Description of what the numbers mean."""
        protocol = {"env": self.settings["name"], **self._protocol.words()}
        if spec.horizon is None:
            protocol["truncated after"] = f"{self._max_episode_steps} steps"
        if self._stop_at_success:
            protocol["episodes end"] = "at the first success, which returns are up to"
        return protocol | {
            "horizon": spec.horizon,
            "episodes per task": self.episodes_per_task,
            "policy": "deterministic",
            "success": _where_success_counts(spec),
        }

    def close(self) -> None:
        """Closes the environment."""
        if self._env is not None:
            self._env.close()


def _where_success_counts(spec: EnvSpec) -> str:
    if not spec.has_success:
        return "not reported by this environment"
    return "at any step" + (f", not reported by {', '.join(spec.silent_tasks)}" if spec.silent_tasks else "")
