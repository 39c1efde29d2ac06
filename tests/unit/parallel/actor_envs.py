"""Environments and policies for actors, some of which fail, in a module that actors can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor

from mtrl.envs.counting import CountingEnv
from mtrl.types import EnvSpec, Step


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


class Still:
    """Does not move."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def initial_state(self, num: int) -> torch.Tensor:
        return torch.zeros(num, 0)

    def act(
        self, obs: torch.Tensor, task: torch.Tensor, state: torch.Tensor, explore: bool
    ) -> tuple[torch.Tensor, ...]:
        return torch.zeros(len(obs), self.action_dim), torch.zeros(len(obs)), state


def make_actor_that_dies_once(file: Path, spec: EnvSpec) -> Still:
    """Kills its process unless the file, which it writes, exists."""
    if not file.exists():
        file.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return Still(spec.action_dim)
