"""Saved policies: `config.json` and `model.safetensors` in one folder, loaded with `mtrl.load_policy`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import mtrl.nn  # noqa: F401  # registers what a policy is made of
from mtrl.checks import positive
from mtrl.export import export
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.registry import construct, unknown
from mtrl.run.checkpoint.codec import CheckpointError
from mtrl.run.checkpoint.manifest import Content, open_sealed, sealed, verify
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.run.reading import check_finite, check_inside, check_sizes, count, read_json, read_tensors, reason
from mtrl.state import check_like, planned, shown
from mtrl.types import Actor, EnvSpec, UserError, match_tasks
from mtrl.zoo.collection import shipped_folder, shipped_names
from mtrl.zoo.hub import fetch, is_repository

FORMAT = 1

Tasks = str | int | np.integer | Sequence[str | int] | np.ndarray | Tensor
"""Name or id of a task, or one for each observation."""


class Policy:
    """A trained policy, ready to act. Call `reset` at the end of episodes if the policy has memory.

    Attributes:
        spec: Spec of the environment it was trained in.
        network: The underlying module.
        tasks: Names of the tasks it can act in, in the order of their ids: those it was trained in, or those of an
            environment (`for_env`).
        actor: Acts on these ids.
    """

    def __init__(self, network: PolicyNetwork, spec: EnvSpec) -> None:
        self.network, self.spec = network, spec
        self.tasks, self.actor = spec.task_names, cast(Actor, network)
        self._state = network.initial_state(0)

    def for_env(self, spec: EnvSpec) -> Policy:
        """The same policy for an environment with other tasks, or with its tasks in another order.

        Its task ids are those of the environment: `policy.for_env(env.spec).act(obs, env.task)`. In tasks that it was
        not trained in (see Raises) it explores as in the first task that it was trained in.

        Raises:
            UserError: Observations or actions differ, or the policy reads task ids and was not trained in some of the
                tasks. A policy of a single task does not depend on ids and can act in any task.
        """
        for field in ("obs_shape", "history", "action_kind", "action_dim"):
            expected, given = getattr(self.spec, field), getattr(spec, field)
            if expected != given:
                raise UserError(f"The policy does not fit the environment: {field} is {expected} here, {given} there.")
        places = match_tasks(self.spec.task_names, spec.task_names)
        new = [name for name, place in zip(spec.task_names, places, strict=True) if place is None]
        readers = self.network.task_readers if self.spec.num_tasks > 1 else ()
        if new and readers:
            raise UserError(
                f"The policy was not trained in {', '.join(new)} and cannot act there, because it reads the task's id "
                f"({', '.join(readers)}). A policy that infers its task can: train with env.history=8 "
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
        """Clears the memory: all of it, or only where the mask `ended` (N,) is true."""
        if ended is None:
            self._state = self._state[:0]
        else:
            mask = torch.as_tensor(ended.copy() if isinstance(ended, np.ndarray) else ended, device=self._state.device)
            self._state = self._state.masked_fill(mask[:, None], 0)

    def act(self, obs: np.ndarray | Tensor, task: Tasks, explore: bool = False) -> np.ndarray | Tensor:
        """Actions for raw observations: deterministic, or sampled with `explore`.

        Memory belongs to the N observations of the previous call, and is cleared if N changes.

        Args:
            obs: (N, *obs_shape), or one observation (*obs_shape).
            task: Name or id of the task of all observations, or one for each.

        Returns:
            Actions (N, A) in [-1, 1], or (N,) if discrete; without N for one observation; numpy for numpy, else tensor.

        Raises:
            UserError: A task is unknown, or observations have another shape.
        """
        device = next(self.network.parameters()).device
        # Copied by numpy, because torch supports neither negative strides nor foreign byte orders.
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

    def export(self, path: str | Path) -> None:
        """Writes the policy for other programs: normaliser and choice of the task included, without exploration.

        Inputs are `obs` (N, *obs_shape) in the dtype of the observations and `task` (N,) int64, ids of `tasks`; the
        output is what `act` gives: actions (N, A), or (N,) if discrete. N is free.

        Args:
            path: A file that ends in `.onnx`, or in `.pt2` for `torch.export.load`.

        Raises:
            UserError: The file has another ending or cannot be written, the policy has a memory, or ONNX is not
                installed.
        """
        ids = self.actor.ids if isinstance(self.actor, Renumbered) else torch.arange(len(self.tasks))
        export(self.network, self.spec, ids.to(self._state.device), Path(path))

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
    """An actor for an environment with different task ids.

    Args:
        ids: (K,) the actor's task id for each task of the environment.
    """

    def __init__(self, actor: Actor, ids: Tensor) -> None:
        self.actor, self.ids = actor, ids
        self.initial_state = actor.initial_state

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`; `task` are ids of the environment."""
        return self.actor.act(obs, self.ids[task], state, explore)


def _numpy_dtype(spec: EnvSpec) -> np.dtype[Any]:
    return np.dtype(str(spec.obs_dtype).removeprefix("torch."))


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def save_policy(folder: Path, network: PolicyNetwork, description: Mapping[str, Any], spec: EnvSpec) -> None:
    """Writes a policy as `config.json` and `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    fields = {**dataclasses.asdict(spec), "obs_dtype": str(spec.obs_dtype).removeprefix("torch.")}
    file = folder / "model.safetensors"
    config = {
        "format": FORMAT,
        "spec": json.loads(json.dumps(fields)),
        "network": json.loads(json.dumps(dict(description))),
        "weights": vars(Content.of(file)),
    }
    (folder / "config.json").write_text(json.dumps(sealed(config), indent=1), encoding="utf-8")


def find_policy(path: str | Path) -> Path:
    """The policy folder in a run (its newest intact checkpoint), a checkpoint, or the folder itself.

    A path that does not exist may be the name of a shipped policy (`mtrl.zoo`), or `user/name` of a repository on the
    Hugging Face hub, which is fetched.

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
        try:
            check_inside(path / "checkpoints", path)
        except ValueError as error:
            raise UserError(f"{path / 'checkpoints'} cannot be read: {error}.") from error
        return newest_valid(path / "checkpoints", use=lambda intact: read_policy(intact / "policy")) / "policy"
    if not path.exists() and (shipped := shipped_folder(path)):
        return shipped
    if not path.exists() and is_repository(path):
        return fetch(path.as_posix())
    shipped_policies = ", ".join(shipped_names()) or "there are none"
    raise UserError(
        f"No policy in {path}: expected a run folder (with checkpoints/), a checkpoint (with policy/), a policy folder "
        f"(with config.json) or the name of a shipped policy ({shipped_policies}), found {_listing(path)}."
    )


def _listing(path: Path) -> str:
    if not path.exists():
        return "nothing there"
    if not path.is_dir():
        return "a file"
    return ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder"


def check_device(device: str) -> None:
    """Raises `UserError` for a device that does not exist or cannot be used."""
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
        path: A run folder (its newest intact checkpoint is used), a checkpoint, a policy folder, the name of a
            shipped policy, or `user/name` of a repository on the Hugging Face hub.

    Raises:
        UserError: There is no policy, its files are damaged or have a later format, or there is no such device.
    """
    check_device(device)
    stored = read_policy(find_policy(path))
    network = build_policy(stored.network, stored.spec)
    network.load_state_dict(stored.tensors)
    return Policy(network.to(device).eval().requires_grad_(False), stored.spec)


@dataclass(frozen=True)
class StoredPolicy:
    """The content of a policy folder, after its files were checked against each other."""

    spec: EnvSpec
    network: dict[str, Any]
    """The arguments of `build_policy`."""
    tensors: dict[str, Tensor]
    """Tensors of the network, by name."""


def load_actor(folder: Path, spec: EnvSpec) -> Actor:
    """The actor of a policy in an environment, on the CPU. Raises like `load_policy` and `Policy.for_env`."""
    return load_policy(folder).for_env(spec).actor


def read_policy(folder: Path) -> StoredPolicy:
    """Reads the files of a policy folder, and checks them before memory is allocated for the network.

    Raises:
        CheckpointError: They are damaged or have a later format; names file and entry.
    """
    file = "config.json"
    try:
        config = _config(read_json(folder / file, folder))
        spec = _spec(config.spec)
        none = {"name": "none"}  # for policies stored by versions without these
        network = vars(construct("network", _Network, {"torso": none, "core": none, "column": none, **config.network}))
        file = "model.safetensors"
        if config.weights is not None:
            content: Content = construct("weights", Content, config.weights)
            content.check(folder / file, folder)
        headers = read_tensors(folder / file, folder, headers_only=True)
        file = "config.json"
        check_sizes(network, count(headers), "network")
        plan = planned(lambda: build_policy(network, spec), len(headers))
        file = "model.safetensors"
        if plan is not None:
            check_like(headers, plan.state_dict())
        tensors = read_tensors(folder / file, folder)
        check_finite(tensors)
    except (OSError, ValueError, UserError) as error:
        raise CheckpointError(f"The policy in {folder} is damaged: {file}: {reason(error)}.") from error
    return StoredPolicy(spec, network, tensors)


@dataclass(frozen=True)
class _Config:
    """Content of `config.json`, without its sha256."""

    format: int
    spec: dict[str, Any]
    network: dict[str, Any]
    weights: dict[str, Any] | None = None
    """`Content` of the other file. Policies stored by versions without this have no checksums at all."""


@dataclass(frozen=True)
class _Network:
    """The arguments of `build_policy`."""

    obs_norm: dict[str, Any]
    torso: dict[str, Any]
    core: dict[str, Any]
    task_encoder: dict[str, Any]
    trunk: dict[str, Any]
    head: str
    action_head: dict[str, Any]
    column: dict[str, Any]


def _config(document: Any) -> _Config:
    entries = document if isinstance(document, dict) else {}
    if (stored := entries.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"it has format {shown(stored)}; this version reads {FORMAT}")
    has_checksums = not entries.keys().isdisjoint(("weights", "sha256"))
    config: _Config = construct("a policy", _Config, open_sealed(document) if has_checksums else document)
    return config


def _spec(fields: Mapping[str, Any]) -> EnvSpec:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    dtype = getattr(torch, str(fields.get("obs_dtype")), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"spec: obs_dtype must be a dtype, not {shown(fields.get('obs_dtype'))}")
    restored = {key: tuples(value) for key, value in fields.items()}
    if "has_success" in restored:  # in policies stored by versions without per-task `reports_success`
        restored["reports_success"] = (restored.pop("has_success"),) * len(restored["task_names"])
        restored["comparable_returns"] = len(restored["task_names"]) == 1
    spec: EnvSpec = construct("spec", EnvSpec, {**restored, "obs_dtype": dtype})
    if len(spec.action_mask) != spec.num_tasks or {len(row) for row in spec.action_mask} != {spec.action_dim}:
        raise ValueError(f"spec: action_mask must have {spec.num_tasks} rows of action_dim={spec.action_dim}")
    if len(spec.reports_success) != spec.num_tasks:
        raise ValueError(f"spec: reports_success must have {spec.num_tasks} entries")
    positive(**{f"obs_shape[{i}]": size for i, size in enumerate(spec.obs_shape)})
    return spec
