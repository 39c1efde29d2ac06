"""Mixed precision and compiled losses, mainly for GPUs. Both modify a built learner in place.

The learner's state does not depend on them, so a run can be resumed with different settings.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from mtrl.nn.torsos import Torso
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import unknown
from mtrl.types import Learner, UserError

PRECISIONS = ("float32", "bfloat16")


def set_precision(networks: nn.Module, precision: str) -> None:
    """Sets the precision of torsos and trunks: with "bfloat16", they autocast convolutions and matrix products.

    Parameters, cores, heads, losses and optimisers stay float32, as bfloat16 has only two to three significant digits.

    Raises:
        UserError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise UserError(unknown("precision", precision, PRECISIONS))
    for module in networks.modules():
        if isinstance(module, Torso | Trunk):
            module.precision = getattr(torch, precision)


def compile_losses(learner: Learner, backend: str = "inductor") -> None:
    """Compiles the functions from networks to losses that the learner lists in `compilable`.

    Their backward passes are compiled with them and run once, as a whole. A function therefore gives one loss, and
    per-task gradients are not available.

    Raises:
        UserError: No compiler is available to torch.
    """
    if backend == "inductor":
        _check_compiler(next(learner.networks.parameters()).device)
    for name in learner.compilable:
        setattr(learner, name, torch.compile(getattr(learner, name), backend=backend))


def _check_compiler(device: torch.device) -> None:
    """Searches like torch, or Triton on a GPU, which would report a missing compiler only at the first update."""
    if device.type == "cuda":
        compiler = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            compiler = get_cpp_compiler()
        except (InvalidCxxCompiler, OSError):
            compiler = None
    if not compiler:
        name, variable = ("C", "CC") if device.type == "cuda" else ("C++", "CXX")
        raise UserError(
            f"compile=true needs a {name} compiler, and there is none: install gcc, or set {variable} to one, or leave "
            "compile=false."
        )
