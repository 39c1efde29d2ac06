"""Install what env.physics=warp needs: MuJoCo Warp, with the mujoco and the warp-lang that go with it.

python -m mtrl.install_warp                                     # into a folder of their own in the cache folder
python -m mtrl.install_warp --no-index --find-links WHEELS      # any options of pip, here for a machine without network
python -m mtrl.install_warp --download WHEELS                   # fetches the wheels for such a machine

They stay out of the environment, because metaworld pins an older mujoco.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mtrl.config import run_or_exit
from mtrl.envs.metaworld.warp_packages import PINS, check_installed, installed, packages_dir
from mtrl.types import UserError

_TRIAL = """
from mtrl.envs.metaworld.warp_packages import load
warp = load().warp
print(*warp.get_devices(), sep=", ")
"""


def install(options: Sequence[str] = ()) -> Path:
    """Installs the packages, and loads them in another process. Returns their folder.

    Args:
        options: For pip.

    Raises:
        UserError: pip failed, or the packages do not work here.
    """
    folder = packages_dir()
    temporary = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    # Their other requirements are those of the pinned mujoco too.
    _pip(["install", "--no-deps", "--target", str(temporary), *options, *_requirements()])
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    check_installed()
    return folder


def _requirements() -> list[str]:
    return [f"{name}=={pin}" for name, pin in PINS.items()]


def _pip(arguments: Sequence[str]) -> None:
    if subprocess.run([sys.executable, "-m", "pip", *arguments]).returncode:
        raise UserError("pip failed, as it says above: physics=warp is not installed.")


def _devices() -> str:
    """The devices that Warp sees."""
    done = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"The packages are installed, but do not work here: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def main() -> None:
    """Command line."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if arguments and arguments[0] == "--download":
        if len(arguments) < 2:
            raise UserError("--download needs a folder for the wheels.")
        _pip(["download", "--no-deps", "--dest", *arguments[1:], *_requirements()])
        return 0
    folder = install(arguments)
    print(
        f"Installed in {folder}: " + ", ".join(f"{name} {found}" for name, found in sorted(installed(folder).items()))
    )
    print(f"The environment keeps mujoco {version('mujoco')}. Devices: {_devices()}.")
    print("Try it: python -m mtrl.train env=mt1 env.physics=warp (the first start compiles kernels, for minutes)")
    return 0


if __name__ == "__main__":
    main()
