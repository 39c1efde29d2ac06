"""Tasks are the same by their names, whatever their places in a list: in evaluation, transfer and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtrl.envs
from tests.system.commands import ON_POLICY, TINY, evaluate, run, the_error, tiny

GYM = ["env=gym", "env.num_workers=0", "env.num_envs=4", *ON_POLICY, *TINY, "eval.every=0", "total_steps=80"]
TWO, REVERSED = "env.ids=[Pendulum-v1,MountainCarContinuous-v0]", "env.ids=[MountainCarContinuous-v0,Pendulum-v1]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "run"
    assert run(*GYM, TWO, f"run_dir={path}") == 0
    return path


def evaluated(folder: Path) -> Any:
    return json.loads((folder / "eval.json").read_text())


def returns(found: Any) -> dict[str, list[float]]:
    return {task: columns["return"] for task, columns in found["episodes"].items()}


def test_another_order_changes_no_result(trained: Path, tmp_path: Path) -> None:
    """With the ids of the other list, neither task has the return of its own head."""
    for name, ids in (("same", TWO), ("reversed", REVERSED)):
        assert evaluate(f"run={trained}", f"out={tmp_path / name}", ids) == 0
    same, other = (returns(evaluated(tmp_path / name)) for name in ("same", "reversed"))
    assert list(other) == list(same)[::-1]
    for task, found in other.items():
        assert found == pytest.approx(same[task], rel=1e-3)


def test_some_of_the_tasks(tmp_path: Path) -> None:
    before = tmp_path / "before"
    assert run(*tiny(), f"run_dir={before}") == 0
    assert evaluate(f"run={before}", "env.num_tasks=2", f"out={tmp_path}") == 0
    assert list(returns(evaluated(tmp_path))) == ["reach-0", "reach-1"]
    assert "not trained in" not in evaluated(tmp_path)["protocol"]


def test_tasks_that_a_policy_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is told the id is refused; one that is not is scored, and the protocol says what is new."""
    assert run(*tiny(), f"run_dir={tmp_path / 'told'}") == 0
    finding = ["env.history=4", "task_encoder=context", "network=mlp"]
    assert run(*tiny(), *finding, f"run_dir={tmp_path / 'finding'}") == 0
    capsys.readouterr()
    assert evaluate(f"run={tmp_path / 'told'}", "env.num_tasks=6") == 2
    message = the_error(capsys)
    assert "was not trained in reach-4, reach-5 and cannot act there" in message
    assert "(task_encoder, head)" in message
    assert evaluate(f"run={tmp_path / 'finding'}", "env.num_tasks=6") == 0
    found = evaluated(tmp_path / "finding")
    assert len(returns(found)) == 6
    assert found["protocol"]["not trained in"] == "reach-4, reach-5"


def edit(run_dir: Path, old: str, new: str) -> None:
    path = run_dir / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_resuming_with_an_edited_list(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*GYM, TWO, f"run_dir={run_dir}") == 0
    edit(run_dir, "- Pendulum-v1\n  - MountainCar", "- MountainCar")
    edit(run_dir, "- MountainCarContinuous-v0\n", "- MountainCarContinuous-v0\n  - Pendulum-v1\n")
    capsys.readouterr()
    assert run(f"resume={run_dir}", "total_steps=160") == 2
    message = the_error(capsys)
    assert "env.ids: expected ['Pendulum-v1', 'MountainCarContinuous-v0']" in message
    edit(run_dir, "- MountainCarContinuous-v0\n  - Pendulum-v1\n", "- Pendulum-v1\n  - MountainCarContinuous-v0\n")
    assert run(f"resume={run_dir}", "total_steps=160") == 0


def test_resuming_with_fewer_tasks(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*tiny(), f"run_dir={run_dir}") == 0
    edit(run_dir, "num_envs: 8", "num_envs: 9\n  num_tasks: 3")
    capsys.readouterr()
    assert run(f"resume={run_dir}", "total_steps=1280") == 2
    assert "env.num_envs: expected 8, with which the checkpoint was made, found 9" in the_error(capsys)


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_init_from_a_run_with_other_tasks(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "before"
    transfer = [
        *tiny(agent),
        "value_norm=popart",
        "network=multi_head",
        "network.trunk.width=16",
        f"init_from={before}",
    ]
    assert run(*transfer[:-1], f"run_dir={before}") == 0
    capsys.readouterr()
    assert run(*transfer, "env.num_tasks=6", "env.num_envs=12", f"run_dir={tmp_path / 'more'}") == 0
    assert f"{before} was not trained in reach-4, reach-5: weights of these tasks" in capsys.readouterr().out
    assert run(*transfer, "env.num_tasks=2", f"run_dir={tmp_path / 'fewer'}") == 0
    assert "was not trained in" not in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["ml1", "ml10", "ml25", "ml45"])
def test_the_split_is_in_the_protocol(name: str, split: str) -> None:
    assert mtrl.envs.evaluation_protocol({"name": name, "split": split}, seed=0).words()["split"] == split
    assert mtrl.envs.evaluation_protocol({"name": name}, seed=0).words()["split"] == "train"


@pytest.mark.slow
def test_ml10_is_scored_on_its_test_tasks(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["env=ml10", "env.num_envs=10", "env.horizon=20", *ON_POLICY, *TINY, "eval.every=0", "total_steps=200"]
    finding = ["env.history=4", "task_encoder=context", "network=mlp"]
    assert run(*small, *finding, "eval.episodes_per_task=1", f"run_dir={run_dir}") == 0
    assert evaluate(f"run={run_dir}", "env.split=test") == 0
    found = evaluated(run_dir)
    assert found["protocol"]["split"] == "test"
    assert found["protocol"]["not trained in"] == ", ".join(returns(found))
    assert len(returns(found)) == 5
