"""Where data comes from, and when training ends: by environment steps or by updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl import registry
from mtrl.agents.aux_loss import AuxLoss
from mtrl.envs.toy import ToyReach
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.types import Batch, DataSource, EnvSpec, State
from tests.system.commands import rows, run, the_error, tiny


class Recorded(DataSource):
    """Random transitions as a file of them would hold: nothing acts."""

    yields = Batch
    makes_steps = False

    def __init__(self, spec: EnvSpec, batch_size: int = 4) -> None:
        k, n, size = spec.num_tasks, 50, *spec.obs_shape
        g = torch.Generator().manual_seed(0)
        self.transitions = Batch(
            obs=torch.randn(k, n, size, generator=g),
            action=torch.rand(k, n, spec.action_dim, generator=g) * 2 - 1,
            reward=torch.rand(k, n, generator=g),
            continuation=torch.ones(k, n),
            next_obs=torch.randn(k, n, size, generator=g),
            task=torch.arange(k)[:, None].expand(k, n),
        )
        self.batch_size, self.taken = batch_size, 0

    def batches(self) -> Iterator[Batch]:
        first = self.taken % (50 - self.batch_size)
        self.taken += 1
        rows = slice(first, first + self.batch_size)
        yield Batch(**{name: tensor[:, rows] for name, tensor in vars(self.transitions).items()})

    def state_dict(self) -> State:
        return {"taken": self.taken}

    def load_state_dict(self, state: State) -> None:
        self.taken = state["taken"]


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered for these tests alone."""
    registry.names("data")
    monkeypatch.setitem(registry._components["data"], "recorded", Recorded)


OFFLINE = [
    argument
    for argument in tiny("sac", total_steps=1)
    if not argument.startswith(("data.", "total_steps", "log.every", "eval.every", "checkpoint.every"))
]
OFFLINE += ["data=recorded", "log.every=5", "eval.every=0", "checkpoint.every=10"]


def test_training_without_an_environment(run_dir: Path) -> None:
    """Steps of the log, of checkpoints and of the end are updates; the final evaluation is of the environment."""
    assert run(*OFFLINE, "total_updates=25", f"run_dir={run_dir}") == 0
    logged = [row for row in rows(run_dir) if "train/critic_loss/reach-0" in row]
    assert [row["step"] for row in logged] == [5, 10, 15, 20, 25]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["000000000020", "000000000025", "last"]
    assert (run_dir / "eval" / "000000000025.json").is_file()


def test_training_without_an_environment_goes_on(tmp_path: Path) -> None:
    assert run(*OFFLINE, "total_updates=20", f"run_dir={tmp_path / 'whole'}") == 0
    assert run(*OFFLINE, "total_updates=10", "schedule_steps=20", f"run_dir={tmp_path / 'parts'}") == 0
    assert run(f"resume={tmp_path / 'parts'}", "total_updates=20") == 0
    found = []
    for name in ("whole", "parts"):
        weights = newest_valid(tmp_path / name / "checkpoints") / "policy" / "model.safetensors"
        found.append(
            (weights.read_bytes(), [row for row in rows(tmp_path / name) if "train/critic_loss/reach-0" in row])
        )
    assert found[0] == found[1]


def test_data_without_steps_must_be_told_when_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*OFFLINE) == 2
    assert "data=recorded steps no environment: set its end with total_updates=..." in the_error(capsys)


def test_updates_may_be_counted_where_there_are_steps(run_dir: Path) -> None:
    """One for each rollout."""
    assert run(*tiny(), "total_updates=3", "log.every=1", "eval.every=0", f"run_dir={run_dir}") == 0
    logged = [row for row in rows(run_dir) if "train/policy_loss/reach-0" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]


def test_data_that_the_learner_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env=toy_reach", "agent=ppo", "data=recorded", "total_updates=1") == 2
    assert "agent=ppo learns from Rollout, but this data source yields Batch: see data=." in the_error(capsys)
    assert run("env=toy_reach", "agent=sac", "data=rollouts") == 2
    assert "agent=sac learns from Batch, but this data source yields Rollout" in the_error(capsys)
    assert run("env=toy_reach", "agent=sac", "actors=1") == 2
    assert "use actors=0" in the_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data=rollouts", "data.rollout_length=10", "total_steps=80", "agent=impala"], 0),
        (["data=recorded", "total_updates=2", "agent=sac"], 0),
        (["data=recorded", "agent=sac"], 2),
        (["data=rollouts", "data.exploring_start_fraction=2", "agent=impala"], 2),
    ],
)
def test_environments_are_closed(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, arguments: list[str], code: int
) -> None:
    """That of the data and that of the evaluation, also where nothing acts and where the run cannot begin."""
    opened, closed = [], []

    class Door(ToyReach):
        def __init__(self, num_envs: int | None = None, seed: int = 0, device: str = "cpu", slots_per_task: int = 1):
            super().__init__(num_envs, seed, device, slots_per_task=slots_per_task)
            opened.append(id(self))

        def close(self) -> None:
            super().close()
            closed.append(id(self))

    monkeypatch.setitem(registry._components["env"], "door", Door)
    assert run("env=door", *arguments, "eval.episodes_per_task=1", f"run_dir={run_dir}") == code
    assert opened
    assert set(opened) == set(closed)


def test_auxiliary_losses_are_components(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    """Built with their options and what they name of the run, also in a run that goes on; they change the policy."""
    seen = set()

    class Pull(AuxLoss):
        def __init__(self, spec: EnvSpec, weight: float) -> None:
            self.num_tasks, self.weight = spec.num_tasks, weight

        def coefficient(self, progress: float) -> float:
            seen.add((self.num_tasks, self.weight))
            return self.weight

        def __call__(self, minibatch: Any, output: Any, targets: torch.Tensor) -> torch.Tensor:
            return (output.mode() - 1).square().sum(-1)

    monkeypatch.setitem(registry._components, "aux_loss", {"pull": Pull})
    command = (*tiny(total_steps=160), "eval.every=0")
    assert run(*command, f"run_dir={run_dir}") == 0
    before = (newest_valid(run_dir / "checkpoints") / "policy" / "model.safetensors").read_bytes()
    pulled = run_dir.with_name("pulled")
    assert run(*command, "aux_losses.pull.weight=0.5", f"run_dir={pulled}") == 0
    assert (newest_valid(pulled / "checkpoints") / "policy" / "model.safetensors").read_bytes() != before
    assert run(f"resume={pulled}", "total_steps=240") == 0
    assert seen == {(4, 0.5)}
