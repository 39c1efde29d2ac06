"""Distributions over actions. Masked components have action 0, log-probability 0 and entropy 0."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@runtime_checkable
class Distribution(Protocol):
    """The output of a policy."""

    def sample(self) -> tuple[Tensor, Tensor]:
        """An action and its log-probability; differentiable (reparametrised) if the action is continuous."""
        ...

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...

    def entropy_bonus(self) -> Tensor:
        """The part of the entropy that is rewarded as exploration."""
        ...

    def mode(self) -> Tensor:
        """The deterministic action."""
        ...

    def kl_divergence(self, other: Any) -> Tensor:
        """KL(self || other) in nats, for another distribution of the same kind over the same actions."""
        ...

    def shifted(self, shift: Tensor) -> Distribution:
        """The one whose logits, or means (before tanh), are larger by `shift`; all else is the same."""
        ...


def _gaussian_kl(p: Gaussian | TanhGaussian, q: Gaussian | TanhGaussian) -> Float[Tensor, "*batch"]:
    """KL divergence of the Gaussians, which is invariant under one-to-one functions of the action."""
    z = (p.mean - q.mean) * (-q.log_std).exp()
    ratio = 2 * (p.log_std - q.log_std)  # log ratio of the variances
    return (0.5 * (ratio.exp() + z.square() - 1 - ratio) * p.mask).sum(-1)


class Gaussian:
    """Independent Gaussians. Samples may be outside [-1, 1] (the environment clips them); the mode is clipped."""

    def __init__(
        self, mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"], mask: Bool[Tensor, "*batch A"]
    ) -> None:
        self.mean, self.log_std, self.mask = mean, log_std, mask

    def sample(self) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        action = (self.mean + self.log_std.exp() * torch.randn_like(self.mean)) * self.mask
        return action, self.log_prob(action)

    def log_prob(self, action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        z = (action - self.mean) * (-self.log_std).exp()
        return ((-0.5 * z.square() - self.log_std - HALF_LOG_2PI) * self.mask).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return ((0.5 + HALF_LOG_2PI + self.log_std) * self.mask).sum(-1)

    def entropy_bonus(self) -> Float[Tensor, "*batch"]:
        """The entropy with standard deviations clipped to 1.

        Actions outside [-1, 1] are clipped by the environment, so that the bonus would widen the Gaussian without limit
        unless advantages prevent it.
        """
        return Gaussian(self.mean, self.log_std.clamp(max=0), self.mask).entropy()

    def mode(self) -> Float[Tensor, "*batch A"]:
        return self.mean.clamp(-1, 1) * self.mask

    def kl_divergence(self, other: Gaussian) -> Float[Tensor, "*batch"]:
        """KL(self || other), before actions are clipped."""
        return _gaussian_kl(self, other)

    def shifted(self, shift: Float[Tensor, "*batch A"]) -> Gaussian:
        return Gaussian(self.mean + shift, self.log_std, self.mask)


class TanhGaussian:
    """tanh of independent Gaussians, in (-1, 1)."""

    def __init__(
        self, mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"], mask: Bool[Tensor, "*batch A"]
    ) -> None:
        self.mean, self.log_std, self.mask = mean, log_std, mask

    def sample(self) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch"]]:
        unsquashed = self.mean + self.log_std.exp() * torch.randn_like(self.mean)
        return unsquashed.tanh() * self.mask, self._log_prob(unsquashed)

    def log_prob(self, action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        """Log-probability of actions in [-1, 1]; the bounds are moved inside by one float32 step."""
        limit = 1 - torch.finfo(torch.float32).eps
        return self._log_prob(action.clamp(-limit, limit).atanh())

    def _log_prob(self, unsquashed: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
        z = (unsquashed - self.mean) * (-self.log_std).exp()
        gaussian = -0.5 * z.square() - self.log_std - HALF_LOG_2PI
        # log(1 - tanh(u)^2), stable for large |u|
        log_slope = 2 * (math.log(2) - unsquashed - functional.softplus(-2 * unsquashed))
        return ((gaussian - log_slope) * self.mask).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """One-sample estimate: there is no closed form."""
        return -self.sample()[1]

    entropy_bonus = entropy

    def mode(self) -> Float[Tensor, "*batch A"]:
        return self.mean.tanh() * self.mask

    def kl_divergence(self, other: TanhGaussian) -> Float[Tensor, "*batch"]:
        return _gaussian_kl(self, other)

    def shifted(self, shift: Float[Tensor, "*batch A"]) -> TanhGaussian:
        return TanhGaussian(self.mean + shift, self.log_std, self.mask)


class Categorical:
    """Distribution over the discrete actions in the mask."""

    def __init__(self, logits: Float[Tensor, "*batch A"], mask: Bool[Tensor, "*batch A"]) -> None:
        self.mask = mask
        # A finite floor instead of -inf: 0 * log(0) in the entropy would be NaN.
        self.log_probs = functional.log_softmax(logits.masked_fill(~mask, -1e9), dim=-1)

    def sample(self) -> tuple[Shaped[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        gumbel = -torch.empty_like(self.log_probs).exponential_().log()
        action = (self.log_probs + gumbel).argmax(-1)
        return action, self.log_prob(action)

    def log_prob(self, action: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.log_probs.gather(-1, action[..., None]).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    entropy_bonus = entropy

    def mode(self) -> Shaped[Tensor, "*batch"]:
        return self.log_probs.argmax(-1)

    def kl_divergence(self, other: Categorical) -> Float[Tensor, "*batch"]:
        """Practically infinite where `other` masks an action that this one may take."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def shifted(self, shift: Float[Tensor, "*batch A"]) -> Categorical:
        return Categorical(self.log_probs + shift, self.mask)
