"""The tasks with reward v1. The modules here register them; poses, objects and scenes are those of `tasks`."""

from mtrl.envs.metaworld.tasks_v1 import moving, placing
from mtrl.envs.metaworld.tasks_v1.base import TASKS_V1

__all__ = ["TASKS_V1", "moving", "placing"]
