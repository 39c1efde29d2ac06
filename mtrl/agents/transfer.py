"""What happens to the parts of networks that were taken from another run (`init_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mtrl.nn.obs_norm import ObsNorm
from mtrl.parts import check_parts, is_in, parts_of
from mtrl.types import Learner, Metrics, State, UserError


class Transfer(Learner):
    """Parts of a learner's networks learn slower, not at once, or near the values from which they started.

    The last is L2-SP: Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (2018),
    equation 2: a penalty alpha / 2 * |w - w0|^2 for the weights w that were taken from another run as w0.

    Differences from the paper:
        1. The pull is decoupled from the gradient, like AdamW's weight decay: after each step of the optimiser,
           w -= lr * alpha * (w - w0). Within the gradient, as in the paper (which has SGD), Adam would divide it by the
           size of the gradients, and they would be clipped with it.
        2. New weights have no penalty (beta = 0), nor have entries of tasks that the other run does not have.

    Parts are named as in `init_from_parts` (`mtrl.parts`). Those of networks that no optimiser changes, such as target
    networks, follow the networks that they are copied from.

    Args:
        lr_factors: Factors of the learning rates of parts; those of a part in another multiply.
        freeze: Shares of training for which parts are frozen, 1 for all of it. No gradient, momentum, weight decay or
            statistics of observations (`ObsNorm`) move a frozen part; its gradient does not count where gradients are
            clipped. PopArt still rescales a frozen head of values, which preserves them.
        l2_sp: alpha, for the weights of a part that `init_from` set; those of a part in another add up.

    Raises:
        UserError: A part does not exist.
    """

    def __init__(
        self, learner: Learner, lr_factors: Mapping[str, float], freeze: Mapping[str, float], l2_sp: Mapping[str, float]
    ) -> None:
        self.learner, self.freeze, self.l2_sp = learner, freeze, l2_sp
        self.policy, self.networks, self.optimizers = learner.policy, learner.networks, learner.optimizers
        self.learns_from, self.compilable = learner.learns_from, learner.compilable
        learned = {parameter for step in self.optimizers.values() for parameter in step.parameters}
        self._parameters = {name: p for name, p in self.networks.named_parameters() if p in learned}
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        norms = {name: norm for name, norm in self.networks.named_modules() if isinstance(norm, ObsNorm)}
        buffers = [f"{name}.{buffer}" for name, norm in norms.items() for buffer, _ in norm.named_buffers()]
        check_parts([*lr_factors, *l2_sp], parts_of(self._parameters))
        check_parts(freeze, parts_of([*self._parameters, *buffers]))
        self._frozen_parameters = {part: self._in(part) for part in freeze}
        self._norms = {norm: [part for part in freeze if is_in(f"{name}.", part)] for name, norm in norms.items()}
        for part, factor in lr_factors.items():
            for step in self.optimizers.values():
                scale_lr(step.optimizer, set(self._in(part)), factor)
        self._alpha = {
            name: sum(alpha for part, alpha in l2_sp.items() if is_in(name, part)) for name in self._parameters
        }
        pulled = {name: self._parameters[name].detach() for name, alpha in self._alpha.items() if alpha}
        self._start = {name: parameter.clone() for name, parameter in pulled.items()}
        self._taken = {name: torch.zeros_like(parameter) for name, parameter in pulled.items()}
        for step in self.optimizers.values():
            step.optimizer.register_step_post_hook(self._pull)

    def _in(self, part: str) -> list[nn.Parameter]:
        return [parameter for name, parameter in self._parameters.items() if is_in(name, part)]

    def initialised(self, taken: Mapping[str, Bool[Tensor, "..."]]) -> None:
        """Remembers the start of what is pulled. Raises `UserError` if nothing of such a part was taken."""
        self.learner.initialised(taken)
        for part in self.l2_sp:
            if not any(is_in(name, part) and entries.any() for name, entries in taken.items()):
                raise UserError(
                    f"l2_sp.{part} pulls to the weights of init_from, but nothing of it was taken from there."
                )
        for name in self._start.keys() & taken.keys():
            self._start[name].copy_(self._parameters[name].detach())
            self._taken[name].copy_(taken[name])

    def update(self, batch: Any, progress: float) -> Metrics:
        """Updates the learner, without the parts that are frozen at this fraction of training."""
        frozen = [part for part, share in self.freeze.items() if progress < share or share == 1]
        parameters = {parameter for part in frozen for parameter in self._frozen_parameters[part]}
        for step in self.optimizers.values():
            step.frozen = parameters.intersection(step.parameters)
        for norm, within in self._norms.items():
            norm.train(set(within).isdisjoint(frozen))
        return self.learner.update(batch, progress)

    def diagnostics(self, batch: Any) -> Metrics:
        return self.learner.diagnostics(batch)

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called after each step of an optimiser."""
        skipped = getattr(optimizer, "found_inf", None)  # by the accelerator: see `checked_once`
        applied = 1.0 if skipped is None else 1 - skipped
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (name := self._names.get(parameter)) in self._start:
                    rate = group["lr"] * self._alpha[name] * applied
                    parameter.lerp_(self._start[name], rate * self._taken[name])

    def state_dict(self) -> State:
        return {**self.learner.state_dict(), "l2_sp_start": self._start, "l2_sp_taken": self._taken}

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)
        for name in self._start:
            self._start[name].copy_(state["l2_sp_start"][name])
            self._taken[name].copy_(state["l2_sp_taken"][name])


def scale_lr(optimizer: torch.optim.Optimizer, parameters: set[nn.Parameter], factor: float) -> None:
    """Multiplies the learning rate of some parameters, which get parameter groups of their own."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        remaining = [parameter for parameter in group["params"] if parameter not in parameters]
        scaled = [parameter for parameter in group["params"] if parameter in parameters]
        rates: dict[str, Any] = {key: factor * group[key] for key in ("lr", "initial_lr") if key in group}
        groups.append({**group, "params": remaining})
        groups.append({**group, **rates, "params": scaled})
    optimizer.param_groups[:] = [group for group in groups if group["params"]]
