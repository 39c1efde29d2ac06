"""A user's mistake, and a broken disk: one line that says what is wrong and what is valid, and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtrl.envs.toy
import mtrl.run.checkpoint.rotation
from mtrl.run.checkpoint.codec import load_state
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.run.loop import Loop
from tests.system.commands import (
    AGENTS,
    PYTHON_RNG,
    TINY,
    assert_same_run,
    environment,
    rows,
    run,
    start,
    stopped_after,
    the_error,
    tiny,
)  # fmt: skip
from tests.unit.run.test_logger import FakeWandb

TASKS = "reach-0, reach-1, reach-2, reach-3"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("env=toy_reech", "Unknown env 'toy_reech'. Did you mean 'toy_reach'? Valid: atari, atari5, atari57,"),
        ("agent=ppoo", "Unknown agent 'ppoo'. Did you mean 'ppo'? Valid: distill, distral, impala, ppo, sac."),
        ("network=mlpp", "Unknown network 'mlpp'. Did you mean 'mlp'? Valid: adashare, branched, bronet"),
        ("task_encoder=onehot", "Unknown task_encoder 'onehot'. Did you mean 'one_hot'?"),
        ("experiment=foo", "Unknown experiment 'foo'. Valid: atari3_popart, atari57_impala, atari_pong, mt10_ars"),
        ("env.name=foo", "Unknown env 'foo'. Valid: atari, atari5, atari57,"),
        ("agent.name=foo", "Unknown agent 'foo'. Valid: distill, distral, impala, ppo, sac"),
        ("network.trunk.name=foo", "Unknown trunk 'foo'. Valid: adashare, bronet, care"),
        ("sed=3", "Unknown key 'sed'. Did you mean 'seed'? Valid: env, agent,"),
        ("+foo=3", "Unknown key 'foo'"),
        ("evl.every=5", "Unknown key 'evl.every'"),
        (
            "eval.evry=5",
            "Unknown key 'eval.evry'. Did you mean 'eval.every'? Valid: eval.every, eval.episodes_per_task",
        ),
        ("agent.gama=1", "Unknown option of agent 'ppo': 'gama'. Did you mean 'gamma'? Valid: optimizer, gamma,"),
        ("agent.optimizer.rl=1", "Unknown option of optimizer 'adam': 'rl'"),
        ("network.trunk.widht=3", "Unknown option of trunk 'mlp': 'widht'. Did you mean 'width'?"),
        ("network.trnk.width=3", "Unknown option of network: 'trnk'. Did you mean 'trunk'? Valid: trunk, head"),
        ("network.head=per_tusk", "Unknown head 'per_tusk'. Did you mean 'per_task'? Valid: per_task, shared"),
        ("env.foo=1", "Unknown option of env 'toy_reach': 'foo'. Valid:"),
        ("env.seed=3", "env.seed does not exist"),
        ("env.device=cpu", "env.device does not exist: use device"),
        ("env.slots_per_task=3", "env.slots_per_task does not exist: use data.slots_per_task"),
        ("data.slots_per_task=abc", "data.slots_per_task must be a positive integer, not 'abc'"),
        ("data.slots_per_task=-1", "data.slots_per_task must be a positive integer, not -1"),
        (
            "data.exploring_start_fraction=2",
            "data 'rollouts': exploring_start_fraction must be a share of an episode, from 0 to 1, not 2",
        ),
        ("resets=-1", "resets must not be negative, but is -1"),
        ("data.exploring_start_fraction=abc", "data 'rollouts': exploring_start_fraction must be a number, not 'abc'"),
        ("env.num_envs=abc", "env.num_envs must be an integer or null, not 'abc'"),
        ("env.num_envs=-16", "num_envs must be a positive multiple of the number of tasks (4), not -16"),
        ("env.num_envs=15", "not 15: use for example 16"),
        ("actors=-1", "actors must not be negative, but is -1"),
        ("actors=two", "actors must be an integer, not 'two'"),
        ("transport=ray", "transport=ray connects to actors: choose their number with actors="),
        ("actors=3", "env.num_envs=8 cannot be shared by actors=3: use a multiple of it"),
        ("actors=4", "num_envs must be a positive multiple of the number of tasks (4), not 2"),
        ("precision=bfloat", "Unknown precision 'bfloat'. Did you mean 'bfloat16'? Valid: float32, bfloat16"),
        ("compile=1", "compile must be true or false, not 1"),
        ("seed=-1", "seed must not be negative, but is -1"),
        ("seed=a", "seed must be an integer, not 'a'"),
        ("total_steps=0", "total_steps must be positive, not 0"),
        ("total_steps=many", "total_steps must be an integer, not 'many'"),
        ("schedule_steps=0", "schedule_steps must be positive, not 0"),
        ("eval.max_episode_steps=0", "eval: max_episode_steps must be positive, not 0"),
        ("total_steps=1.5", "total_steps must be an integer, not 1.5"),
        ("eval.every=-1", "eval: every must not be negative, but is -1"),
        ("eval.episodes_per_task=0", "eval: episodes_per_task must be positive"),
        ("checkpoint.keep=0", "checkpoint: keep must be positive"),
        ("log.every=0", "log: every must be positive"),
        ("log.wandb=maybe", "log: wandb must be true or false, not 'maybe'"),
        ("agent.num_epochs=0", "agent 'ppo': num_epochs must be positive, not 0"),
        ("agent.optimizer.lr=-1", "optimizer 'adam': lr must be positive, not -1"),
        ("agent.optimizer.lr=abc", "optimizer 'adam': lr must be a number, not 'abc'"),
        ("agent.optimizer=5", "agent 'ppo': optimizer must be settings, not 5"),
        ("network.trunk=5", "network: trunk must be settings, not 5"),
        ("init_from_parts=[trunk]", "init_from does not say where from"),
        ("init_from_parts=trunk", "init_from_parts must be a list (each text) or null, not 'trunk'"),
        ("eval=5", "eval.max_episode_steps, eval.stop_at_success) and cannot be 5"),
        ("log=null", "log is a group of settings"),
        ("~eval", "eval is a group of settings"),
        ("~env", "env needs a name"),
        ("~agent", "agent needs a name"),
        ("seed=1,2", "seed=1,2"),
        ("seed", "Cannot read the command line"),
        ("=3", "Unknown key ''"),
        ("hydra.foo=3", "hydra.foo"),
        ("device=gpu", "device=gpu cannot be used"),
        ("device=mps", "device=mps cannot be used. Here: cpu"),
        ("init_from=nowhere", "No policy in nowhere: expected a run folder"),
        ("init_from=/etc/hostname", "No policy in /etc/hostname: expected a run folder"),
        ("run_dir=/etc/hostname", "run_dir=/etc/hostname is not empty"),
        ("run_dir=/etc/hostname/run", "Cannot write the run folder /etc/hostname/run: Not a directory"),
    ],
)
def test_bad_argument(run_dir: Path, capsys: pytest.CaptureFixture[str], argument: str, expected: str) -> None:
    assert run(*tiny(), argument) == 2
    assert expected in the_error(capsys)
    assert not list(run_dir.parent.iterdir()), "nothing has begun"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=mt1", "env.task=reach-v4"], "Unknown Meta-World task 'reach-v4'. Did you mean 'reach-v3'? Valid: "),
        (["env=mt1", "env.task=3"], "env 'mt1': task must be text or null, not 3"),
        (["env=mt1", "env.reward_version=v3"], "reward_version must be one of v1, v2, not 'v3'"),
        (["env=mt1", "env.physics=fast"], "Unknown physics 'fast'. Valid: "),
        (["env=metaworld", "env.tasks=[reach-v3,pusch-v3]"], "Did you mean 'push-v3'?"),
        (
            ["env=gym", "env.ids=[Pendulum-v9]"],
            "Unknown gymnasium environment 'Pendulum-v9'. Did you mean 'Pendulum-v1'?",
        ),
        (
            ["env=gym", "env.ids=[{id: Pendulum-v1, kwarg: {g: 9}}]"],
            "Unknown option of an entry of ids: 'kwarg'. Did you mean 'kwargs'? Valid: id, kwargs, name.",
        ),
        (
            ["env=gym", "env.ids=[mtrl/reech-v3]"],
            "'mtrl/reech-v3'. Meta-World's tasks are in env=metaworld 'env.tasks=[reach-v3]'.",
        ),
        (
            ["env=atari", "env.games=[brekout]"],
            "Unknown Atari game or set of games 'brekout'. Did you mean 'breakout'?",
        ),
        (["env=atari5", "env.action_set=all"], "action_set must be one of minimal, full, full_masked, not 'all'"),
        (["env=toy_grid", "agent=sac"], "agent=sac needs continuous actions"),
        (["agent=sac", "core=lstm"], "agent=sac learns without memory, and from flat observations"),
        (["env=toy_grid", "torso=nature_cnn"], "observations of shape (25,) are not images: use torso=none"),
        (["env=atari", "torso=none"], "observations of shape (4, 84, 84) need torso=nature_cnn"),
        (["env=toy_grid", "core=lstm", "agent.num_minibatches=99"], "99 minibatches cannot be made of 64 sequences"),
        (["compile=true", "aggregation=pcgrad"], "aggregation=pcgrad takes each task's: use aggregation=mean or sum"),
        (["compile=true", "weighting=gradnorm"], "weighting=gradnorm takes each task's: use another weighting"),
        (["agent=sac", "network.head=shared", "value_norm=popart"], "value_norm=popart needs network.head=per_task"),
        (["env=toy_reach", "agent=sac", "data.slots_per_task=2", "actors=2"], "use actors=0, or agent=impala"),
        (
            ["env=toy_reach", "actors=2", "transport=rey"],
            "Unknown transport 'rey'. Did you mean 'ray'? Valid: local, ray.",
        ),
        (["env=toy_reach", "actors=3"], "data.slots_per_task=16 cannot be shared by actors=3"),
        (["value_head=two_hot", "value_norm=popart"], "use value_norm=none with two_hot"),
        (
            ["env=gym", "task_sampling=a5c"],
            "reported by Pendulum-v1, MountainCarContinuous-v0, so that targets",
        ),
        (["env=toy_reach", "task_sampling=a5c", "task_sampling.targets=[1,2]"], "for each of the 4 tasks, not 2"),
        (["agent=sac", "env=toy_reach", "agent.tau=-1"], "tau must be positive"),
        (["--cfg", "job", "sed=1"], "Unknown key 'sed'"),
        (["-m", "seed=1,2", "agent=ppo,sacc"], "Unknown agent 'sacc'. Did you mean 'sac'?"),
        (["-m", "resume=runs/x"], "resume and run_dir name one run"),
        (["aggregation=glob(m*)"], "aggregation=glob(m*) stands for several values, which only a sweep takes"),
        (["--cfg", "job", "seed=1,2"], "seed=1,2 stands for several values"),
        (["-m", "init_from=a]b"], "Cannot read the command line: 'init_from=a]b' is not key=value. Quote values"),
        (["env=toy_reach", "agent.initial_std=inf"], "Out of range float values are not JSON compliant"),
    ],
)
def test_bad_combination(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(*arguments) == 2
    assert expected in the_error(capsys)
    assert not list(run_dir.parent.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*tiny(), "device=cuda") == 2
    assert "device=cuda cannot be used" in the_error(capsys)


def test_missing_extra(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(*tiny(), "log.wandb=true", f"run_dir={run_dir}") == 2
    assert 'log.wandb=true needs wandb: pip install -c constraints.txt -e ".[wandb]"' in the_error(capsys)
    assert not run_dir.exists()


def test_wandb_without_an_account(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(logged_in=False))
    assert run(*tiny(), "log.wandb=true", f"run_dir={run_dir}") == 2
    assert "log.wandb=true: No API key configured." in the_error(capsys)
    assert not run_dir.exists()


def test_no_compiler(tmp_path: Path) -> None:
    """In a process of its own: torch reads $CXX when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "mtrl.train", *tiny(), "compile=true", "run_dir=run"],
        cwd=tmp_path,
        env={**environment(), "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: compile=true needs a C\+\+ compiler, and there is none: .*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_as_a_process(tmp_path: Path) -> None:
    wrong = [["env=mt01"], ["total_steps=-5", "env=toy_reach"], ["resume=runs/gone"]]
    found = [start(*arguments, cwd=tmp_path) for arguments in wrong]
    for process, expected in zip(found, ("'mt1'", "must be positive", "it is not a run folder"), strict=True):
        out, err = process.communicate(timeout=200)
        assert (process.returncode, out) == (2, "")
        assert re.fullmatch(rf"error: .*{expected}.*\n", err)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Resuming
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `whole` run, and the same `stopped` at step 480 of 640 with checkpoints of steps 320 and 480."""
    folder = tmp_path_factory.mktemp("originals")
    assert run(*tiny(), f"run_dir={folder / 'whole'}") == 0
    with stopped_after(6):
        assert run(*tiny(), f"run_dir={folder / 'stopped'}") == 143
    return folder


@pytest.fixture
def stopped(run_dir: Path, originals: Path) -> Path:
    """A copy of the stopped run."""
    shutil.copytree(originals / "stopped", run_dir, symlinks=True)
    return run_dir


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["agent=sac"],
            "agent cannot be changed when a run is resumed (only total_steps, total_updates, device,",
        ),
        (["agent.gamma=0.5"], "agent.gamma cannot be changed"),
        (["seed=2"], "seed cannot be changed"),
        (["total_steps=-1"], "total_steps must be positive"),
        (["eval.evry=1"], "Unknown key 'eval.evry'. Did you mean 'eval.every'? Valid: eval.every"),
        (["eval=5"], "eval is a group of settings"),
        (["log.every=x"], "log: every must be an integer"),
    ],
)
def test_bad_resume(stopped: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    before = (stopped / "config.yaml").read_text()
    capsys.readouterr()
    assert run(f"resume={stopped}", *arguments) == 2
    assert expected in the_error(capsys)
    assert (stopped / "config.yaml").read_text() == before


@pytest.mark.parametrize("what", ["missing", "file", "empty", "no config", "broken yaml", "list", "no section"])
def test_resume_of_what_is_no_run(run_dir: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    if what == "file":
        run_dir.write_text("x")
    elif what != "missing":
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text("")
    config = {"broken yaml": "a: [1\nb: }", "list": "[1, 2]", "no section": "seed: 1\n"}.get(what)
    if config is not None:
        (run_dir / "config.yaml").write_text(config)
    assert run(f"resume={run_dir}") == 2
    assert str(run_dir) in (message := the_error(capsys)) or what == "no section", message


def test_run_dir_in_use(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(*tiny(), f"run_dir={stopped}") == 2
    assert f"is not empty: choose another, or resume={stopped}" in the_error(capsys)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, "training_state/learner/state.safetensors"),
        (flip, "training_state/data/state.safetensors"),
        (Path.unlink, "training_state/run/state.json"),
        (flip, "policy/model.safetensors"),
    ],
)
def test_damaged_checkpoint(
    stopped: Path, originals: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], file: str
) -> None:
    newest = stopped / "checkpoints" / "000000000480"
    damage(newest / file)
    capsys.readouterr()
    assert run(f"resume={stopped}") == 0
    out = capsys.readouterr().out
    assert f"Checkpoint {newest} is damaged: {file}: " in out
    assert "Using the one before it." in out
    assert f"Resuming {stopped} at step 320." in out
    assert_same_run(originals / "whole", stopped, PYTHON_RNG)


def test_all_checkpoints_damaged(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in stopped.glob("checkpoints/0*"):
        flip(path / "manifest.json")
    capsys.readouterr()
    assert run(f"resume={stopped}") == 2
    message = the_error(capsys)
    assert "No usable checkpoint" in message
    assert "000000000480" in message
    assert "000000000320" in message


# ---------------------------------------------------------------------------------------------------------------------
# Weights from elsewhere
# ---------------------------------------------------------------------------------------------------------------------


def test_init_from_another_problem(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(*tiny(env="toy_grid"), f"init_from={stopped}", "run_dir=other") == 2
    assert "The networks differ" in the_error(capsys)
    assert run(*tiny(), f"init_from={stopped}", "init_from_parts=[trunc]", "run_dir=other") == 2
    assert "Unknown part 'trunc'. Did you mean 'trunk'? Valid: " in the_error(capsys)
    assert not Path("other").exists()


# ---------------------------------------------------------------------------------------------------------------------
# While it runs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_loss_overflows(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """Rewards that are finite, with values that are not."""
    advance = mtrl.envs.toy.ToyReach.advance

    def huge(env: Any, action: torch.Tensor) -> Any:
        reward, *rest = advance(env, action)
        return torch.where(env.task == 2, 3e38, reward), *rest

    monkeypatch.setattr(mtrl.envs.toy.ToyReach, "advance", huge)
    assert run(*tiny(agent), f"run_dir={run_dir}") == 2
    message = the_error(capsys)
    assert re.search(r"NaN or infinite in task reach-2 at step \d+\.", message)
    assert f"The batch is in {run_dir / 'nan_batch'}" in message
    batch = load_state(run_dir / "nan_batch")
    assert (batch["reward"][batch["task"] == 2] == 3e38).all()
    assert (batch["reward"][batch["task"] != 2] < 0).all()


NOT_FINITE = ["env=gym", "env.num_envs=2", "env.num_workers=1", *TINY, "eval.every=0"]


@pytest.mark.parametrize("agent", ["ppo", "impala", "sac", "actors"])
@pytest.mark.parametrize(
    ("what", "found"),
    [("observation", "nan as the observation at [1], in step 17"), ("reward", "inf as the reward, in step 17")],
)
def test_environment_is_not_finite(
    run_dir: Path, capsys: pytest.CaptureFixture[str], agent: str, what: str, found: str
) -> None:
    """Neither the actions nor the learning rate are to blame."""
    ids = f"env.ids=[{{id: 'tests.system.broken_env:NotFinite-v0', kwargs: {{what: {what}}}, name: sick}}]"
    agents = {**AGENTS, "actors": (*AGENTS["impala"], "actors=2")}
    assert run(*NOT_FINITE, ids, *agents[agent], f"run_dir={run_dir}") == 2
    message = the_error(capsys)
    assert f"The environment of task 'sick' gave {found} of an episode (slot " in message
    assert "observations and rewards must be finite" in message


@pytest.mark.parametrize("env", ["toy_reach", "toy_grid"])
def test_learning_rate_too_high(run_dir: Path, capsys: pytest.CaptureFixture[str], env: str) -> None:
    assert run(*tiny(env=env), "agent.optimizer.lr=1e30", f"run_dir={run_dir}") == 2
    assert "NaN or infinite" in the_error(capsys)


def test_weights_become_nan(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train = Loop._train

    def poisoned(loop: Loop) -> None:
        if loop.state.updates == 3:
            next(loop.learner.policy.head.parameters()).data.fill_(torch.nan)
        train(loop)

    monkeypatch.setattr(Loop, "_train", poisoned)
    assert run(*tiny(), f"run_dir={run_dir}") == 2
    assert "weights became NaN or infinite before step 240; the last checkpoint is intact" in the_error(capsys)
    assert newest_valid(run_dir / "checkpoints").name == "000000000160"


def test_disk_full_for_a_while(
    run_dir: Path, originals: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = mtrl.run.checkpoint.rotation.save_state, 0

    def full(folder: Path, state: Any) -> None:
        nonlocal count
        count += 1
        if count < 7:  # up to the final evaluation
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        save(folder, state)

    monkeypatch.setattr(mtrl.run.checkpoint.rotation, "save_state", full)
    monkeypatch.setattr("mtrl.run.loop.write_eval", lambda *a, **k: full(run_dir, None))
    assert run(*tiny(), f"run_dir={run_dir}") == 0
    out = capsys.readouterr().out
    assert "WARNING: Could not save the checkpoint of step 160" in out
    assert "WARNING: Could not save the evaluation: No space left on device. Training goes on." in out
    assert rows(run_dir) == rows(originals / "whole")


def test_disk_full_for_good(tmp_path: Path) -> None:
    """A limit of the size of files is as near to a full disk as a test can get."""
    command = [*tiny(), "network.trunk.width=256", "run_dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "mtrl.train", *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)),
    )
    assert done.returncode == 2, done.stderr
    assert "WARNING: Could not save the checkpoint of step 160" in done.stdout
    assert "step 640: evaluation success" in done.stdout, "it went on to the end"
    last = done.stderr.splitlines()[-1]
    assert re.match(r"error: Could not save the checkpoint of step 640 in .*File too large", last)
    assert "Traceback" not in done.stderr


def test_folder_vanishes(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train = Loop._train

    def remove(loop: Loop) -> None:
        if loop.state.updates == 3:
            shutil.rmtree(run_dir)
            run_dir.write_text("in the way")
        train(loop)

    monkeypatch.setattr(Loop, "_train", remove)
    assert run(*tiny(), f"run_dir={run_dir}") == 2
    assert "Could not save the checkpoint of step 640" in the_error(capsys)
