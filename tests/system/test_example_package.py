"""The example package of the documentation: installed, and used from the command line by the names of what is in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtrl.run.checkpoint.rotation import newest_valid
from tests.system.commands import ROOT, environment

PACKAGE = ROOT / "docs" / "examples" / "package"
SHORT = ("network.trunk.num_units=8", "log.every=60", "log.tensorboard=false", "eval.every=0", "checkpoint.every=60")
REPLAY = ("data.learning_starts=5", "data.batch_size=4", "data.samples_per_insert=2")
TARGETS = torch.tensor([-0.8, 0.0, 0.8])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is installed, with a file of demonstrations: go towards the target, as far as one step goes."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = shutil.copytree(PACKAGE, folder / "source")  # building leaves files behind
    subprocess.run([*command, "--target", folder, source], check=True, cwd=folder)
    position = torch.rand(3, 500, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    action = ((TARGETS[:, None, None] - position) / 0.2).clamp(-1, 1)
    following = position + 0.2 * action
    reward = -(following - TARGETS[:, None, None]).abs()[..., 0]
    transitions = {"obs": position, "action": action, "reward": reward, "continuation": torch.ones(3, 500)}
    save_file({**transitions, "next_obs": following}, folder / "demonstrations.safetensors")
    return folder


def command(site: Path, *arguments: str, module: str = "mtrl.train") -> str:
    """What a command prints that must succeed."""
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=site,
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_presets_train_resume_and_evaluate(site: Path) -> None:
    """Imitation reaches the targets; what is reported is what its suite says."""
    experiment = ("--config-dir", str(PACKAGE / "presets"), "+experiment=line_cloning", "log.tensorboard=false")
    command(site, *experiment, "data.path=demonstrations.safetensors", "total_updates=200", "run_dir=cloning")
    printed = command(site, "resume=cloning", "total_updates=300")
    assert "Resuming cloning at step 200." in printed
    assert newest_valid(site / "cloning" / "checkpoints").name == f"{300:012d}"
    printed = command(site, "run=cloning", module="mtrl.evaluate")
    result = json.loads((site / "cloning" / "eval.json").read_text())
    assert result["protocol"]["horizon"] == 30
    assert result["protocol"]["starts"] == "20, evenly on the line"
    assert result["summary"]["success_rate"] > 0.9
    assert 0 < result["scores"]["distance"] < 0.3
    assert "distance" in printed


@pytest.mark.parametrize("agent", ["ppo", "sac"])
def test_its_suite_and_trunk_with_our_learners(site: Path, agent: str) -> None:
    few = (
        ("data.learning_starts=5", "data.batch_size=4", "data.samples_per_insert=2")
        if agent == "sac"
        else ("data.rollout_length=10",)
    )
    command(site, "env=line", f"agent={agent}", "network=gated", *SHORT, *few, "total_steps=480", f"run_dir={agent}")
    config = (site / agent / "config.yaml").read_text()
    assert "name: gated" in config
    assert json.loads(next((site / agent / "eval").glob("*.json")).read_text())["scores"].keys() == {"distance"}


def test_its_learner_with_our_replay(site: Path) -> None:
    command(site, "env=line", "agent=cloning", "data=replay", *REPLAY, *SHORT[1:], "total_steps=120", "run_dir=replay")


def test_help_lists_it(site: Path) -> None:
    text = command(site, "--help")
    for choice in ("agent=cloning", "data=transitions", "env=line", "network=gated"):
        assert choice in text
