"""Observation, reward and success of Meta-World's tasks in batched torch. Every module here registers its tasks."""

import importlib
import pkgutil

from mtrl.envs.metaworld.tasks.base import TASKS, Outcome, Task, TaskState

__all__ = ["TASKS", "Outcome", "Task", "TaskState"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
