"""Copies weights from one network to another, or to parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrl.registry import unknown
from mtrl.run.checkpoint.codec import CheckpointError, load_state
from mtrl.run.reading import check_finite
from mtrl.types import State, UserError, match_tasks


def load_networks(folder: Path) -> dict[str, Tensor]:
    """The tensors of all networks in a learner's state. Raises `CheckpointError`."""
    try:
        networks = networks_of(load_state(folder))
        check_finite(networks)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be used: {error}.") from error
    return networks


def networks_of(learner: State) -> dict[str, Tensor]:
    """The tensors of all networks in a learner's state. Raises `ValueError`."""
    networks = learner.get("networks")
    if not isinstance(networks, dict) or not all(isinstance(tensor, Tensor) for tensor in networks.values()):
        raise ValueError("networks: expected tensors")
    return networks


def task_axes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The per-task axes that a module and its parts declare (`TaskAxes`), by the names of `module.state_dict()`."""
    return {
        f"{prefix}.{name}" if prefix else name: axes
        for prefix, part in module.named_modules()
        for name, axes in getattr(part, "task_axes", {}).items()
    }


def load_parts(
    module: nn.Module, tensors: Mapping[str, Tensor], parts: list[str] | None, have: Sequence[str], want: Sequence[str]
) -> list[str]:
    """Copies the tensors of another network of the same architecture into `module`, or into parts of it.

    Per-task values go to the task of the same name. Tasks that the other network does not have keep their values.

    Args:
        module: What to load into.
        tensors: By the names of `module.state_dict()`.
        parts: Names of submodules: "trunk" selects every tensor with a component `trunk` in its dotted name
            (`actor.trunk.input.weight`), but not a `task_input` in it, which has a column for each task and counts as
            a separate part. None: all tensors.
        have: Names of the other network's tasks, in the order of their ids.
        want: Names of the tasks of `module`.

    Returns:
        Names of the tensors that were loaded.

    Raises:
        UserError: A part does not exist, or tensors are missing, left over or of another shape. Nothing is loaded
            then.
    """
    target = module.state_dict()
    valid = sorted(set(_parts(tensors)) & set(_parts(target)))
    for part in parts or []:
        if part not in valid:
            raise UserError(unknown("part", part, valid))

    def selected(name: str) -> bool:
        if parts is None:
            return True
        modules = name.split(".")[:-1]
        return not set(parts).isdisjoint(modules) and ("task_input" not in modules or "task_input" in parts)

    names = [name for name in target if selected(name)]
    axes = task_axes(module)

    def of_have(name: str) -> tuple[int, ...]:
        """The shape that a tensor of `module` would have with the tasks of the other network."""
        along = axes.get(name, ())
        return tuple(n // len(want) * len(have) if i in along else n for i, n in enumerate(target[name].shape))

    expected = {name: str(of_have(name)) for name in names}
    found = {name: str(tuple(tensor.shape)) for name, tensor in tensors.items() if selected(name)}
    problems = [f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
                for name in {**expected, **found} if expected.get(name) != found.get(name)]  # fmt: skip
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"The networks differ. {'; '.join(problems[:3])}{more}. Parts that can be loaded alone: {', '.join(valid)}."
        )
    places = [(new, old) for new, old in enumerate(match_tasks(have, want)) if old is not None]
    with torch.no_grad():
        for name in names:
            ours, theirs = target[name], tensors[name]
            if name in axes:
                of_new = _entries(ours.shape, axes[name], [new for new, _ in places], len(want))
                of_old = _entries(theirs.shape, axes[name], [old for _, old in places], len(have))
                ours[of_new] = theirs[of_old].to(ours)
            else:
                ours.copy_(theirs)
    return names


def _entries(shape: Sequence[int], axes: Sequence[int], tasks: list[int], num_tasks: int) -> tuple[Tensor, ...]:
    """Index of the entries of some tasks in a tensor that has the tasks along `axes`."""
    index = [torch.arange(size) for size in shape]
    for axis in axes:
        index[axis] = index[axis].reshape(num_tasks, -1)[tasks].flatten()
    return torch.meshgrid(*index, indexing="ij")


def _parts(names: Mapping[str, Tensor]) -> Iterator[str]:
    for name in names:
        yield from (part for part in name.split(".")[:-1] if not part.isdigit())
