"""A custom environment suite with its evaluation protocol and scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.envs.base import TorchVecEnv
from mtrl.registry import register
from mtrl.types import EnvSpec, EvalResult, EvaluationProtocol

TARGETS = {"left": -0.8, "middle": 0.0, "right": 0.8}
NUM_STARTS = 20


@register("env", "line")
class Line(TorchVecEnv):
    """A point on the line from -1 to 1 must go to the target of its task.

    Observation: its position (1,). Action: a displacement (1,), times 0.2. Reward: minus the distance to the target.

    Args:
        horizon: Steps of an episode.
    """

    def __init__(
        self,
        num_envs: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        slots_per_task: int = 1,
        horizon: int = 15,
    ) -> None:
        spec = EnvSpec(
            task_names=tuple(TARGETS),
            obs_shape=(1,),
            obs_dtype=torch.float32,
            action_kind="continuous",
            action_dim=1,
            action_mask=((True,),) * len(TARGETS),
            horizon=horizon,
            reports_success=(True,) * len(TARGETS),
            comparable_returns=True,
            num_goals=NUM_STARTS,
        )
        super().__init__(spec, num_envs, NUM_STARTS, seed, device, slots_per_task)
        self._targets = torch.tensor(list(TARGETS.values()), device=self.device)
        self._starts = torch.linspace(-1, 1, NUM_STARTS, device=self.device)
        self._horizon = horizon
        self.variables["position"] = torch.zeros(self.num_envs, device=self.device)

    def begin(self) -> dict[str, Tensor]:
        return {"position": self._starts[self.goal]}

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        position = (self.variables["position"] + 0.2 * action[:, 0]).clamp(-1, 1)
        self.variables["position"] = position
        distance = (position - self._targets[self.task]).abs()
        truncated = self.variables["step"] >= self._horizon
        return -distance, torch.zeros_like(truncated), truncated, distance < 0.1

    def observe(self) -> Tensor:
        return self.variables["position"][:, None].clone()


@register("evaluation", "line")
class LineEvaluation(EvaluationProtocol):
    """Results are reported for episodes of 30 steps, regardless of those in training."""

    def record_settings(self) -> dict[str, Any]:
        return self.settings | {"horizon": 30}

    def words(self) -> dict[str, Any]:
        return {"starts": f"{NUM_STARTS}, evenly on the line"}

    def scores(self, result: EvalResult) -> dict[str, float]:
        """The mean distance to the target."""
        return {"distance": sum(-e.episode_return / e.length for e in result.episodes) / len(result.episodes)}
