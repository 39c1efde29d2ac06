"""Value heads: how the last layer of a value network is read as a value, and its loss."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.registry import register


class ValueHead(nn.Module):
    """Base of the value heads."""

    outputs: int
    """O, the required number of outputs of the last layer."""

    def forward(self, raw: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch"]:
        """The value."""
        raise NotImplementedError

    def loss(self, raw: Float[Tensor, "*batch O"], target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The non-negative loss of each sample for its target value."""
        raise NotImplementedError


@register("value_head", "scalar")
class ScalarValue(ValueHead):
    """The output is the value; the loss is half the squared error.

    Use it first.
    """

    outputs = 1

    def forward(self, raw: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch"]:
        return raw.squeeze(-1)

    def loss(self, raw: Float[Tensor, "*batch O"], target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 0.5 * (self(raw) - target).square()


class CategoricalValue(ValueHead):
    """Base of the heads that predict a distribution over `outputs` fixed values; the loss is the cross-entropy.

    The values are evenly spaced from `minimum` to `maximum`, with symlog in units of sign(v) log(1 + |v|). Targets are
    clipped to this range. The predicted value is the mean (with symlog, as in TD-MPC2, the mean in those units). The
    range is fixed: PopArt cannot rescale probabilities and is refused.

    Args:
        bins: Number of values.
        minimum: The lowest of them.
        maximum: The highest.
        symlog: Whether they are in units of sign(v) log(1 + |v|).
    """

    support: Tensor

    def __init__(self, bins: int, minimum: float, maximum: float, symlog: bool) -> None:
        super().__init__()
        if bins < 2 or not minimum < maximum:
            raise ValueError(f"two bins and minimum < maximum are needed, not {bins}, {minimum} and {maximum}.")
        self.outputs, self.symlog = bins, symlog
        self.minimum, self.maximum, self.spacing = minimum, maximum, (maximum - minimum) / (bins - 1)
        self.register_buffer("support", torch.linspace(minimum, maximum, bins), persistent=False)

    def probabilities(self, target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch O"]:
        """The distribution that represents a target within the range."""
        raise NotImplementedError

    def forward(self, raw: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch"]:
        mean = raw.softmax(-1) @ self.support.to(raw.dtype)
        return mean.sign() * mean.abs().expm1() if self.symlog else mean

    def loss(self, raw: Float[Tensor, "*batch O"], target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        if self.symlog:
            target = target.sign() * target.abs().log1p()
        target = target.clamp(self.minimum, self.maximum)
        return -(self.probabilities(target) * raw.log_softmax(-1)).sum(-1)


@register("value_head", "two_hot")
class TwoHot(CategoricalValue):
    """Represents a target by its two neighbouring values, whose mean is the target (Schrittwieser et al., 2020).

    Use it where the scale of the values changes much: the loss of a distribution does not grow with it.
    """

    def __init__(self, bins: int = 101, minimum: float = -10.0, maximum: float = 10.0, symlog: bool = True) -> None:
        super().__init__(bins, minimum, maximum, symlog)

    def probabilities(self, target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch O"]:
        distance = (target[..., None] - self.support).abs() / self.spacing
        return (1 - distance).clamp(min=0)


@register("value_head", "hl_gauss")
class HLGauss(CategoricalValue):
    """Represents a target by a truncated Gaussian around it (Imani and White, 2018; Farebrother et al., 2024).

    Each value gets the Gaussian's mass in the interval of one spacing around it.

    Use it for the same purpose as `two_hot`, which it surpassed in the experiments of Farebrother et al.

    Args:
        sigma: Standard deviation, in units of the spacing; 0.75 in "Stop Regressing" (Farebrother et al.).
    """

    def __init__(
        self,
        bins: int = 101,
        minimum: float = -10.0,
        maximum: float = 10.0,
        symlog: bool = True,
        sigma: float = 0.75,
    ) -> None:
        super().__init__(bins, minimum, maximum, symlog)
        positive(sigma=sigma)
        self.sigma = sigma * self.spacing

    def probabilities(self, target: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch O"]:
        edges = functional.pad(self.support + self.spacing / 2, (1, 0), value=self.minimum - self.spacing / 2)
        below = torch.erf((edges - target[..., None]) / (self.sigma * math.sqrt(2)))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
