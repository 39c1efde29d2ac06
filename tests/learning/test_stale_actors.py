"""Actors that lag behind the learner by a given number of updates, with V-trace's correction and without it."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from pathlib import Path

import pytest
import torch

from mtrl.agents.vtrace_actor_critic import VTraceActorCritic
from mtrl.data.experience import OnPolicy
from mtrl.nn.networks import PolicyNetwork
from mtrl.train import _main
from mtrl.types import Rollout
from tests.learning.test_toys import SMALL
from tests.system.commands import rows


def act_with_lag(patch: pytest.MonkeyPatch, lag: int) -> None:
    """The serial mode acts with the weights of `lag` updates ago."""
    history: deque[PolicyNetwork] = deque(maxlen=lag + 1)
    collect = OnPolicy.collect

    def stale(self: OnPolicy, learner: VTraceActorCritic) -> int:
        history.append(copy.deepcopy(learner.policy))
        return collect(self, history[0])

    patch.setattr(OnPolicy, "collect", stale)


def take_for_on_policy(patch: pytest.MonkeyPatch) -> None:
    """All importance ratios are one: the learner believes that its own policy acted."""
    targets = VTraceActorCritic._targets

    def uncorrected(self: VTraceActorCritic, rollout: Rollout) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            log_prob = self.policy(rollout.obs, rollout.task).log_prob(rollout.action)
        return targets(self, dataclasses.replace(rollout, log_prob=log_prob))

    patch.setattr(VTraceActorCritic, "_targets", uncorrected)


@pytest.mark.slow
def test_lag_does_harm_without_the_correction_and_not_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 updates. Returns begin at -24.5; without the correction, what the first half has learned is lost again."""
    arguments = [*SMALL, "env=toy_reach", "env.num_envs=32", "agent=impala", "agent.optimizer.lr=1.5e-3", "seed=1"]
    arguments += ["network.trunk.width=32", "network.trunk.depth=1", "total_steps=160000", "log.every=16000"]
    returns: dict[tuple[int, bool], list[float]] = {}
    for lag, corrected in [(1, True), (5, True), (20, True), (20, False)]:
        run_dir = tmp_path / f"{lag}_{corrected}"
        with monkeypatch.context() as patch:
            act_with_lag(patch, lag)
            if not corrected:
                take_for_on_policy(patch)
            assert _main([*arguments, "eval.episodes_per_task=1", f"run_dir={run_dir}"]) == 0
        returns[lag, corrected] = [row["train/return_mean"] for row in rows(run_dir) if "train/return_mean" in row]
    for lag in (1, 5, 20):
        assert returns[lag, True][-1] > -14, returns
    assert max(returns[20, False]) > -17, returns
    assert returns[20, False][-1] < -19, returns
