"""Mixed precision and compiled losses against the ordinary computation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mtrl.agents.acceleration import PRECISIONS, set_precision
from mtrl.registry import names
from mtrl.types import UserError
from tests.helpers import small
from tests.oracle.learners import LEARNERS, make


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager(backend: str) -> None:
    """In a process of its own: the checks of shapes that tests add do not compile."""
    command = [sys.executable, "-m", "tests.oracle.learners", backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    graphs = dict(line.split() for line in done.stdout.splitlines())
    assert {name: int(number) > 0 for name, number in graphs.items()} == dict.fromkeys(LEARNERS, True)


@pytest.mark.parametrize("agent", ["sac", "impala"])
@pytest.mark.parametrize("trunk", names("trunk"))
def test_bfloat16_is_near_float32(agent: str, trunk: str) -> None:
    """Losses of one update differ by bfloat16's eight bits; parameters keep their precision and their names."""
    results, states = [], []
    for precision in PRECISIONS:
        learner, data = make(agent, trunk=small(trunk))
        set_precision(learner.networks, precision)
        torch.manual_seed(1)
        results.append(learner.update(data, 0.0))
        states.append(learner.networks.state_dict())
    for key in (key for key in results[0] if key.endswith("_loss")):
        assert torch.isfinite(results[1][key]).all()
        if trunk != "hard_routing":  # rounding may turn a choice
            torch.testing.assert_close(results[1][key], results[0][key], rtol=0.1, atol=0.05)
    assert states[0].keys() == states[1].keys()
    assert all(states[0][key].dtype == states[1][key].dtype for key in states[0])


def test_only_trunks_compute_in_bfloat16() -> None:
    """The features have bfloat16's eight bits, what the head makes of them has more."""
    learner, data = make("impala")
    set_precision(learner.networks, "bfloat16")
    policy = learner.policy
    features = policy.trunk(data.obs, policy.task_encoder(data.task, data.obs[..., :0]))
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    mean = policy.distribution(data.obs, data.task).mean
    assert not torch.equal(mean, mean.bfloat16().float())


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match=r"'half'.*float32, bfloat16"):
        set_precision(make("impala")[0].networks, "half")
