"""`torchrun -m mtrl.train`: one run in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtrl.config import composed, train_config
from mtrl.train import check_ranks
from mtrl.types import Ranks, UserError
from tests.system.commands import (
    alive,
    assert_same_run,
    checkpoint,
    descendants,
    environment,
    evaluations,
    rows,
    run,
    tiny,
    wait_for,
)  # fmt: skip

STEPS = 3200


def torchrun(*arguments: str, cwd: Path, restarts: int = 0) -> subprocess.Popen[str]:
    """Two ranks as a user starts them."""
    launcher = ["--nproc-per-node=2", f"--max-restarts={restarts}", "--standalone", "--monitor-interval=0.05"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "mtrl.train", *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids of the ranks."""
    found = {}
    for process in descendants(launcher):
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(variable[5:]): process for variable in variables if variable.startswith(b"RANK=")}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    out, err = torchrun(*tiny(total_steps=STEPS), "run_dir=run", cwd=folder).communicate(timeout=250)
    assert out.count("Run folder: run. 8 slots in 2 ranks, 4 tasks.") == 1, err  # from the first rank only
    assert out.count("mean success") <= 1
    return folder / "run"


def test_a_run_in_two_ranks(uninterrupted: Path) -> None:
    logged = rows(uninterrupted)
    assert logged[-1]["step"] == STEPS
    assert len(evaluations(uninterrupted)) == STEPS // 320
    names = {path.name for path in (checkpoint(uninterrupted) / "training_state").iterdir()}
    own = {"data", "metrics", "rng"}
    assert names == {"learner", "run", "log_now", "evaluate_now", "save_now", *own, *(f"{name}-rank1" for name in own)}


def test_a_killed_rank_ends_in_a_resumed_run(tmp_path: Path, uninterrupted: Path) -> None:
    """Without a person, and as if nothing had happened."""
    process = torchrun(*tiny(total_steps=STEPS), "run_dir=run", "resume=auto", cwd=tmp_path, restarts=1)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last").exists())
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "Resuming run at step" in out
    assert err.count("error: Another rank has ended.") <= 1, err
    assert_same_run(tmp_path / "run", uninterrupted)


def test_stopped_and_resumed_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = torchrun(*tiny(total_steps=100_000), "run_dir=run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last").exists())
    family = descendants(process.pid)
    os.kill(ranks_of(process.pid)[1], signal.SIGTERM)  # one of them, which tells the other
    out, _ = process.communicate(timeout=250)
    assert "Go on with: torchrun --nproc-per-node=2 -m mtrl.train resume=run" in out
    assert not any(map(alive, family))
    step = int(checkpoint(tmp_path / "run").name)
    assert run(f"resume={tmp_path / 'run'}", f"total_steps={step + 160}") == 0
    out = capsys.readouterr().out
    assert "Saved by 2 ranks, resumed by 1: " in out
    assert rows(tmp_path / "run")[-1]["step"] == step + 160


def test_a_mistake_is_printed_once(tmp_path: Path) -> None:
    process = torchrun(*tiny(num_envs=9), cwd=tmp_path)
    _, err = process.communicate(timeout=250)
    assert err.count("error: env.num_envs=9 cannot be shared by 2 ranks: use a multiple of it.") == 1, err
    assert err.count("error: ") == 1, err
    assert "exitcode  : 2" in err


class Two(Ranks):
    size = 2
    local_size = 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["actors=2"], "actors=2 act for one learner: use actors=0 in 2 ranks."),
        (["device=cuda:1"], "device=cuda:1 is one GPU, and each rank has its own: use device=cuda."),
    ],
)
def test_refused(overrides: list[str], expected: str) -> None:
    config = train_config(composed([*tiny(), *overrides], "train"))
    with pytest.raises(UserError) as error:
        check_ranks(config, Two())
    assert str(error.value) == expected


@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_shares_of_settings(agent: str, tmp_path: Path) -> None:
    """Of the slots, and of a replay and its batches."""
    from contextlib import ExitStack

    from mtrl.run.timing import PhaseTimer
    from mtrl.train import make_source

    class Rank(Two):
        def share(self, name: str, total: int) -> int:
            return total // 2

    config = train_config(composed(tiny(agent), "train"))
    with ExitStack() as held:
        source: Any
        source, _, num_envs = make_source(config, PhaseTimer(), print, held, Rank())
        assert num_envs == 8
        assert source.collector.env.num_envs == 4
        if agent == "sac":
            assert (source.batch_size, source.replay.capacity, source.learning_starts) == (4, 100, 3)
