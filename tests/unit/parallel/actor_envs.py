"""Environments for actors, some of which fail, in a module that actors can import."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mtrl.envs.counting import CountingEnv
from mtrl.types import Step


def make_counting() -> CountingEnv:
    """For actors only, which have one thread each."""
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    return CountingEnv(6, seed=5, episode_length=4, stagger=2)


class Failing(CountingEnv):
    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        if self.variables["step"][0] == 3:
            raise ZeroDivisionError("the wheel came off\nand rolled away")
        return super().step(action, truncate)


def make_failing() -> Failing:
    return Failing(6)


def make_dead() -> CountingEnv:
    os._exit(3)
