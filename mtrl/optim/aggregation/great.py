"""GREAT: gradient adversarial training."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mtrl.checks import not_negative, positive
from mtrl.optim.aggregation.base import JacobianAggregation
from mtrl.registry import register


@register("aggregation", "great")
class GREAT(JacobianAggregation):
    """Mean of the gradients, scaled elementwise so that an adversary cannot tell which task a gradient belongs to.

    Sinha et al., "Gradient Adversarial Training of Neural Networks" (2018), on multi-task learning: the adversary
    learns to classify the task of a scaled gradient, and the scales (gradient alignment layers) learn to mislead it.

    Use it to learn features that do not tell tasks apart.

    Differences from the paper:
        1. The gradients of the shared parameters are scaled, not those of the features after them.
        2. The adversary is a linear classifier (in the paper a small network), and sees directions: scaled gradients
           of norm 1. Scaling does not change the norm of a gradient.
        3. Both learn by plain gradient steps, one after each aggregation. Those of the scales are multiplied by P,
           since the gradient of one of P scales is of the order of 1/P. Scales are clipped to [0, 10].

    Args:
        lr: Step size of the scales; 0 is `mean`.
        adversary_lr: Step size of the adversary.
    """

    scale: Tensor
    adversary: Tensor

    def __init__(self, num_tasks: int, lr: float = 0.01, adversary_lr: float = 0.1) -> None:
        super().__init__()
        not_negative(lr=lr)
        positive(adversary_lr=adversary_lr)
        self.lr, self.adversary_lr = lr, adversary_lr
        # (K, P); P is known with the first gradients.
        self.register_buffer("scale", torch.ones(num_tasks, 0))
        self.register_buffer("adversary", torch.zeros(num_tasks, 0))

    def combine(self, jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
        if self.scale.shape != jacobian.shape:
            self.scale, self.adversary = torch.ones_like(jacobian), torch.zeros_like(jacobian)
        norm = jacobian.norm(dim=1, keepdim=True)
        direction = jacobian / norm.where(norm > 0, 1)
        scaled = functional.normalize(self.scale * direction, dim=1)
        self._learn(direction, norm[:, 0] > 0)
        return (norm * scaled).mean(0)

    @torch.enable_grad()
    def _learn(self, direction: Float[Tensor, "K P"], present: Tensor) -> None:
        """One step of the adversary to decrease its loss, and one of the scales to increase it."""
        scale, adversary = self.scale.detach().requires_grad_(), self.adversary.detach().requires_grad_()
        logits = functional.normalize(scale * direction, dim=1) @ adversary.T
        loss = functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
        to_scale, to_adversary = torch.autograd.grad(loss[present].sum(), (scale, adversary))
        self.scale = (self.scale + self.lr * direction.shape[1] * to_scale).clamp(0, 10)
        self.adversary = self.adversary - self.adversary_lr * to_adversary

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("scale", "adversary"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.scale.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
