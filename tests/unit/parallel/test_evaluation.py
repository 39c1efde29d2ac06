"""Processes that share an evaluation."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import mtrl.envs
from mtrl.parallel.evaluation import shared_episodes
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.types import EvaluationProtocol
from tests.unit.parallel.actor_envs import Still, make_actor_that_dies_once


def test_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """And the result is that of one process."""
    evaluator = Evaluator(EvaluationProtocol({"name": "toy_reach"}, 1), mtrl.envs.make, 1, 3, 1000)
    expected = evaluator(Still(evaluator.env.spec.action_dim))
    said: list[str] = []
    make_actor = partial(make_actor_that_dies_once, tmp_path / "died")
    ended = shared_episodes(evaluator, make_actor, 1, "local", said.append)
    found = evaluator.joined(ended, lambda done, total: None)
    evaluator.close()
    assert found == expected
    (line,) = said
    assert f"ended with exit code {-signal.SIGKILL}" in line
    assert line.endswith(f"Its {len(expected.episodes)} other episodes begin again.")
    assert (tmp_path / "died").read_text() != str(os.getpid())
