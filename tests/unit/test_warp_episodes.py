"""benchmarks/warp_episodes.py: episodes of a policy, and rows that are not measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import warp_episodes

import mtrl.envs


def test_first_successes_are_those_of_single_episodes() -> None:
    """Of three slots, beside one slot after the other, in which nothing runs on after its success."""
    found = warp_episodes.episodes("scripted", "reach-v3", 3, "rollout", "cpu")["first_success"]
    for goal, step in enumerate(found):
        env = mtrl.envs.make("metaworld", tasks=["reach-v3"], num_envs=1, seed=warp_episodes.SEED)
        env.assign(env.task, env.task + goal)
        act, obs, successes = warp_episodes.actions_of("scripted", env), env.reset(), []
        for _ in range(step):
            result = env.step(act(obs, env.task))
            obs = result.obs
            successes.append(bool(result.success))
        assert successes == [False] * (step - 1) + [True]


def test_an_episode_without_success_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warp_episodes, "actions_of", lambda policy, env: lambda obs, task: torch.zeros(len(obs), 4))
    assert warp_episodes.episodes("still", "reach-v3", 2, "rollout", "cpu")["first_success"] == [None, None]


def test_rows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, str]] = []

    def measured(_: Any, task: str, physics: str) -> dict[str, Any]:
        calls.append((task, physics))
        return {"first_success": [30, 10, 20] if physics == "rollout" else [None, 40, None]}

    monkeypatch.setattr(warp_episodes, "in_process", measured)
    output = tmp_path / "episodes.json"
    warp_episodes.main(["--output", str(output), "--tasks", "reach-v3"])
    warp_episodes.main(["--output", str(output), "--tasks", "reach-v3", "push-v3"])
    assert calls == [(task, physics) for task in ("reach-v3", "push-v3") for physics in ("rollout", "warp")]
    assert [row["task"] for row in json.loads(output.read_text())] == ["reach-v3", "push-v3"]
    assert "| scripted | push-v3 | 3 of 3 | 1 of 3 | 20 | 40 |" in capsys.readouterr().out
