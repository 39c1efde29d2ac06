"""Saved policies: `config.json` and `model.safetensors` in one folder, loaded with `mtrl.load_policy`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import mtrl.nn  # noqa: F401  # registers what a policy is made of
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.registry import unknown
from mtrl.run.checkpoint import newest_valid, verify
from mtrl.types import Actor, EnvSpec, UserError, match_tasks

FORMAT = 1

Tasks = str | int | np.integer | Sequence[str | int] | np.ndarray | Tensor
"""A task's name or id, or one for each observation."""


class Policy:
    """A trained policy, ready to act. One with memory remembers: tell it with `reset` where episodes end.

    Attributes:
        spec: Of the environment it was trained for.
        network: The module itself.
        tasks: Names of the tasks it can act in, in the order of their ids: those it was trained for, or an
            environment's (`for_env`).
        actor: Acts on these ids.
    """

    def __init__(self, network: PolicyNetwork, spec: EnvSpec) -> None:
        self.network, self.spec = network, spec
        self.tasks, self.actor = spec.task_names, cast(Actor, network)
        self._state = network.initial_state(0)

    def for_env(self, spec: EnvSpec) -> Policy:
        """The same policy with the tasks of an environment that has others, or has them in another order.

        Its task ids are those of the environment: `policy.for_env(env.spec).act(obs, env.task)`. In a task that it was
        not trained for (see Raises) it explores as in the first that it was trained for.

        Raises:
            UserError: Observations or actions differ, or tasks that it was not trained for while it reads their ids. A
                policy of a single task has nothing to read, and acts in any.
        """
        for field in ("obs_shape", "history", "action_kind", "action_dim"):
            expected, found = getattr(self.spec, field), getattr(spec, field)
            if expected != found:
                raise UserError(f"The policy does not fit the environment: {field} is {expected} here, {found} there.")
        places = match_tasks(self.spec.task_names, spec.task_names)
        new = [name for name, place in zip(spec.task_names, places, strict=True) if place is None]
        readers = self.network.task_readers if self.spec.num_tasks > 1 else ()
        if new and readers:
            raise UserError(
                f"The policy was not trained in {', '.join(new)} and cannot act there, as it is told its task's id "
                f"({', '.join(readers)}). One that finds out its task can: train with env.history=8 "
                "task_encoder=context network=mlp."
            )
        ids = [place or 0 for place in places]
        for name, task, mask in zip(spec.task_names, ids, spec.action_mask, strict=True):
            if mask != self.spec.action_mask[task]:
                raise UserError(f"The policy does not fit the environment: {name} has other actions there.")
        policy = Policy(self.network, self.spec)
        policy.tasks = spec.task_names
        policy.actor = Renumbered(self.network, torch.tensor(ids, device=self._state.device))
        return policy

    def reset(self, ended: np.ndarray | Tensor | None = None) -> None:
        """Forgets what was observed: everything, or that of the observations in the mask `ended` (N,)."""
        if ended is None:
            self._state = self._state[:0]
        else:
            mask = torch.as_tensor(ended.copy() if isinstance(ended, np.ndarray) else ended, device=self._state.device)
            self._state = self._state.masked_fill(mask[:, None], 0)

    def act(self, obs: np.ndarray | Tensor, task: Tasks, explore: bool = False) -> np.ndarray | Tensor:
        """Actions for raw observations: deterministic, or sampled with `explore`.

        Memory is of the N observations of the call before, and begins anew if there were more or fewer.

        Args:
            obs: (N, *obs_shape), or one observation (*obs_shape).
            task: Name or id of the task of all observations, or one for each.

        Returns:
            Actions (N, A) in [-1, 1], or (N,) if discrete; without N for one observation; numpy for numpy, else tensor.

        Raises:
            UserError: An unknown task, or observations of another shape.
        """
        device = next(self.network.parameters()).device
        # A copy, and in numpy: torch takes no negative strides and no foreign byte order.
        values = np.array(obs, dtype=_numpy_dtype(self.spec)) if isinstance(obs, np.ndarray) else obs
        batch = torch.as_tensor(values, device=device)
        single = batch.ndim == len(self.spec.obs_shape)
        batch = (batch[None] if single else batch).to(self.spec.obs_dtype)
        if tuple(batch.shape[1:]) != self.spec.obs_shape:
            raise UserError(f"Expected observations (N, {_shape(self.spec.obs_shape)}), found {tuple(batch.shape)}.")
        if len(self._state) != len(batch):
            self._state = self.network.initial_state(len(batch))
        ids = self._task_ids(task, len(batch)).to(device)
        action, _, self._state = self.actor.act(batch, ids, self._state, explore)
        if single:
            action = action[0]
        return action.cpu().numpy() if isinstance(obs, np.ndarray) else action

    def _task_ids(self, task: Any, count: int) -> Tensor:
        each = [task] if isinstance(task, str) or np.ndim(task) == 0 else list(task)
        ids = [self._task_id(name) for name in each]
        if len(ids) not in (1, count):
            raise UserError(f"Expected one task, or one for each of {count} observations, found {len(ids)}.")
        return torch.tensor(ids).expand(count) if len(ids) == 1 else torch.tensor(ids)

    def _task_id(self, task: Any) -> int:
        names = self.tasks
        if isinstance(task, str):
            if task not in names:
                raise UserError(unknown("task of this policy:", task, names))
            return names.index(task)
        task_id = index(task)
        if not 0 <= task_id < len(names):
            raise UserError(f"The task id must be from 0 to {len(names) - 1}, not {task_id}.")
        return task_id


class Renumbered:
    """An actor for an environment that numbers the tasks in another way.

    Args:
        ids: (K,) the actor's id of each of the environment's tasks.
    """

    def __init__(self, actor: Actor, ids: Tensor) -> None:
        self.actor, self.ids = actor, ids
        self.initial_state = actor.initial_state

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`; `task` as the environment numbers them."""
        return self.actor.act(obs, self.ids[task], state, explore)


def _numpy_dtype(spec: EnvSpec) -> np.dtype[Any]:
    return np.dtype(str(spec.obs_dtype).removeprefix("torch."))


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def save_policy(folder: Path, network: PolicyNetwork, description: Mapping[str, Any], spec: EnvSpec) -> None:
    """Writes a policy; the weights need no code of a checkpoint to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**dataclasses.asdict(spec), "obs_dtype": str(spec.obs_dtype).removeprefix("torch.")}
    config = {"format": FORMAT, "spec": fields, "network": dict(description)}
    (folder / "config.json").write_text(json.dumps(config, indent=1, allow_nan=False), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def find_policy(path: str | Path) -> Path:
    """The policy folder in a run (its last whole checkpoint), a checkpoint, or the folder itself.

    Raises:
        UserError: There is none, or the checkpoint is damaged.
    """
    path = Path(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            (path / "config.json").stat()
    except OSError as error:
        raise UserError(f"No policy in {path}: {error.strerror}.") from error
    if (path / "config.json").is_file():
        return path
    if (path / "policy").is_dir():
        verify(path)
        return path / "policy"
    if (path / "checkpoints").is_dir():
        return newest_valid(path / "checkpoints") / "policy"
    raise UserError(
        f"No policy in {path}: expected a run folder (with checkpoints/), a checkpoint (with policy/) or a policy "
        f"folder (with config.json), found {_listing(path)}."
    )


def _listing(path: Path) -> str:
    if not path.exists():
        return "nothing there"
    if not path.is_dir():
        return "a file"
    return ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder"


def check_device(device: str) -> None:
    """Raises `UserError` for a device that is not there, or that cannot be used."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if device not in here:
        raise UserError(f"device={device} cannot be used. Here: {', '.join(here)}.")
    try:
        torch.empty(0, device=device)
    except RuntimeError as error:
        raise UserError(f"device={device} cannot be used: {str(error).splitlines()[0]}.") from error


def stored_tasks(folder: Path) -> tuple[str, ...]:
    """Names of the tasks of the policy in a folder, in the order of their ids. Raises `UserError` if it is damaged."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return tuple(config["spec"]["task_names"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"The policy in {folder} is damaged: {' '.join(str(error).split())}.") from error


def load_policy(path: str | Path, device: str = "cpu") -> Policy:
    """Loads a policy for acting, evaluation or transfer. Nothing is unpickled.

    Args:
        path: A run folder (its last whole checkpoint is taken), a checkpoint or a policy folder.

    Raises:
        UserError: There is no policy, its files are damaged or of a later format, or there is no such device.
    """
    check_device(device)
    folder = find_policy(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise UserError(f"The policy in {folder} has format {config['format']}; this version reads {FORMAT}.")
        spec = _spec(config["spec"])
        none = {"name": "none"}  # in policies that were stored before there were torsos and cores
        network = build_policy({"torso": none, "core": none, **config["network"]}, spec)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The policy in {folder} is damaged: {' '.join(str(error).split())}.") from error
    return Policy(network.to(device).eval().requires_grad_(False), spec)


def _spec(fields: Mapping[str, Any]) -> EnvSpec:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    restored = {key: tuples(value) for key, value in fields.items()}
    if "has_success" in restored:  # in policies that were stored before each task said it of itself
        restored["reports_success"] = (restored.pop("has_success"),) * len(restored["task_names"])
        restored["comparable_returns"] = len(restored["task_names"]) == 1
    return EnvSpec(**{**restored, "obs_dtype": getattr(torch, fields["obs_dtype"])})
