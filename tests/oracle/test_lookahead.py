"""Lookahead of every learner against steps that are taken for real by copies of it, which then update once more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.agents.lookahead import Lookahead
from tests.oracle.learners import make
from tests.system.commands import checkpoint, rows, run, tiny


class Found(Exception):  # noqa: N818
    """Ends an update at its policy losses."""


def policy_losses(start: Any, data: Any, networks: dict[str, Tensor], rng: Tensor) -> tuple[Tensor, Any]:
    """Policy losses in the first gradient step of an update from `start`, and the learner that has computed them.

    All before the losses is as at the start; then networks and random numbers are replaced by the given ones.
    """
    learner = copy.deepcopy(start)
    first, last = learner.policy_loss[0], learner.policy_loss[-1]
    begin = getattr(learner, first)

    def replaced(*arguments: Any) -> Any:
        if torch.is_grad_enabled():  # Distral also looks at features of the networks before the step
            learner.networks.load_state_dict(networks)
            torch.set_rng_state(rng)
        return begin(*arguments)

    setattr(learner, first, replaced)
    compute = getattr(learner, last)

    def end(*arguments: Any) -> Any:
        raise Found(compute(*arguments)[0])

    setattr(learner, last, end)
    torch.manual_seed(1)
    with pytest.raises(Found) as found:
        learner.update(data, 0.0)
    return found.value.args[0], learner


@pytest.mark.parametrize("agent", ["sac", "impala", "lstm", "two_columns", "kickstarted_impala"])
def test_it_is_what_steps_do(agent: str) -> None:
    learner, data = make(agent)
    start = copy.deepcopy(learner)
    measured = Lookahead(learner)
    torch.manual_seed(1)
    measured.update(data, 0.0)
    after, rng = copy.deepcopy(learner.networks.state_dict()), torch.get_rng_state()
    found = measured.diagnostics(data)["grad/lookahead"]
    assert torch.equal(torch.get_rng_state(), rng)
    torch.testing.assert_close(learner.networks.state_dict(), after, rtol=0, atol=0)
    assert (found.abs() > 1e-5).any(1).all()  # above rounding

    before, _ = policy_losses(start, data, after, rng)
    for task in range(len(before)):
        losses, moved = policy_losses(start, data, after, rng)
        name = "policy" if "policy" in moved.optimizers else "joint"
        step = moved.optimizers[name]
        step.load_state_dict(copy.deepcopy(learner.optimizers[name].state_dict()))
        for values in step.optimizer.state.values():
            values["exp_avg"].zero_()  # of Adam; the others learn by plain gradient descent
        step.optimizer.zero_grad()
        (losses[task] / len(losses)).backward()
        for name, parameter in moved.networks.named_parameters():
            if getattr(learner.networks.get_parameter(name), "is_per_task", False):
                parameter.grad = None
        step.optimizer.step()
        now, _ = policy_losses(start, data, moved.networks.state_dict(), rng)
        torch.testing.assert_close(found[task], (before - now).detach(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_training_is_the_same_with_it(agent: str, tmp_path: Path) -> None:
    for name, settings in (("with", ["log.lookahead=true"]), ("without", [])):
        command = [*tiny(agent, total_steps=160), "eval.every=0", "eval.episodes_per_task=1"]
        assert run(*command, *settings, f"run_dir={tmp_path / name}") == 0
    one, other = (rows(tmp_path / name) for name in ("with", "without"))
    matrices = [row.pop("grad/lookahead") for row in one if "grad/lookahead" in row]
    assert [len(matrix) for matrix in matrices] == [4, 4]
    assert one == other
    weights = [
        (checkpoint(tmp_path / name) / "policy" / "model.safetensors").read_bytes() for name in ("with", "without")
    ]
    assert weights[0] == weights[1]
