"""Physics `warp` beside the official one, and the packages that it is kept apart with."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import pytest
import torch

import mtrl.envs
from mtrl import install_warp
from mtrl.envs.metaworld import pinned, warp_packages
from mtrl.envs.metaworld.catalog import MT10
from mtrl.types import UserError
from tests.system.commands import environment, run

try:
    warp_packages.check_installed()
    MISSING = ""
except UserError as error:
    MISSING = str(error)
with_warp = pytest.mark.skipif(bool(MISSING), reason=MISSING)
"""The first of these tests compiles kernels, for minutes; they are kept in the cache folder."""

CLOSE = 2e-3
"""Metres within which hand and object are after a step from an official state, in nine of ten states (measured: at most
1.3e-3 in MT10 but for the door, where the gripper holds the peg)."""
LESS_CLOSE = {"door-open-v3": 2e-2}
"""The same where it is more (measured: 9e-3, while the gripper pulls the handle, a mesh)."""


def check(name: str, folder: Path | None = None, **arguments: Any) -> Any:
    """Calls a function of `warp_checks` in a process of its own."""
    command = [sys.executable, "-m", "tests.unit.envs.warp_checks", name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- Two mujocos ------------------------------------------------------------------------------------------------------


def installed_version(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_missing_and_wrong_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"needs packages that are not in .*: python -m mtrl.install_warp"):
        warp_packages.load()
    for name in warp_packages.PINS:
        installed_version(warp_packages.packages_dir(), name, "1.2.3" if name == "mujoco" else warp_packages.PINS[name])
    with pytest.raises(UserError, match=r"other versions \(mujoco 1.2.3 instead of .*: python -m mtrl.install_warp"):
        warp_packages.load()


def test_a_process_loads_one_mujoco(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    for name, pin in warp_packages.PINS.items():
        installed_version(warp_packages.packages_dir(), name, pin)
    with pytest.raises(UserError, match=r"has loaded mujoco 3.3.0, and physics=warp needs "):
        warp_packages.load()


def test_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    given = []

    def pip(arguments: list[str]) -> None:
        given.append(arguments)
        target = Path(arguments[arguments.index("--target") + 1])
        for requirement in arguments[-len(warp_packages.PINS) :]:
            installed_version(target, *requirement.split("=="))

    monkeypatch.setattr(install_warp, "_pip", pip)
    for _ in range(2):
        folder = install_warp.install(["--no-index"])
    assert warp_packages.installed(folder) == warp_packages.PINS
    assert given[0][:2] == ["install", "--no-deps"]  # whose requirements would bring another numpy
    assert "--no-index" in given[0]
    assert list(tmp_path.iterdir()) == [folder]


def test_pip_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MTRL_CACHE", str(tmp_path))
    assert run("--no-index", "--find-links", str(tmp_path), command=install_warp) == 2
    assert "error: pip failed, as it says above" in capfd.readouterr().err


def test_beside_another_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the pinned one gets a process that has it, or says that it needs one."""
    monkeypatch.setattr(mujoco, "__version__", "99.0")
    assert pinned.with_pinned_mujoco(eval, "__import__('mujoco').mj_versionString()") == "3.3.0"
    with pytest.raises(UserError, match=r"has loaded mujoco 99.0 for physics=warp, and physics=rollout needs 3.3.0"):
        mtrl.envs.make("mt1", task="reach-v3")
    env = mtrl.envs.make("mt1", task="reach-v3", physics="official", num_workers=0)
    obs = env.reset()
    env.close()
    monkeypatch.undo()
    same = mtrl.envs.make("mt1", task="reach-v3", physics="official", num_workers=0)
    assert torch.equal(same.reset(), obs)


def test_failure_beside_another_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", "99.0")
    with pytest.raises(RuntimeError, match="sqrt failed: "):
        pinned.with_pinned_mujoco(math.sqrt, -1.0)


# --- The simulation ---------------------------------------------------------------------------------------------------


@with_warp
@pytest.mark.timeout(1800)
def test_first_observations() -> None:
    found = check("first_frames", tasks=["reach-v3", "push-v3"], goals=[0, 49])
    assert found["obs"] < 1e-6
    assert found["frame"] < 1e-5


@with_warp
@pytest.mark.timeout(1800)
def test_one_step() -> None:
    assert_close(check("one_step", tasks=["reach-v3", "push-v3"], goals=[1, 2], every=15))


@with_warp
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mt10() -> None:
    found = check("first_frames", tasks=list(MT10), goals=[0, 11, 22, 33, 44])
    assert found["obs"] < 1e-6
    assert found["frame"] < 1e-5
    assert_close(check("one_step", tasks=list(MT10), goals=[0, 11, 22, 33, 44], every=10))


def assert_close(found: dict[str, Any]) -> None:
    for task, differences in found.items():
        most = int(0.9 * len(differences["hand"]))
        bound = LESS_CLOSE.get(task, CLOSE)
        assert differences["hand"][most] < bound, task
        assert differences["object"][most] < bound, task
        assert differences["overflow"] == 0, task


@with_warp
@pytest.mark.timeout(1800)
def test_contract() -> None:
    found = check("contract")
    assert found["truncated"] == [[False] * 6, [False] * 6, [True] * 6]
    assert found["tasks"] == [[0, 0, 1, 1, 2, 2], [1, 1, 0, 1, 2, 2]]
    assert found["next episode"] < 1e-6
    assert found["same"]
    assert found["finite"]
    assert found["unstable"] == [0, 1, 0]
    assert found["error"] == (
        "physics=warp: slot 0 simulates the scene of reach-v3, push-v3, and cannot run drawer-close-v3: "
        "use task_sampling=uniform, or physics=rollout."
    )


@with_warp
@pytest.mark.timeout(1800)
def test_gymnasium_gives_the_same_as_tensors() -> None:
    assert check("tensors") == {"same": [True] * 4}


@with_warp
@pytest.mark.timeout(1800)
def test_contacts_without_memory_are_counted() -> None:
    (steps,) = check("memory")["overflow"]
    assert 2 <= steps < 16  # of two slots, but not in the first steps


@with_warp
@pytest.mark.timeout(1800)
def test_training_goes_on_exactly(tmp_path: Path) -> None:
    """And evaluates on the pinned mujoco meanwhile."""
    found = check("train_and_resume", tmp_path)
    assert found == {"codes": [0, 143, 0], "protocol": "official (metaworld 3.1.1, mujoco 3.3.0)"}
