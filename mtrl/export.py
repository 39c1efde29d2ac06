"""Policies for other programs: `Policy.export` as an ONNX model, or as a program of `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from mtrl.files import replacing
from mtrl.nn.networks import PolicyNetwork
from mtrl.registry import missing_extra
from mtrl.types import EnvSpec, UserError

NAMES = ("obs", "task")
"""Of the inputs; the output is called `action`."""


class Deterministic(nn.Module):
    """The deterministic action of a policy without memory, from raw observations: normaliser and task choice included.

    Args:
        ids: (K,) the network's task id for each task that it is asked for.
    """

    def __init__(self, network: PolicyNetwork, ids: Int[Tensor, " K"]) -> None:
        super().__init__()
        self.network = network
        self.ids: Tensor
        self.register_buffer("ids", ids)

    def forward(self, obs: Shaped[Tensor, "N *obs"], task: Int[Tensor, " N"]) -> Tensor:
        """Actions (N, A) in [-1, 1], or (N,) if discrete."""
        return self.network(obs, self.ids[task]).mode()


def export(network: PolicyNetwork, spec: EnvSpec, ids: Int[Tensor, " K"], path: Path) -> None:
    """See `Policy.export`."""
    write = _writer(path)
    if network.core.state_size:
        raise UserError("A policy with a memory (core) cannot be exported: its state is no input of the exported one.")
    device = ids.device
    obs = torch.zeros(2, *spec.obs_shape, dtype=spec.obs_dtype, device=device)
    task = torch.zeros(2, dtype=torch.int64, device=device)
    batch = torch.export.Dim("N", min=1)
    module = Deterministic(network, ids).eval()
    program = torch.export.export(module, (obs, task), dynamic_shapes=({0: batch}, {0: batch}))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the files of this machine
    try:
        with replacing(path) as temporary:
            write(program, temporary)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


def _writer(path: Path) -> Callable[[Any, Path], None]:
    """What writes files with this ending."""
    if path.suffix == ".pt2":
        return torch.export.save
    if path.suffix != ".onnx":
        raise UserError(f"A policy is exported to a file that ends in .onnx or .pt2, not to {path}.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("Export to ONNX", "onnx and onnxscript", "onnx") from error
    return _write_onnx


def _write_onnx(program: Any, path: Path) -> None:
    names: dict[str, Any] = {"input_names": NAMES, "output_names": ("action",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
