"""Periodic resets of a learner, which keeps the data that it has collected."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mtrl.checks import not_negative
from mtrl.nn.value_norm import ValueNorm
from mtrl.types import Learner, Metrics, State


class Resets(Learner):
    """Resets the networks of a learner `count` times, evenly spaced over training.

    Optimisers, weightings, aggregations and the task sampler are reset, too.

    Nikishin et al., "The Primacy Bias in Deep RL" (2022); in multi-task learning ARS (Cho et al. 2025), whose reward
    scaling changes at resets only (`value_norm=mean_reward`). Experience and the statistics of observations are kept.

    Differences from the papers:
        1. Parameters are reset to their first initial values (before `init_from`) instead of being drawn again.
        2. Temperatures are reset, too.

    Args:
        sampler: The task sampler.
    """

    def __init__(self, learner: Learner, count: int, sampler: nn.Module) -> None:
        not_negative(count=count)
        self.learner, self.count, self.sampler = learner, count, sampler
        self.policy, self.networks, self.optimizers = learner.policy, learner.networks, learner.optimizers
        self.learns_from, self.compilable = learner.learns_from, learner.compilable
        self._initial = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}
        self._initial_optimizers = copy.deepcopy({name: step.state_dict() for name, step in self.optimizers.items()})
        self._initial_sampler = copy.deepcopy(sampler.state_dict())
        self._done = 0

    def update(self, batch: Any, progress: float) -> Metrics:
        """Updates the learner, after a reset if one is due."""
        if min(int(progress * (self.count + 1)), self.count) > self._done:
            self._reset()
            self._done += 1
        return self.learner.update(batch, progress)

    def initialised(self, taken: Mapping[str, Bool[Tensor, "..."]]) -> None:
        self.learner.initialised(taken)

    def diagnostics(self, batch: Any) -> Metrics:
        return self.learner.diagnostics(batch)

    def _reset(self) -> None:
        with torch.no_grad():
            for name, parameter in self.networks.named_parameters():
                parameter.copy_(self._initial[name])
        for name, step in self.optimizers.items():
            step.restart(copy.deepcopy(self._initial_optimizers[name]))
        for network in self.networks.values():
            if isinstance(network, ValueNorm):
                network.restart()
        self.sampler.load_state_dict(copy.deepcopy(self._initial_sampler))

    def state_dict(self) -> State:
        return {**self.learner.state_dict(), "resets_done": self._done}

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)
        self._done = state["resets_done"]
