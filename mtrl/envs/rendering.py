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

# What gymnasium does to render with MuJoCo. Run in a separate process, because a driver may crash it.
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
        RuntimeError: The environment returns something else.
    """
    viewer = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "viewer", None)
    if viewer is not None:
        # Each scene has its own OpenGL context, but is rendered with the current one of this process. Gymnasium makes
        # a context current only when it creates it, so that would be the context created last.
        viewer.make_context_current()
    pixels = np.asarray(env.render())
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        result = "nothing" if pixels.dtype == object else f"{pixels.dtype} of shape {pixels.shape}"
        raise RuntimeError(f"The environment gives no uint8 image (height, width, 3) when it is drawn, but {result}.")
    return pixels


def check_mujoco_draws() -> None:
    """Checks that MuJoCo can render in the processes that this one starts. Sets `MUJOCO_GL` if it is not set.

    Raises:
        UserError: It cannot render.
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
    """Why MuJoCo cannot render with a backend; empty if it can."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", _TRIAL], env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
