"""Each learner solves each toy problem that it can act in: official-style evaluation of the final policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtrl.train import _main

SMALL = [
    "network.trunk.width=64",
    "network.trunk.depth=2",
    "eval.every=0",
    "checkpoint.every=0",
    "log.tensorboard=false",
]
SAC = [
    "agent=sac",
    "data.batch_size=64",
    "data.samples_per_insert=64",
    "data.learning_starts=250",
    "agent.optimizer.lr=1e-3",
    "total_steps=20000",
]
PPO = ["agent=ppo", "data.rollout_length=50", "agent.num_minibatches=4", "total_steps=300000"]
CONTEXT = ["task_encoder=context", "env.history=4", "network.head=shared"]
IMPALA = ["agent=impala", "agent.optimizer.lr=1.5e-3", "total_steps=400000"]


def final_success(run_dir: Path, *arguments: str) -> dict[str, float]:
    """Trains by the command line; success rate by task of the final policy."""
    assert _main([*SMALL, *arguments, f"run_dir={run_dir}"]) == 0
    evaluation = json.loads(max((run_dir / "eval").glob("*.json")).read_text())
    return {name: task["success_rate"] for name, task in evaluation["summary"]["tasks"].items()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([*SAC, "env=toy_reach"], id="sac-reach"),
        pytest.param(
            [*SAC, "env=toy_scale", "value_norm=popart", "value_norm.beta=1e-3", "total_steps=40000"],
            id="sac-scale-popart",
        ),
        pytest.param([*PPO, "env=toy_reach"], id="ppo-reach"),
        # Nobody tells this policy its task.
        pytest.param([*SAC, "env=toy_reach", *CONTEXT], id="sac-reach-context"),
        pytest.param([*PPO, "env=toy_scale"], id="ppo-scale"),
        pytest.param([*PPO, "env=toy_grid"], id="ppo-grid"),
        pytest.param([*IMPALA, "env=toy_reach"], id="impala-reach"),
        pytest.param([*IMPALA, "env=toy_grid"], id="impala-grid"),
    ],
)
def test_solves(arguments: list[str], run_dir: Path) -> None:
    success = final_success(run_dir, "seed=1", *arguments)
    assert all(rate >= 0.9 for rate in success.values()), success
