"""Copies weights from one network to another, or to parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mtrl.parts import check_parts, is_in, parts_of
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
) -> dict[str, Bool[Tensor, "..."]]:
    """Copies the tensors of another network of the same architecture into `module`, or into parts of it.

    Per-task values go to the task of the same name. Tasks that the other network does not have keep their values.

    Args:
        module: What to load into.
        tensors: By the names of `module.state_dict()`, which begin with that of a network.
        parts: Names of parts (`mtrl.parts.is_in`). None: all tensors.
        have: Names of the other network's tasks, in the order of their ids.
        want: Names of the tasks of `module`.

    Returns:
        The tensors that were loaded by name, and which entries of them.

    Raises:
        UserError: A part does not exist, or tensors are missing, left over or of another shape. Nothing is loaded
            then.
    """
    target = module.state_dict()
    valid = [part for part in parts_of(tensors) if part in parts_of(target)]
    check_parts(parts or [], valid)

    def selected(name: str) -> bool:
        return parts is None or any(is_in(name, part) for part in parts)

    names = [name for name in target if selected(name)]
    axes = task_axes(module)

    def of_have(name: str) -> tuple[int, ...]:
        """The shape that a tensor of `module` would have with the tasks of the other network."""
        along = axes.get(name, ())
        return tuple(n // len(want) * len(have) if i in along else n for i, n in enumerate(target[name].shape))

    expected = {name: str(of_have(name)) for name in names}
    given = {name: str(tuple(tensor.shape)) for name, tensor in tensors.items() if selected(name)}
    problems = [f"{name}: expected {expected.get(name, 'nothing')}, found {given.get(name, 'nothing')}"
                for name in {**expected, **given} if expected.get(name) != given.get(name)]  # fmt: skip
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"The networks differ. {'; '.join(problems[:3])}{more}. Parts that can be loaded alone: {', '.join(valid)}."
        )
    places = [(new, old) for new, old in enumerate(match_tasks(have, want)) if old is not None]
    taken = {name: torch.zeros_like(target[name], dtype=torch.bool) for name in names}
    with torch.no_grad():
        for name in names:
            ours, theirs = target[name], tensors[name]
            if name in axes:
                of_new = _entries(ours.shape, axes[name], [new for new, _ in places], len(want))
                of_old = _entries(theirs.shape, axes[name], [old for _, old in places], len(have))
                ours[of_new] = theirs[of_old].to(ours)
                taken[name][of_new] = True
            else:
                ours.copy_(theirs)
                taken[name].fill_(True)
    return taken


def _entries(shape: Sequence[int], axes: Sequence[int], tasks: list[int], num_tasks: int) -> tuple[Tensor, ...]:
    """Index of the entries of some tasks in a tensor that has the tasks along `axes`."""
    index = [torch.arange(size) for size in shape]
    for axis in axes:
        index[axis] = index[axis].reshape(num_tasks, -1)[tasks].flatten()
    return torch.meshgrid(*index, indexing="ij")
