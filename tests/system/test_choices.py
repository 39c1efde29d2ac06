"""Components, presets and an experiment of another package, by their names, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtrl.config import load_yaml
from tests.system.commands import ON_POLICY, environment, run, the_error

PARTS = '''
from mtrl.envs.toy import ToyReach
from mtrl.nn.trunks.mlp import MLP
from mtrl.optim.weighting import Weighting
from mtrl.registry import register


@register("weighting", "my_weighting")
class MyWeighting(Weighting):
    """Every loss counts `power` times."""

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, losses):
        return self.power * losses


@register("trunk", "my_trunk")
class MyTrunk(MLP):
    """One narrow layer."""

    def __init__(self, features: int, context: int, breadth: int = 8):
        super().__init__(features, context, width=breadth, depth=1)


@register("env", "my_env")
class MyEnv(ToyReach):
    """Three targets."""

    def __init__(self, num_envs: int | None = None, seed: int = 0, device: str = "cpu", length: int = 10,
                 slots_per_task: int = 1):
        super().__init__(num_envs, seed, device, num_tasks=3, horizon=length, slots_per_task=slots_per_task)
'''
EXPERIMENT = """# @package _global_
# Mine.
defaults:
  - override /env: my_env
  - override /weighting: my_weighting
  - override /network: my_trunk

weighting: {power: 2.0}
network: {trunk: {breadth: 4}}
"""
SHORT = (*ON_POLICY, "data.slots_per_task=2", "total_steps=60", "eval.every=0", "eval.episodes_per_task=1")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a package as it is installed, and a folder of presets."""
    installed = {
        "my_parts.py": PARTS,
        "my_parts-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-parts\nVersion: 1\n",
        "my_parts-1.dist-info/entry_points.txt": "[mtrl.components]\nmine = my_parts\n",
    }
    presets = {"experiment/mine.yaml": EXPERIMENT, "weighting/strong.yaml": "name: my_weighting\npower: 3.0\n"}
    for folder, files in (("site", installed), ("my presets", presets)):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path


def command(place: Path, *arguments: str) -> str:
    """Standard output of a command that ends well."""
    path = os.pathsep.join([environment()["PYTHONPATH"], str(place / "site")])
    found = subprocess.run(
        [sys.executable, "-m", "mtrl.train", *arguments],
        cwd=place,
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def settings(run_dir: Path) -> tuple[Any, Any, Any]:
    config = load_yaml(run_dir / "config.yaml")
    return config["env"], config["weighting"], config["network"]["trunk"]


def test_a_run(place: Path) -> None:
    """By name, with an option before the name that it belongs to; and without the presets when it is resumed."""
    chosen = ["env.name=my_env", "weighting=my_weighting", "network.trunk.breadth=5", "network.trunk.name=my_trunk"]
    command(place, *chosen, *SHORT, "run_dir=run")
    expected = ({"name": "my_env"}, {"name": "my_weighting"}, {"name": "my_trunk", "breadth": 5})
    assert settings(place / "run") == expected
    folder = ["--config-dir", "my presets"]
    command(place, *folder, "+experiment=mine", "weighting=strong", *SHORT, "run_dir=other")
    expected = ({"name": "my_env"}, {"name": "my_weighting", "power": 3.0}, {"name": "my_trunk", "breadth": 4})
    assert settings(place / "other") == expected
    (place / "my presets").rename(place / "gone")
    command(place, *folder, "resume=other", "total_steps=120")


def test_a_sweep_means_what_the_runs_mean(place: Path) -> None:
    """Names, patterns and presets; what the experiment says of its trunk is not for another."""
    folder, chosen = (
        ["--config-dir=my presets", "+experiment=mine"],
        ["weighting=glob([my_*,strong])", "network=my_trunk,mlp"],
    )
    command(place, "-m", *folder, *chosen, "hydra/launcher=basic", "hydra/sweeper=basic", *SHORT)
    found = [settings(path.parent) for path in place.glob("runs/*/*/config.yaml")]
    mlp = {"name": "mlp", "width": 256, "depth": 3, "activation": "tanh", "init": "orthogonal"}
    assert sorted(found, key=str) == [
        ({"name": "my_env"}, {"name": "my_weighting", "power": power}, trunk)
        for power in (2.0, 3.0)
        for trunk in (mlp, {"name": "my_trunk", "breadth": 4})
    ]


def test_help_lists_them(place: Path) -> None:
    text = command(place, "--help", "--config-dir", "my presets")
    assert "\nnetwork=my_trunk\n  # One narrow layer.\n  # network.trunk.breadth=8 (int)\n" in text
    assert "\nweighting=my_weighting\n  # Every loss counts `power` times.\n  # weighting.power=1.0 (float)\n" in text
    assert "\nweighting=strong\n  power: 3.0\n" in text
    assert "\nenv=my_env\n  # Three targets.\n  # env.num_envs=None (int | None)\n  # env.length=10 (int)\n" in text
    assert "\nexperiment=mine\n  # Mine.\n" in text
    assert ", moore, mtan, multi_head, multi_head_400, my_trunk, nddr, " in text


@pytest.mark.parametrize("flag", ["--config-name", "-cn", "--config-path=x", "-cp"])
def test_another_primary_file_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert run(flag, "mine", "env=toy_reach") == 2
    assert "settings are those of train.yaml" in the_error(capsys)


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize("key", ["hydra/launcher", "hydra/sweeper"])
def test_a_launcher_that_is_not_there(
    run_dir: Path, capfd: pytest.CaptureFixture[str], flags: list[str], key: str
) -> None:
    """Hydra says so, not we, who do not know all of its plugins."""
    several = ["seed=1,2"] if flags else []
    assert run(*flags, *several, f"{key}=nope", "env=toy_reach", *SHORT) == 2
    assert f"Could not find '{key}/nope'" in capfd.readouterr().err
