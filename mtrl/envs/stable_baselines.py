"""Environments for Stable-Baselines3, which does not accept a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError("mtrl.envs.stable_baselines needs Stable-Baselines3: pip install stable-baselines3") from error

Array = NDArray[Any]


class StableBaselinesEnv(VecEnv):
    """A `VecEnv` of Stable-Baselines3 over a vector environment of Gymnasium.

    For example `PPO("MlpPolicy", StableBaselinesEnv(gymnasium.make_vec("mtrl/MT10-v0", num_envs=40)))`. Where an
    episode ended, the slot's info holds `terminal_observation`, `TimeLimit.truncated`, the final info of that episode
    and `is_success`: whether it succeeded in any step, as Meta-World counts it.

    Args:
        env: An environment with same-step autoreset, possibly in Gymnasium wrappers that keep it.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 resets in the same step: expected autoreset_mode=SameStep, found "
                f"{env.metadata.get('autoreset_mode')}."
            )
        self.env, self.render_mode = env, env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Array | None = None
        self._succeeded = np.zeros(env.num_envs, bool)

    def reset(self) -> Array:
        # All slots share one generator, which gets the first of the seeds that SB3 provides for them.
        obs, infos = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._succeeded[:] = False
        self.reset_infos = [_row(infos, slot) for slot in range(self.num_envs)]
        return obs

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        obs, reward, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        running = {name: values for name, values in infos.items() if not name.lstrip("_").startswith("final_")}
        by_slot = [_row(running, slot) for slot in range(self.num_envs)]
        self._succeeded |= infos["success"]
        for slot in np.flatnonzero(done).tolist():
            by_slot[slot] = _row(infos["final_info"], slot) | {
                "terminal_observation": infos["final_obs"][slot],
                "TimeLimit.truncated": bool(truncated[slot] and not terminated[slot]),
                "is_success": bool(self._succeeded[slot]),
            }
        self._succeeded[done] = False
        return obs, reward, done, by_slot

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[Array | None]:
        images: Any = self.env.render() if self.render_mode else None
        return images or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, once for each requested slot."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("The slots are stepped together and have no attributes of their own.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError("The slots are stepped together and have no methods of their own: use `env`.")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def _row(infos: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """The info of one slot from Gymnasium's nested infos of all slots."""
    return {name: _row(value, slot) if isinstance(value, Mapping) else value[slot] for name, value in infos.items()}
