"""The default agent keeps exploring where there is no reward, and learns alike from rewards of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtrl.train import _main

SMALL = [
    "data.slots_per_task=16",
    "data.rollout_length=50",
    "agent.num_epochs=4",
    "agent.num_minibatches=5",
    "network.trunk.width=64",
    "network.trunk.depth=2",
    "env.num_workers=1",
    "eval.every=0",
    "eval.episodes_per_task=1",
    "checkpoint.every=0",
    "log.tensorboard=false",
    "log.every=800",
]


def train(run_dir: Path, name: str, *arguments: str) -> list[float]:
    """Runs the command line in `line_env`; the policy's entropy in each row of the log."""
    ids = f"env.ids=['tests.learning.line_env:{name}-v0']"
    assert _main(["env=gym", ids, *SMALL, *arguments, f"run_dir={run_dir}"]) == 0
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [value for row in rows for key, value in row.items() if key.startswith("train/entropy/")]


@pytest.mark.parametrize(
    ("name", "agent"),
    [("Still", "ppo"), ("Noise", "ppo"), ("ContinuousStill", "ppo"), ("ContinuousNoise", "ppo"), ("Still", "impala")],
)
def test_without_reward_the_policy_stays_as_random_as_it_was(run_dir: Path, name: str, agent: str) -> None:
    entropy = train(run_dir, name, f"agent={agent}", "total_steps=8000")
    # log 4; of two Gaussians of standard deviation 1, log(2 pi e)
    expected = 2.8379 if "Continuous" in name else 1.3863
    assert entropy == pytest.approx([expected] * len(entropy), abs=0.01)


@pytest.mark.parametrize("name", ["Near", "Far"])
def test_the_same_policy_from_rewards_of_any_size(tmp_path: Path, name: str) -> None:
    """Bit for bit, as the factor is a power of two."""
    policies = []
    for scaled in (name, f"{name}Milli"):
        train(tmp_path / scaled, scaled, "agent=ppo", "total_steps=8000")
        policies.append(load_file(next(tmp_path.glob(f"{scaled}/checkpoints/*/policy/model.safetensors"))))
    for key, tensor in policies[0].items():
        assert torch.equal(tensor, policies[1][key]), key


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["Far", "FarMilli", "NearMilli", "NearKilo", "Late", "ContinuousLate"])
def test_learns_from_rewards_of_any_size_and_from_those_that_come_late(run_dir: Path, name: str) -> None:
    arguments = ["agent=ppo", "total_steps=80000", "eval.episodes_per_task=5"]
    train(run_dir, name, *arguments)
    evaluation = json.loads(max((run_dir / "eval").glob("*.json")).read_text())
    assert evaluation["summary"]["success_rate"] == 1
