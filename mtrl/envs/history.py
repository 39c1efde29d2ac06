"""Past transitions as part of the observation: `env.history=H`, for policies that have to infer their task."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtrl.envs.base import check_action
from mtrl.types import State, Step, UserError, VecEnv


class History:
    """A `VecEnv` whose observations (H * W + D) begin with the last H transitions of the episode, the oldest first.

    A transition is the observation (D) before it, the action (A; a discrete one as one-hot) and the reward:
    W = D + A + 1 numbers, all zero before the episode's first step. Since the history is part of the observation,
    learners, replays and policies need no support for it; `spec.history` gives its shape to networks that use it
    (`task_encoder=context`). Everything else is passed on to the environment.

    Args:
        env: An environment with flat floating-point observations.
        length: H.

    Raises:
        UserError: The environment has other observations.
    """

    def __init__(self, env: VecEnv, length: int) -> None:
        spec = env.spec
        if len(spec.obs_shape) != 1 or not spec.obs_dtype.is_floating_point:
            raise UserError(
                f"history needs flat observations of floating point, but these are {spec.obs_dtype} of the shape "
                f"{spec.obs_shape}: use core=lstm."
            )
        width = spec.obs_shape[0] + spec.action_dim + 1
        self.env, self.num_envs = env, env.num_envs
        shape = (length * width + spec.obs_shape[0],)
        self.spec = dataclasses.replace(spec, obs_shape=shape, history=(length, width))
        device = env.task.device
        self._past = torch.zeros(self.num_envs, length, width, dtype=spec.obs_dtype, device=device)
        self._obs = torch.zeros(self.num_envs, *spec.obs_shape, dtype=spec.obs_dtype, device=device)

        self.task, self.goal = env.task, env.goal

    def __getattr__(self, name: str) -> Any:
        """Methods that only some environments have: `render`, `info`."""
        return getattr(self.env, name)

    def reset(self, seed: int | None = None) -> Tensor:
        self._obs = self.env.reset(seed)
        self._past = torch.zeros_like(self._past)
        self.task, self.goal = self.env.task, self.env.goal
        return self._with_past(self._obs)

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        taken = check_action(action, self.env.spec, self.env.task)
        if not taken.is_floating_point():
            taken = functional.one_hot(taken, self.spec.action_dim)
        step = self.env.step(action, truncate)
        transition = torch.cat([self._obs, taken.to(self._obs), step.reward[:, None].to(self._obs)], dim=1)
        self._past = torch.cat([self._past[:, 1:], transition[:, None]], dim=1)
        final_obs = self._with_past(step.final_obs)
        self._past = self._past.masked_fill(step.done[:, None, None], 0)
        self._obs, self.task, self.goal = step.obs, self.env.task, self.env.goal
        return dataclasses.replace(step, obs=self._with_past(step.obs), final_obs=final_obs)

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        self.env.assign(task, goal)

    def state_dict(self) -> State:
        return {"env": self.env.state_dict(), "past": self._past, "obs": self._obs}

    def load_state_dict(self, state: State) -> None:
        self.env.load_state_dict(state["env"])
        self._past, self._obs = state["past"].to(self._past), state["obs"].to(self._obs)
        self.task, self.goal = self.env.task, self.env.goal

    def close(self) -> None:
        self.env.close()

    def _with_past(self, obs: Tensor) -> Tensor:
        return torch.cat([self._past.flatten(1), obs], dim=1)
