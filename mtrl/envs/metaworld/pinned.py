"""Calls that need the mujoco that metaworld pins, made in a process that has it."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from mtrl.envs.metaworld.warp_packages import has_other_mujoco, loaded_mujoco
from mtrl.system.process import EnvironmentFailedError, ServingProcess


def with_pinned_mujoco(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function of a module, here or, unless this process has loaded the pinned mujoco, in a process of its own.

    A process that has loaded none yet may load another one later (physics `warp`), and can only load one.

    Raises:
        EnvironmentFailedError: The process ended, or the function raised there.
    """
    if loaded_mujoco() is not None and not has_other_mujoco():
        return function(*args)
    process = ServingProcess(__name__)
    try:
        process.connection.send((function.__module__, function.__qualname__, args))
        done, result = process.next_message()
    except (EOFError, OSError) as error:
        raise EnvironmentFailedError(f"The process of {function.__qualname__} {process.how_it_ended()}.") from error
    finally:
        process.close()
    if not done:
        raise EnvironmentFailedError(f"{function.__qualname__} failed: {result}")
    return result


def main(fd: int) -> None:
    """Makes the call that comes through the pipe, and sends its result."""
    connection = Connection(fd)
    try:
        module, name, args = connection.recv()
        try:
            connection.send((True, getattr(importlib.import_module(module), name)(*args)))
        except Exception as error:
            connection.send((False, f"{error}\n{traceback.format_exc()}"))
    except (EOFError, OSError):
        sys.exit(0)
