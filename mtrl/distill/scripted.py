"""The scripted policies of Meta-World as teachers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtrl.distill.losses import Kind
from mtrl.distill.teachers import Teacher
from mtrl.registry import register, unknown
from mtrl.types import EnvSpec, UserError

OBS_SHAPE = (39,)
GOAL = 3
"""Number of components at the end of an observation that are the goal."""


@register("teacher", "scripted")
class Scripted(Teacher):
    """The policies of `metaworld.policies` for the 50 tasks (v3). They read a single observation, goal included.

    They were written for Meta-World's float64 observations, to which ours (float32) are converted. Their actions are
    clipped to [-1, 1], as in the environment. They run on the CPU, one row at a time: about 20 microseconds each.

    Use it in Meta-World, where no policy has been trained yet.

    Raises:
        UserError: A task has no scripted policy, observations are not Meta-World's, or (in `label`) goals are hidden.
    """

    kind: Kind = "action"
    description = "Meta-World's scripted policies"

    def __init__(self, spec: EnvSpec) -> None:
        try:
            from metaworld.policies import ENV_POLICY_MAP
        except ImportError:
            raise UserError("Meta-World is not installed: pip install metaworld==3.1.1") from None
        for name in spec.task_names:
            if name not in ENV_POLICY_MAP:
                raise UserError(unknown("task of the teacher 'scripted':", name, ENV_POLICY_MAP))
        if spec.obs_shape != OBS_SHAPE or any(spec.history):
            history = f" with a history of {spec.history[0]} steps" if any(spec.history) else ""
            raise UserError(
                f"The teacher 'scripted' reads Meta-World's 39 numbers, not observations {spec.obs_shape}{history}."
            )
        self._names = spec.task_names
        classes: dict[str, Callable[[], Any]] = dict(ENV_POLICY_MAP)
        self._policies = [classes[name]() for name in spec.task_names]

    def label(
        self, obs: Float[Tensor, "N 39"], task: Int[Tensor, " N"], state: Float[Tensor, "N S"]
    ) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N S"]]:
        """Actions of the scripted policies. Raises `UserError` if a goal is hidden."""
        rows = obs.detach().cpu().numpy().astype(np.float64)
        tasks = task.cpu().numpy()
        if (hidden := ~rows[:, -GOAL:].any(1)).any():
            name = self._names[tasks[hidden][0]]
            raise UserError(f"The teacher 'scripted' must see the goal, which {name} hides: use mt1, mt10 or mt50.")
        actions = np.empty((len(rows), 4), np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about actions outside of [-1, 1], which are clipped below
            for task_id in np.unique(tasks):
                act = self._policies[task_id].get_action
                for row in np.flatnonzero(tasks == task_id):
                    actions[row] = act(rows[row])
        return torch.from_numpy(actions.clip(-1, 1)).to(obs.device), state
