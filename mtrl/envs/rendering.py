"""Images of single environments. No torch here: `image` runs in workers."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

# What gymnasium does for an image of MuJoCo. In a process of its own, as a driver may end the process that tries it.
_TRIAL = """
import os, mujoco
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
model = mujoco.MjModel.from_xml_string("<mujoco/>")
viewer = OffScreenViewer(model, mujoco.MjData(model), 8, 8)
viewer.render("rgb_array")
os._exit(0)
"""


def image(env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    """RGB image (height, width, 3) of an environment that was made with `render_mode="rgb_array"`.

    Raises:
        RuntimeError: It gives something else.
    """
    viewer = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "viewer", None)
    if viewer is not None:
        # Each scene has an OpenGL context of its own, but is drawn with the one that is current in this process: that
        # of the scene which was first drawn last, as gymnasium makes a context current only when it creates it.
        viewer.make_context_current()
    drawn = np.asarray(env.render())
    if drawn.ndim != 3 or drawn.shape[-1] != 3 or drawn.dtype != np.uint8:
        found = "nothing" if drawn.dtype == object else f"{drawn.dtype} of shape {drawn.shape}"
        raise RuntimeError(f"The environment gives no uint8 image (height, width, 3) when it is drawn, but {found}.")
    return drawn


def check_mujoco_draws() -> None:
    """Makes sure that MuJoCo can draw in the processes that this one starts; without `MUJOCO_GL`, chooses how.

    Raises:
        UserError: It cannot.
    """
    from mtrl.types import UserError

    chosen = os.environ.get("MUJOCO_GL")
    screen = sys.platform != "linux" or "DISPLAY" in os.environ
    reasons = []
    for backend in (chosen,) if chosen else ("glfw",) * screen + ("egl", "osmesa"):
        reason = _obstacle(backend)
        if not reason:
            os.environ["MUJOCO_GL"] = backend
            return
        reasons.append(f"MUJOCO_GL={backend}: {reason}")
    raise UserError(
        f"MuJoCo cannot draw images here ({'; '.join(reasons)}). Install libegl1, which uses a graphics card, or "
        "libosmesa6, which needs none (Debian's names), and leave MUJOCO_GL unset or set it to egl or osmesa."
    )


@functools.cache
def _obstacle(backend: str) -> str:
    """Why MuJoCo cannot draw with a back end; empty if it can."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", _TRIAL], env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
