"""Atari through the command line: tiny runs of a real game."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mtrl
from mtrl.config import composed, train_config
from tests.system.commands import evaluate, rows, run

TINY = (
    "env=atari",
    "env.num_workers=1",
    "env.horizon=8",
    "torso.width=16",
    "data.rollout_length=5",
    "eval.every=0",
    "eval.episodes_per_task=1",
    "log.every=20",
    "log.tensorboard=false",
)


@pytest.mark.parametrize(
    "more",
    [
        ["agent=impala", "env.games=[pong,breakout]", "core=lstm", "core.width=8", "value_norm=popart"],
        ["agent=impala", "env.games=[pong,breakout]", "aggregation=pcgrad", "weighting=dwa"],
        ["agent=impala", "env.games=pong", "core=lstm", "core.width=8", "env.num_workers=null", "actors=2"],
        ["agent=ppo", "env.games=pong", "agent.num_minibatches=2", "torso=shallow_cnn", "network=mlp", "torso.width=8"],
        [
            "agent=impala",
            "env.games=pong",
            "torso=impala_resnet",
            "network=soft_modules",
            "env.action_set=full",
            "agent.obs_norm=none",
        ],
    ],
    ids=["lstm-popart", "pcgrad", "actors", "ppo-mlp", "resnet-soft_modules"],
)
def test_trains_evaluates_and_loads(run_dir: Path, more: list[str]) -> None:
    assert run(*TINY, *more, "env.num_envs=2", "total_steps=20", f"run_dir={run_dir}") == 0
    (logged,) = (row for row in rows(run_dir) if "train/entropy/pong" in row)
    assert np.isfinite(logged["train/value_loss/pong"])
    assert "grad/norm" in logged, "one step for both losses"
    assert ("grad/cosine_mean" in logged) == ("aggregation=pcgrad" in more)
    assert logged["train/policy_effective_rank"] >= 1
    assert evaluate(f"run={run_dir}") == 0
    policy = mtrl.load_policy(run_dir)
    plain = "agent.obs_norm=none" in more
    norm = {key: bool(statistic.any()) for key, statistic in policy.network.obs_norm.state_dict().items()}
    assert norm == ({} if plain else {"mean": True, "count": True})
    obs = np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    assert policy.act(obs, "pong").shape == (3,)


@pytest.mark.parametrize(
    ("experiment", "games", "samples"),
    [
        ("atari_pong", 1, 64 * 16 / 8),
        ("atari3_popart", 3, 128 * 24 / 24),
        ("atari57_impala", 57, 20 * 114 / 4),
    ],
)
def test_presets(experiment: str, games: int, samples: float) -> None:
    """An experiment's torso and value scaling prevail over the environment's; sizes of minibatches."""
    config = train_config(composed([f"+experiment={experiment}"], "train"))
    agent, data = config.agent, config.data
    slots = data["slots_per_task"] * games
    assert data["rollout_length"] * slots / agent["num_minibatches"] == samples
    assert config.torso["name"] == ("impala_resnet" if games == 57 else "shallow_cnn")
    assert config.value_norm["name"] == ("popart" if games == 3 else "none")
    assert config.network == {"trunk": {"name": "none"}, "head": "shared"}
    assert (agent["reward_clip"] == 1) == (games != 3)
    assert agent["obs_norm"] == ("none" if games == 57 else "running")
    if games == 57:
        assert agent["optimizer"]["eps"] == pytest.approx(0.01 / samples, rel=0.01)
        assert agent["max_grad_norm"] == pytest.approx(40 / samples, rel=0.01)
