"""Evaluates policies by the protocol of their environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mtrl.checks import positive
from mtrl.run.evaluation.episodes import evaluate
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
        stop_at_success: See `evaluate`.
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
        self._env: VecEnv | None = None

    def __call__(self, actor: Actor, progress: Callable[[int, int], None] = lambda done, total: None) -> EvalResult:
        """Runs every episode of the protocol with deterministic actions."""
        env = self.env
        result = evaluate(
            actor,
            env,
            self.episodes_per_task,
            env.spec.num_goals,
            self.protocol(env.spec),
            progress,
            self.seed,
            self.max_episode_steps(env.spec),
            self._stop_at_success,
        )
        return replace(result, scores=self._protocol.scores(result))

    @property
    def env(self) -> VecEnv:
        """Made on first access, with a few slots per task: enough to keep the cores busy, in little memory."""
        if self._env is None:
            self._env = self._make_env(**self.settings, seed=self.seed, slots_per_task=min(self.episodes_per_task, 5))
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
