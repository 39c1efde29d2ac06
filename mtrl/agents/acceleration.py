"""Switches meant for a GPU: mixed precision and compiled losses. They change how a built learner computes, in place.

Its state is the same with and without them, so that a run can be resumed with other switches.
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
    """With "bfloat16", torsos and trunks compute their convolutions and matrix products in it (autocast).

    Parameters, cores, heads, losses and optimisers stay float32: a value in bfloat16 would have two to three digits.

    Raises:
        UserError: No such precision.
    """
    if precision not in PRECISIONS:
        raise UserError(unknown("precision", precision, PRECISIONS))
    for module in networks.modules():
        if isinstance(module, Torso | Trunk):
            module.precision = getattr(torch, precision)


def compile_losses(learner: Learner, backend: str = "inductor") -> None:
    """Compiles the functions from networks to losses that the learner names in `compilable`.

    Their backward passes are compiled with them, each to run once and as a whole: so a function gives one loss, and
    per-task gradients cannot be taken.

    Raises:
        UserError: There is no compiler that torch could use.
    """
    if backend == "inductor":
        _check_compiler(next(learner.networks.parameters()).device)
    for name in learner.compilable:
        setattr(learner, name, torch.compile(getattr(learner, name), backend=backend))


def _check_compiler(device: torch.device) -> None:
    """Looks as torch does, and Triton for a GPU: they would not say what is missing before the first update."""
    if device.type == "cuda":
        found = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            found = get_cpp_compiler()
        except (InvalidCxxCompiler, OSError):
            found = None
    if not found:
        name, variable = ("C", "CC") if device.type == "cuda" else ("C++", "CXX")
        raise UserError(
            f"compile=true needs a {name} compiler, and there is none: install gcc, or set {variable} to one, or leave "
            "compile=false."
        )
