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
    """Scales each element of each task's gradient, so that an adversary cannot tell whose gradient it is; averages.

    Sinha et al., "Gradient Adversarial Training of Neural Networks" (2018), on multi-task learning: the adversary
    learns to name the task of a scaled gradient, and the scales (gradient alignment layers) learn to mislead it.

    Differences from the paper:
        1. What is scaled are the gradients of the shared parameters, not those of the features after them.
        2. The adversary is a linear classifier, the paper's a small network, and sees directions: a scaled gradient of
           norm 1. The scaled gradient keeps the norm that it had.
        3. Both learn by plain gradient steps, one after each aggregation. The scales' are P times as long, as the
           gradient of one of P scales is of the order of 1/P. A scale stays between 0 and 10.

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
        # (K, P); P is known when the first gradients come.
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
        """A step of the adversary towards naming the tasks, and one of the scales away from it."""
        scale, adversary = self.scale.detach().requires_grad_(), self.adversary.detach().requires_grad_()
        logits = functional.normalize(scale * direction, dim=1) @ adversary.T
        own = functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
        to_scale, to_adversary = torch.autograd.grad(own[present].sum(), (scale, adversary))
        self.scale = (self.scale + self.lr * direction.shape[1] * to_scale).clamp(0, 10)
        self.adversary = self.adversary - self.adversary_lr * to_adversary

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in ("scale", "adversary"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.scale.device))
        super()._load_from_state_dict(state_dict, prefix, *others)
