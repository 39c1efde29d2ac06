"""Actors that lag behind the learner by a given number of updates, with V-trace's correction and without it."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from pathlib import Path

import pytest
import torch

from mtrl.agents.impala import Impala
from mtrl.data.experience import OnPolicy
from mtrl.nn.networks import PolicyNetwork
from mtrl.types import Rollout
from tests.learning.test_toys import final_success


def act_with_lag(monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """The serial mode acts with the weights of `lag` updates ago."""
    history: deque[PolicyNetwork] = deque(maxlen=lag + 1)
    collect = OnPolicy.collect

    def stale(self: OnPolicy, learner: Impala) -> int:
        history.append(copy.deepcopy(learner.policy))
        return collect(self, history[0])

    monkeypatch.setattr(OnPolicy, "collect", stale)


def take_for_on_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All importance ratios are one: the learner believes that its own policy acted."""
    targets = Impala._targets

    def uncorrected(self: Impala, rollout: Rollout) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            log_prob = self.policy(rollout.obs, rollout.task).log_prob(rollout.action)
        return targets(self, dataclasses.replace(rollout, log_prob=log_prob))

    monkeypatch.setattr(Impala, "_targets", uncorrected)


