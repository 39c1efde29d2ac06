"""Mixed precision: modules that may compute in bfloat16 within a network of float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MixedPrecision(nn.Module):
    """Base of modules whose convolutions and matrix products may be computed in another precision (autocast).

    Parameters and what `forward` returns stay float32.
    """

    precision: torch.dtype = torch.float32

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        if self.precision == torch.float32:
            result: Tensor = super().__call__(x, *others)
            return result
        with torch.autocast(x.device.type, self.precision):
            lower: Tensor = super().__call__(x, *others)
        return lower.float()
