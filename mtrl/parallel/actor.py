"""Actor process: acts with the newest policy that it has received, and delivers one rollout after another."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
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

import mtrl.nn  # noqa: F401  # registers the components of policies
from mtrl.data.experience import Collector, EpisodeStatistics, OnPolicy
from mtrl.data.task_sampling import TaskSampler
from mtrl.nn.networks import build_policy
from mtrl.system.memory import SharedTensors, Tree, WeightBroadcast, copy_into
from mtrl.types import Metrics, Rollout, VecEnv

Ended = list[tuple[list[int], dict[str, list[float]]]]
"""Arguments of the calls of `EpisodeStatistics.add` during a rollout, as lists because a pipe would share tensors."""

OF_ENDS = ("ends", "end_obs")
"""Fields of a rollout whose size varies: they go through the pipe, as arrays, and all others through shared memory."""


@dataclass(frozen=True)
class Recipe:
    """What an actor is built from. Everything in it can be pickled.

    Attributes:
        make_env: A module-level function, or a partial of one.
        policy: Description for `build_policy`.
        options: Options of the `Collector`.
        discount: See `EpisodeStatistics`.
        seed: Seed of episodes and actions.
    """

    make_env: Callable[[], VecEnv]
    policy: dict[str, Any]
    rollout_length: int
    options: Mapping[str, Any]
    discount: float | None
    seed: int


class RemoteTaskSampler(TaskSampler):
    """Stand-in for the learner's sampler, whose shares come with the weights; episodes are sent with the rollout."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.shares = torch.zeros(num_tasks, dtype=torch.float64)
        self.ended: Ended = []

    def probabilities(self) -> Float[Tensor, " K"]:
        return self.shares

    def update(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        self.ended.append((task.tolist(), {name: values.tolist() for name, values in results.items()}))

    def take(self) -> Ended:
        """Returns the episodes that have ended since the last call."""
        ended, self.ended = self.ended, []
        return ended


def broadcast_tree(policy: torch.nn.Module, shares: Float[Tensor, " K"]) -> Tree:
    """The tensors that the learner sends to its actors."""
    return {"policy": policy.state_dict(), "shares": shares}


def main(fd: int) -> None:
    """Serves the learner at the other end of a pipe until it closes, which it also does if the learner is killed."""
    torch.set_num_threads(1)
    connection = Connection(fd)
    with suppress(OSError):  # the learner is gone
        try:
            _act(connection)
        except Exception as error:
            connection.send(one_line(error))


def listen(connection: Connection, free: SimpleQueue[None]) -> None:
    """Forwards messages that the slot is free, and exits the process, whatever it is doing, when the pipe closes."""
    try:
        while True:
            free.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _act(connection: Connection) -> None:
    """Collects rollouts forever, each with the newest weights. After each it waits until the slot is free."""
    recipe: Recipe = connection.recv()
    broadcast = WeightBroadcast(SharedTensors.receive(connection))
    free: SimpleQueue[None] = SimpleQueue()
    Thread(target=listen, args=(connection, free), daemon=True).start()
    acting = Acting(recipe, broadcast.read)
    slot: SharedTensors | None = None
    while True:
        rollout, version, ended = acting.rollout()
        tensors = dict(vars(rollout))
        ends = {name: tensors.pop(name).numpy() for name in OF_ENDS}
        first = slot is None
        slot = slot or SharedTensors.like(tensors)
        copy_into(slot.tensors, tensors)
        connection.send((version, ended, ends))
        if first:
            slot.send(connection)
        free.get()


class Acting:
    """The environment and the policy of an actor, in whatever process it runs.

    Args:
        read: Copies the newest weights into a `broadcast_tree`, and returns their version.
    """

    def __init__(self, recipe: Recipe, read: Callable[[Tree], int]) -> None:
        torch.manual_seed(recipe.seed)
        env = recipe.make_env()
        env.reset(recipe.seed)
        self.policy, self.sampler = build_policy(recipe.policy, env.spec), RemoteTaskSampler(env.spec.num_tasks)
        self._state, self.read = broadcast_tree(self.policy, self.sampler.shares), read
        read(self._state)
        episodes = EpisodeStatistics(env.spec, self.sampler)
        episodes.discount = recipe.discount
        collector = Collector(env, episodes, "cpu", lambda phase: nullcontext(), **recipe.options)
        collector.core_state = self.policy.initial_state(env.num_envs)
        self._experience = OnPolicy(collector, recipe.rollout_length)

    def rollout(self) -> tuple[Rollout, int, Ended]:
        """The next rollout, the version of the weights that acted, and the episodes that ended in it."""
        version = self.read(self._state)
        self._experience.collect(self.policy)
        (rollout,) = self._experience.batches()
        return rollout, version, self.sampler.take()


def one_line(error: Exception) -> str:
    """An error and where it was raised, for the learner."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
