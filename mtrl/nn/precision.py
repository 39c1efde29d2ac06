"""Mixed precision: modules that can compute in bfloat16 within a float32 network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MixedPrecision(nn.Module):
    """Base of modules whose convolutions and matrix products can be computed in another precision (autocast).

    Parameters and outputs stay float32.
    """

    precision: torch.dtype = torch.float32

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        if self.precision == torch.float32:
            result: Tensor = super().__call__(x, *args)
            return result
        with torch.autocast(x.device.type, self.precision):
            lower: Tensor = super().__call__(x, *args)
        return lower.float()
