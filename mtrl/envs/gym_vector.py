"""Any `VecEnv` as a `gymnasium.vector.VectorEnv`, for use with other libraries.

`import mtrl` registers the ids that `gymnasium.make_vec` takes: `mtrl/MT10-v0`, `mtrl/ML45-v0`, ... for the benchmarks,
and each of the 50 tasks under its official name, `mtrl/reach-v3`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

import mtrl.envs
from mtrl.types import VecEnv

Array = NDArray[Any]


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """Numpy in, numpy out, same-step autoreset.

    Infos, each (B,): `task`, `goal` (what each slot runs now), `success` (of the step just made), and where the
    environment has them the official fields (`near_object`, `grasp_success`, ...). Where an episode ended,
    `final_obs` (B, *obs) holds its last observation and `final_info` its `task`, `goal` and the rest, with the masks
    `_final_obs` and `_final_info` as in Gymnasium's own vector environments; elsewhere these rows mean nothing.

    Args:
        env: What is stepped. `assign` on it decides which tasks and goals the slots run next.
        one_hot: Append the task, one-hot, to flat observations, as Meta-World's `use_one_hot` does.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  # Gymnasium reads it from the class

    def __init__(self, env: VecEnv, one_hot: bool = False) -> None:
        spec = env.spec
        if one_hot and len(spec.obs_shape) != 1:
            raise ValueError(f"one_hot needs flat observations, not {spec.obs_shape}.")
        self.env, self.num_envs = env, env.num_envs
        self._one_hot = np.eye(spec.num_tasks if one_hot else 0, dtype=np.float32)
        shape = (spec.obs_shape[0] + spec.num_tasks,) if one_hot else spec.obs_shape
        dtype = np.dtype(str(spec.obs_dtype).removeprefix("torch."))
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        self.single_observation_space = Box(low, high, shape, dtype.type)
        if spec.action_kind == "continuous":
            self.single_action_space = Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        else:
            self.single_action_space = Discrete(spec.action_dim)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begins a new episode in every slot; a seed restarts the goals drawn. There are no options."""
        super().reset(seed=seed)
        obs = self.env.reset(seed)
        return self._observation(obs, self.env.task), self._running()

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Steps every slot. Actions outside the space are clipped; NaN raises `ValueError`."""
        before = self._running()
        step = self.env.step(torch.as_tensor(actions))
        outcome = {"success": step.success, **getattr(self.env, "info", dict)()}
        of_step = {name: _numpy(values) for name, values in outcome.items()}
        infos = self._running() | of_step
        done = _numpy(step.done)
        if done.any():
            infos |= {
                "final_obs": self._observation(step.final_obs, step.task),
                "_final_obs": done,
                "final_info": before | of_step,
                "_final_info": done,
            }
        return (
            self._observation(step.obs, self.env.task),
            _numpy(step.reward),
            _numpy(step.terminated),
            _numpy(step.truncated),
            infos,
        )

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()

    def _running(self) -> dict[str, Array]:
        return {"task": _numpy(self.env.task), "goal": _numpy(self.env.goal)}

    def _observation(self, obs: Tensor, task: Tensor) -> Array:
        if not len(self._one_hot):
            return _numpy(obs)
        return np.concatenate((_numpy(obs), self._one_hot[_numpy(task)]), axis=1)


def _numpy(values: Tensor) -> Array:
    return values.cpu().numpy().copy()


def make(num_envs: int, name: str, one_hot: bool = False, **options: Any) -> GymVectorEnv:
    """What `gymnasium.make_vec` calls: `mtrl.envs.make` with any of its options."""
    return GymVectorEnv(mtrl.envs.make(name, num_envs=num_envs, **options), one_hot)
