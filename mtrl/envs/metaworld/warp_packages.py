"""The packages of physics `warp`, in a folder of their own, and the processes that must not see them.

metaworld pins mujoco 3.3.0, and every MuJoCo Warp needs a newer one, so one environment cannot hold both.
`python -m mtrl.install_warp` puts the newer packages beside the environment. A process that simulates with Warp loads
them from there, once. Whatever needs the pinned mujoco (goals, the reset pool, published environments) then runs in
processes of its own, which find only that one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mtrl.envs.metaworld.cache import cache_dir
from mtrl.types import UserError

PINS = {"mujoco": "3.17.0", "mujoco-warp": "3.17.0", "warp-lang": "1.17.0"}
"""The versions that the tests were run with. warp-lang from 1.18 on needs a driver of CUDA 13 (580)."""
COMMAND = "python -m mtrl.install_warp"


class Packages(NamedTuple):
    """The modules that physics `warp` uses."""

    mujoco: ModuleType
    mujoco_warp: ModuleType
    warp: ModuleType


def packages_dir() -> Path:
    """The folder of the packages, one for each version of Python. Raises `UserError` if there is no cache folder."""
    cache = cache_dir()
    if cache is None:
        raise UserError("There is no home folder to keep the packages of physics=warp in: set MTRL_CACHE to a folder.")
    return cache / f"warp_packages_py{sys.version_info.major}.{sys.version_info.minor}"


def installed(folder: Path) -> dict[str, str]:
    """Versions of the packages in a folder, by name."""
    return {package.name: package.version for package in distributions(path=[str(folder)])}


def check_installed() -> None:
    """Raises `UserError` if the packages are missing, or have other versions than `PINS`."""
    folder = packages_dir()
    versions = installed(folder)
    if any(name not in versions for name in PINS):
        raise UserError(f"physics=warp needs packages that are not in {folder} yet: {COMMAND}")
    if wrong := [f"{name} {versions[name]} instead of {pin}" for name, pin in PINS.items() if versions[name] != pin]:
        raise UserError(f"The packages of physics=warp in {folder} have other versions ({', '.join(wrong)}): {COMMAND}")


def load() -> Packages:
    """Imports the packages of physics `warp` into this process.

    Raises:
        UserError: They are not installed, or this process has loaded the pinned mujoco.
    """
    check_installed()
    if (loaded := loaded_mujoco()) not in (None, PINS["mujoco"]):
        raise UserError(
            f"This process has loaded mujoco {loaded}, and physics=warp needs {PINS['mujoco']}: make this environment "
            "first, in a process without another physics."
        )
    if (cache := cache_dir()) is not None:
        # Kernels of other versions, found there by mistake, would simulate wrongly.
        os.environ.setdefault("WARP_CACHE_PATH", str(cache / f"warp_kernels_{PINS['mujoco-warp']}"))
    try:
        with first_on_path():
            modules = [importlib.import_module(name) for name in ("mujoco", "mujoco_warp", "warp")]
    except ImportError as error:
        raise UserError(f"The packages of physics=warp in {packages_dir()} do not work ({error}): {COMMAND}") from error
    packages = Packages(*modules)
    packages.warp.config.quiet = True
    packages.warp.init()
    return packages


@contextmanager
def first_on_path() -> Iterator[None]:
    """Lets imports, and look-ups of versions (MuJoCo Warp makes some late), find the packages of physics `warp`.

    Only for a while: processes that this one starts look for modules where it does.
    """
    folder = str(packages_dir())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def loaded_mujoco() -> str | None:
    """Version of the mujoco that this process has loaded, if any."""
    return getattr(sys.modules.get("mujoco"), "__version__", None)


def has_other_mujoco() -> bool:
    """Whether this process has loaded another mujoco than that of metaworld."""
    return loaded_mujoco() not in (None, version("mujoco"))
