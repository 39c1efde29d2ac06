"""What a step on the loss of one task does to the others, measured while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtrl.optim.aggregation.base import shared_and_per_task
from mtrl.optim.lookahead import lookahead
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.types import Learner, Metrics, State, UserError


class Call(NamedTuple):
    """Of one of the learner's functions."""

    arguments: tuple[Any, ...]
    output: Any


class Lookahead(Learner):
    """Adds the `lookahead` of a learner's policy losses to its diagnostics, as `grad/lookahead`.

    The losses are those of the last gradient step: the functions that the learner lists in `policy_loss` are called
    once more with the arguments that they had then. Training is the same with and without it.

    Raises:
        UserError: The learner lists none.
    """

    def __init__(self, learner: Learner) -> None:
        if not learner.policy_loss:
            raise UserError(f"log.lookahead: {type(learner).__name__} does not say in policy_loss how to compute it.")
        self.learner = learner
        self.policy, self.networks, self.optimizers = learner.policy, learner.networks, learner.optimizers
        self.learns_from, self.compilable = learner.learns_from, learner.compilable
        self._calls: dict[str, Call] = {}
        for name in learner.policy_loss:
            setattr(learner, name, self._kept(name, getattr(learner, name)))

    def _kept(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._calls[name] = Call(arguments, function(*arguments))
            return self._calls[name].output

        return call

    def _losses(self) -> Float[Tensor, " K"]:
        """The policy losses of the last gradient step, with the parameters of now. Draws the same random numbers."""
        again: dict[int, Any] = {}  # outputs, by the identity of those in the step
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            for name in self.learner.policy_loss:
                call, function = self._calls[name], getattr(type(self.learner), name)  # not compiled
                arguments = (again.get(id(argument), argument) for argument in call.arguments)
                again[id(call.output)] = output = function(self.learner, *arguments)
        losses: Tensor = output[0] if isinstance(output, tuple) else output
        return losses

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.policy.parameters()).device
        return device

    def update(self, batch: Any, progress: float) -> Metrics:
        return self.learner.update(batch, progress)

    def initialised(self, taken: Mapping[str, Bool[Tensor, "..."]]) -> None:
        self.learner.initialised(taken)

    def diagnostics(self, batch: Any) -> Metrics:
        """Those of the learner, and the matrix."""
        of_policy = next(iter(self.policy.parameters()))
        steps: list[MultiTaskOptimizer] = list(self.optimizers.values())
        (step,) = (step for step in steps if any(parameter is of_policy for parameter in step.parameters))
        shared = [parameter for parameter in shared_and_per_task(step.parameters)[0] if parameter not in step.frozen]
        gains = lookahead(self._losses, step.optimizer, shared)
        return {**self.learner.diagnostics(batch), "grad/lookahead": gains}

    def state_dict(self) -> State:
        return self.learner.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)
