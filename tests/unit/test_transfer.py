"""Learning rates of parts, frozen parts, and the pull to where they started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from mtrl.agents.transfer import Transfer
from mtrl.nn.obs_norm import ObsNorm, RunningNorm
from mtrl.optim.aggregation import Sum
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform
from mtrl.parts import is_in
from mtrl.registry import build, names
from mtrl.types import Learner, UserError


class Policy(nn.Module):
    """trunk = 2 and head = 5, of two entries each."""

    def __init__(self) -> None:
        super().__init__()
        self.obs_norm = RunningNorm((1,))
        for name, value in (("trunk", 2.0), ("head", 5.0)):
            setattr(self, name, nn.Linear(1, 2, bias=False))
            nn.init.constant_(getattr(self, name).weight, value)


class Straight(Learner):
    """Its loss has the gradient 3 in each entry of the trunk, and 4 in each of the head."""

    def __init__(self, optimizer: str, **options: Any) -> None:
        self.policy: Any = Policy()
        self.networks = nn.ModuleDict({"policy": self.policy})
        weights = [self.policy.trunk.weight, self.policy.head.weight]
        made = build("optimizer", {"name": optimizer, **options}, parameters=weights)
        self.step = MultiTaskOptimizer(weights, made, Uniform(), Sum(), math.inf, has_positive=False)
        self.optimizers = {"policy": self.step}

    def update(self, batch: Any, progress: float) -> Any:
        self.policy.obs_norm.update(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))
        loss = 3 * self.policy.trunk.weight.sum() + 4 * self.policy.head.weight.sum()
        return self.step(torch.zeros(1, dtype=torch.int64), signed=loss[None])


def values(learner: Learner) -> list[float]:
    return [number for part in ("trunk", "head") for number in learner.policy.get_submodule(part).weight[:, 0].tolist()]


def test_learning_rates_of_parts() -> None:
    """The first step of Adam is as long as the learning rate: 0.1, of the trunk 0.1 * 0.5 * 0.2 = 0.01."""
    learner = Straight("adam", lr=0.1)
    transfer = Transfer(learner, {"policy": 0.5, "trunk": 0.2}, {}, {})
    transfer.update(None, 0.0)
    assert values(learner) == pytest.approx([1.99, 1.99, 4.95, 4.95])
    learner.step.set_lr_factor(0.5)  # and 0.005, as the gradients are the same
    transfer.update(None, 0.0)
    assert values(learner) == pytest.approx([1.985, 1.985, 4.925, 4.925])


def test_a_frozen_part_does_not_move() -> None:
    """Neither by weight decay nor by momentum, and its gradient (3, 3) is not in the norm of (4, 4)."""
    learner = Straight("adamw", lr=0.1, weight_decay=0.5)
    transfer = Transfer(learner, {}, {"trunk": 0.5, "obs_norm": 1.0}, {})
    for progress in (0.0, 0.25, 0.49):
        metrics = transfer.update(None, progress)
        assert values(learner)[:2] == [2, 2]
        assert metrics["norm"] == pytest.approx(math.sqrt(32))
    head = values(learner)[2]
    assert head < 5 - 0.3
    metrics = transfer.update(None, 0.5)
    # Weight decay to 2 (1 - 0.1 * 0.5) = 1.9, and Adam's first step.
    assert values(learner)[:2] == pytest.approx([1.8, 1.8])
    assert metrics["norm"] == pytest.approx(math.sqrt(50))
    transfer.update(None, 1.0)
    assert learner.policy.obs_norm.count == 0
    Straight.update(unfrozen := Straight("adam", lr=0.1), None, 0.0)
    assert unfrozen.policy.obs_norm.count == 4


def test_pull_to_the_start() -> None:
    """Adam's steps are 0.1 long. The first entry of the trunk was taken from elsewhere; alpha = 2 + 3.

    2 - 0.1 = 1.9; 1.9 - 0.1 * 5 * (1.9 - 2) = 1.95; 1.95 - 0.1 = 1.85; 1.85 - 0.1 * 5 * (1.85 - 2) = 1.925.
    """

    def make() -> tuple[Straight, Transfer]:
        learner = Straight("adam", lr=0.1)
        return learner, Transfer(learner, {}, {}, {"trunk": 2.0, "policy": 3.0})

    learner, transfer = make()
    transfer.initialised({"policy.trunk.weight": torch.tensor([[True], [False]])})
    transfer.update(None, 0.0)
    assert values(learner) == pytest.approx([1.95, 1.9, 4.9, 4.9])
    resumed, other = make()
    resumed.policy.trunk.weight.data.fill_(7.0)
    other.load_state_dict(transfer.state_dict())
    other.update(None, 0.5)
    assert values(resumed) == pytest.approx([1.925, 1.8, 4.8, 4.8])


def test_a_step_that_an_accelerator_leaves_out_does_not_pull() -> None:
    learner = Straight("adam", lr=0.1)
    transfer = Transfer(learner, {}, {}, {"trunk": 5.0})
    transfer.initialised({"policy.trunk.weight": torch.ones(2, 1, dtype=torch.bool)})
    transfer.update(None, 0.0)
    before = values(learner)
    learner.step.optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    transfer.update(None, 0.0)
    assert values(learner) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (({"trunc": 0.1}, {}, {}), "Unknown part 'trunc'. Did you mean 'trunk'? Valid: head, policy, trunk."),
        (({"obs_norm": 0.1}, {}, {}), "Unknown part 'obs_norm'. Valid: head, policy, trunk."),
        (({}, {"x": 1.0}, {}), "Unknown part 'x'. Valid: head, obs_norm, policy, trunk."),
        (({}, {}, {"x": 1.0}), "Unknown part 'x'. Valid: head, policy, trunk."),
    ],
)
def test_parts_that_do_not_exist(settings: tuple[Mapping[str, float], ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        Transfer(Straight("adam", lr=0.1), *settings)
    assert str(error.value) == message


def test_a_pull_to_nothing() -> None:
    transfer = Transfer(Straight("adam", lr=0.1), {}, {}, {"head": 1.0})
    with pytest.raises(UserError, match=r"l2_sp\.head pulls to the weights of init_from, but nothing of it"):
        transfer.initialised({"policy.trunk.weight": torch.ones(2, 1, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("part", "expected"), [("policy", True), ("trunk", False), ("task_input", True), ("input", False), ("0", True)]
)
def test_columns_of_tasks_are_a_part_of_their_own(part: str, expected: bool) -> None:
    """But not where a whole network is named."""
    assert is_in("policy.trunk.input.task_input.0.weight", part) == expected


@pytest.mark.parametrize("name", names("obs_norm"))
def test_fixed_statistics(name: str) -> None:
    shape = (2, 12, 12) if name.endswith("images") else (3,)
    norm: ObsNorm = build("obs_norm", {"name": name}, obs_shape=shape, num_tasks=2)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.eval()
    norm.update(torch.randint(0, 255, (4, *shape)).float(), torch.tensor([0, 1, 1, 1]))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
