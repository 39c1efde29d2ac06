"""Any `VecEnv` as a `gymnasium.vector.VectorEnv`, and one slot as a `gymnasium.Env`, for use with other libraries.

`import mtrl` registers ids for `gymnasium.make_vec`: `mtrl/MT10-v0`, `mtrl/ML45-v0`, ... for the benchmarks, and each
of the 50 tasks under its official name, `mtrl/reach-v3`. Ids of a single task also work with `gymnasium.make`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

import mtrl.envs
from mtrl.registry import lookup, unknown
from mtrl.types import UserError, VecEnv

Array = NDArray[Any]
METADATA = {"render_modes": ["rgb_array"], "render_fps": 80}


class GymVectorEnv(VectorEnv[Any, Any, Any]):
    """Takes numpy arrays or tensors, and returns arrays; or, with `tensors`, tensors on the environment's device.

    Infos, each (B,): `task` and `goal` (those that each slot runs now), `success` (of the step just taken), and the
    official fields (`near_object`, `grasp_success`, ...) if the environment has them. With same-step autoreset, where
    an episode ended, `final_obs` (B, *obs) holds its last observation and `final_info` its `task`, `goal` and the
    other infos, with the masks `_final_obs` and `_final_info` as in Gymnasium's vector environments. The other rows
    have no meaning.

    Args:
        env: The environment. Call its `assign` to choose the tasks and goals that the slots run next.
        use_one_hot: Append the one-hot task to flat observations, like Meta-World's option of that name.
        autoreset_mode: Gymnasium's mode, or its value: "SameStep", "NextStep" or "Disabled". Slots cannot wait for
            each other, so the last two need episodes that end in all slots together, like those of Meta-World.
        render_mode: "rgb_array" for `render`; the environment must have been made for it.
        tensors: Return tensors, as with Gymnasium's wrapper `NumpyToTorch` but without a way through numpy: what is
            simulated on a GPU stays there. Of a step the host only asks whether an episode has ended.
    """

    def __init__(
        self,
        env: VecEnv,
        use_one_hot: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        tensors: bool = False,
    ) -> None:
        spec = env.spec
        if use_one_hot and len(spec.obs_shape) != 1:
            raise ValueError(f"use_one_hot needs flat observations, not {spec.obs_shape}.")
        self.env, self.num_envs, self.render_mode = env, env.num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self._returned: Callable[[Tensor], Any] = torch.clone if tensors else _numpy
        self._one_hot = torch.eye(spec.num_tasks if use_one_hot else 0, device=env.task.device)
        self._begun: Tensor | None = None
        """First observations of episodes that have begun in `env` but have not been returned to the user yet."""
        shape = (spec.obs_shape[0] + spec.num_tasks,) if use_one_hot else spec.obs_shape
        dtype = np.dtype(str(spec.obs_dtype).removeprefix("torch."))
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        self.single_observation_space = Box(low, high, shape, dtype.type)
        if spec.action_kind == "continuous":
            self.single_action_space = Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        else:
            self.single_action_space = Discrete(spec.action_dim)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins a new episode in every slot.

        Args:
            seed: Reseeds the drawing of goals.
            options: `reset_mask` (B,) bool, as defined by Gymnasium for `Disabled`; it must be true everywhere.
        """
        if not torch.as_tensor((options or {}).get("reset_mask", True)).all():
            raise ValueError("reset_mask must be true for all slots: their episodes end together.")
        super().reset(seed=seed)
        if self._begun is None or seed is not None:
            self._begun = self._observation(self.env.reset(seed), self.env.task)
        return self._first()

    def step(self, actions: Array | Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps every slot. Actions outside the space are clipped; NaN raises `ValueError`.

        Raises:
            ResetNeeded: The episodes have ended, and autoreset is disabled.
        """
        if self._begun is not None:
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise ResetNeeded("The episodes of all slots have ended: call reset before the next step.")
            obs, infos = self._first()
            nothing = torch.zeros(self.num_envs, device=self.env.task.device)
            return obs, *map(self._returned, (nothing, nothing.bool(), nothing.bool())), infos
        before = self._running()
        step = self.env.step(torch.as_tensor(actions, device=self.env.task.device))
        outcome = {"success": step.success, **getattr(self.env, "info", dict)()}
        of_step = {name: self._returned(values) for name, values in outcome.items()}
        following, infos = self._observation(step.obs, self.env.task), self._running() | of_step
        shown, done = following, self._returned(step.done)
        if done.any():
            final_obs, final_info = self._observation(step.final_obs, step.task), before | of_step
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                infos |= {
                    "final_obs": self._returned(final_obs),
                    "_final_obs": done,
                    "final_info": final_info,
                    "_final_info": done,
                }
            elif done.all():
                self._begun, shown, infos = following, final_obs, final_info
            else:
                raise ValueError(
                    f"Episodes ended in {int(done.sum())} of {self.num_envs} slots, and autoreset_mode="
                    f"{self.autoreset_mode.value} needs them to end together: use SameStep."
                )
        return *map(self._returned, (shown, step.reward, step.terminated, step.truncated)), infos

    def render(self) -> tuple[Array, ...]:
        """An image (height, width, 3) uint8 of each slot; after the end of an episode it shows the next one."""
        if self.render_mode is None:
            raise ValueError('There are no images: make the environment with render_mode="rgb_array".')
        return tuple(self.env.render(slot) for slot in range(self.num_envs))  # type: ignore[attr-defined]

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()

    def _first(self) -> tuple[Any, dict[str, Any]]:
        assert self._begun is not None
        obs, self._begun = self._begun, None
        return self._returned(obs), self._running()

    def _running(self) -> dict[str, Any]:
        return {"task": self._returned(self.env.task), "goal": self._returned(self.env.goal)}

    def _observation(self, obs: Tensor, task: Tensor) -> Tensor:
        return torch.cat((obs, self._one_hot[task]), dim=1) if len(self._one_hot) else obs


class GymEnv(gymnasium.Env[Array, Any]):
    """A `GymVectorEnv` with one slot and no autoreset as a `gymnasium.Env`."""

    metadata = METADATA

    def __init__(self, vector: GymVectorEnv) -> None:
        if vector.num_envs != 1 or vector.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError("GymEnv needs a GymVectorEnv of one slot, with autoreset_mode=Disabled.")
        self.vector, self.render_mode = vector, vector.render_mode
        self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begins an episode; `seed` reseeds the drawing of goals. `options` are ignored."""
        super().reset(seed=seed)
        obs, infos = self.vector.reset(seed=seed)
        return obs[0], _of_slot(infos)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """See `GymVectorEnv.step`."""
        obs, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _of_slot(infos)

    def render(self) -> Array:
        """An image (height, width, 3) uint8."""
        return self.vector.render()[0]

    def close(self) -> None:
        self.vector.close()


def _of_slot(infos: dict[str, Array]) -> dict[str, Any]:
    return {name: values[0].item() for name, values in infos.items()}


def _numpy(values: Tensor) -> Array:
    return values.cpu().numpy().copy()


def make(
    num_envs: int,
    name: str,
    use_one_hot: bool = False,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    tensors: bool = False,
    **options: Any,
) -> GymVectorEnv:
    """Entry point of `gymnasium.make_vec`.

    Args:
        num_envs: Number of slots. 1, Gymnasium's default, means one for each task.
        name: See `mtrl.envs.make`.
        use_one_hot: See `GymVectorEnv`.
        autoreset_mode: See `GymVectorEnv`.
        render_mode: "rgb_array" for `render`, which uses the published environments.
        max_episode_steps: Gymnasium's name for `horizon`.
        tensors: See `GymVectorEnv`.
        options: Other options of `mtrl.envs.make`.

    Raises:
        TypeError: An option does not exist. The message has the wording that other libraries look for.
    """
    mtrl.envs.register_all()
    known = (*signature(mtrl.envs.make).parameters, *signature(lookup("env", name)).parameters)
    for option in options.keys() - known:
        raise TypeError(f"{name} got an unexpected keyword argument {option!r}. {unknown('option', option, known)}")
    if render_mode not in (None, *METADATA["render_modes"]):  # type: ignore[misc]
        raise UserError(f"render_mode must be rgb_array or None, not {render_mode!r}.")
    if max_episode_steps is not None:
        options.setdefault("horizon", max_episode_steps)
    if render_mode is not None:
        options |= {"physics": "official", "render": True}
    env = mtrl.envs.make(name, num_envs=None if num_envs == 1 else num_envs, **options)
    return GymVectorEnv(env, use_one_hot, autoreset_mode, render_mode, tensors)


def make_single(name: str, **options: Any) -> GymEnv:
    """Entry point of `gymnasium.make`: like `make`, for one task and in this process."""
    vector = make(1, name, autoreset_mode=AutoresetMode.DISABLED, **{"num_workers": 0, **options})
    if vector.num_envs != 1:
        vector.close()
        raise UserError(
            f"{name} has {vector.num_envs} tasks, and gymnasium.make gives one environment: use gymnasium.make_vec, "
            'or the name of a task, as in gymnasium.make("mtrl/reach-v3").'
        )
    return GymEnv(vector)
