"""Multi-task reinforcement learning in PyTorch."""

from __future__ import annotations

import os
from typing import Any

from mtrl.envs import register_with_gymnasium

__all__ = ["load_policy"]
__version__ = "0.1.0"

# Read when torch is imported. By default torch's idle threads spin for milliseconds (GNU OpenMP: 300,000 iterations)
# and occupy cores that the simulation's threads need; this is long enough to wait for a network's next operation.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

register_with_gymnasium()


def __getattr__(name: str) -> Any:
    # Loaded on access, because environment workers import `mtrl.envs` and must not import torch.
    if name == "load_policy":
        from mtrl.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'mtrl' has no attribute {name!r}")
