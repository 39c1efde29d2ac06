"""Multi-task reinforcement learning in PyTorch."""

from __future__ import annotations

from typing import Any

from mtrl.envs import register_with_gymnasium

__all__ = ["load_policy"]
__version__ = "0.1.0"

register_with_gymnasium()


def __getattr__(name: str) -> Any:
    # Loaded when asked for: environment workers import `mtrl.envs` and must not import torch.
    if name == "load_policy":
        from mtrl.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'mtrl' has no attribute {name!r}")
