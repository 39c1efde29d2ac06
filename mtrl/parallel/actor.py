"""An actor: the process that acts with the newest policy it has been sent, and hands over one rollout after another."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import mtrl.nn  # noqa: F401  # registers what a policy is made of
from mtrl.data.experience import Collector, EpisodeStatistics, OnPolicy
from mtrl.data.task_sampling import TaskSampler
from mtrl.nn.networks import build_policy
from mtrl.system.memory import SharedTensors, Tree, WeightBroadcast, copy_into
from mtrl.types import Metrics, VecEnv

Ended = list[tuple[list[int], dict[str, list[float]]]]
"""Arguments of the calls of `EpisodeStatistics.add` during a rollout, as lists: a pipe would share tensors."""


@dataclass(frozen=True)
class Recipe:
    """What an actor is made from. All of it pickles.

    Attributes:
        make_env: A function of a module, or a partial of one.
        policy: What `build_policy` takes.
        options: Of the `Collector`.
        discount: See `EpisodeStatistics`.
        seed: Of the episodes and of the actions.
    """

    make_env: Callable[[], VecEnv]
    policy: dict[str, Any]
    rollout_length: int
    options: dict[str, float]
    discount: float | None
    seed: int


class RemoteTaskSampler(TaskSampler):
    """Stands for the learner's sampler: its shares come with the weights, and episodes go to it with the rollout."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.shares = torch.zeros(num_tasks, dtype=torch.float64)
        self.ended: Ended = []

    def probabilities(self) -> Float[Tensor, " K"]:
        return self.shares

    def update(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        self.ended.append((task.tolist(), {name: values.tolist() for name, values in results.items()}))

    def take(self) -> Ended:
        """What has ended since the last call."""
        ended, self.ended = self.ended, []
        return ended


def broadcast_tree(policy: torch.nn.Module, shares: Float[Tensor, " K"]) -> Tree:
    """What the learner sends to its actors."""
    return {"policy": policy.state_dict(), "shares": shares}


def main(fd: int) -> None:
    """Serves the learner at the other end of a pipe until it closes, also when the learner is killed: no orphans."""
    torch.set_num_threads(1)
    connection = Connection(fd)
    with suppress(OSError):  # the learner is gone
        try:
            _act(connection)
        except Exception as error:
            connection.send(_one_line(error))


def _listen(connection: Connection, free: SimpleQueue[None]) -> None:
    """Passes on that the slot is free; ends this process, whatever it is doing, when the pipe closes."""
    try:
        while True:
            free.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _act(connection: Connection) -> None:
    """Collects rollouts without end. Each begins with the newest weights, and waits for the slot to be free."""
    recipe: Recipe = connection.recv()
    broadcast = WeightBroadcast(SharedTensors.receive(connection))
    free: SimpleQueue[None] = SimpleQueue()
    Thread(target=_listen, args=(connection, free), daemon=True).start()
    torch.manual_seed(recipe.seed)
    env = recipe.make_env()
    env.reset(recipe.seed)
    policy, sampler = build_policy(recipe.policy, env.spec), RemoteTaskSampler(env.spec.num_tasks)
    state = broadcast_tree(policy, sampler.shares)
    broadcast.read(state)
    episodes = EpisodeStatistics(env.spec, sampler)
    episodes.discount = recipe.discount
    collector = Collector(env, episodes, "cpu", lambda phase: nullcontext(), **recipe.options)
    collector.core_state = policy.initial_state(env.num_envs)
    experience = OnPolicy(collector, recipe.rollout_length)
    slot: SharedTensors | None = None
    while True:
        version = broadcast.read(state)
        experience.collect(policy)
        (rollout,) = experience.batches()
        first = slot is None
        slot = slot or SharedTensors.like(vars(rollout))
        copy_into(slot.tensors, vars(rollout))
        connection.send((version, sampler.take()))
        if first:
            slot.send(connection)
        free.get()


def _one_line(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
