"""Processes that act beside the learner."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch

from mtrl.checks import positive
from mtrl.data.experience import Episodes, concatenate
from mtrl.nn.networks import PolicyNetwork
from mtrl.parallel.actor import Ended, Recipe, broadcast_tree
from mtrl.system.memory import Broadcast, SharedTensors, build_tree, leaves
from mtrl.system.process import EnvironmentFailedError, ServingProcess, close_all, patiently
from mtrl.types import Actor, DataSource, Metrics, PhaseTimer, Rollout, State, UserError, VecEnv

MOST_DEATHS = 3
"""An actor that dies so often without a rollout in between is given up."""


class ActorError(UserError, EnvironmentFailedError):
    """An actor failed in a way that starting another would not mend."""


class AsyncOnPolicy(DataSource):
    """Rollouts of T steps, each used once, from processes of this machine that act while the learner learns.

    Espeholt et al., "IMPALA" (2018). As many rollouts as there are actors make a batch, side by side, as they come.

    Weights are published before the batch of each update is gathered. Each actor has one slot of shared memory, fills
    it while the learner learns, and takes the newest weights for the next: what is learned from is one update old
    where actors keep pace. (Another slot for each would only make it older.) `policy_lag` counts these updates.

    Of an actor nothing is saved: in a resumed run all begin new episodes, with other random numbers.

    Args:
        count: Number of actors.
        num_envs: Slots of all of them together.
        make_env: Makes the environment of one of them; a function of a module, or a partial of one.
        device: Of the learner.
        timer: Told the time that the learner waits.
        options: Of each actor's `Collector`.
        seed: Every actor's seed comes from it.
        report: Takes a line about each actor that died.
        rollout_length: T.
    """

    yields = Rollout

    def __init__(
        self,
        count: int,
        num_envs: int,
        make_env: Callable[[], VecEnv],
        episodes: Episodes,
        device: str,
        timer: PhaseTimer,
        options: dict[str, float],
        seed: int,
        report: Callable[[str], None],
        rollout_length: int,
    ) -> None:
        positive(count=count, rollout_length=rollout_length)
        self.count, self.make_env, self.episodes = count, make_env, episodes
        self.device, self.timer, self.options = device, timer, options
        self.seed, self.report = seed, report
        self.rollout_length, self.batch_shape = rollout_length, (rollout_length, num_envs)
        self.processes: list[ActorProcess] = []
        self._finalizer = weakref.finalize(self, _close_all, self.processes)
        self.restarts = 0
        self._started = 0  # in all sessions of the run
        self._deaths = [0] * count  # in a row
        self._rollouts: list[Rollout] = []
        self._lags: list[int] = []

    def connect(self, policy: PolicyNetwork) -> None:
        """Its weights are published."""
        self.policy = policy
        self.recipe = Recipe(self.make_env, policy.description, self.rollout_length, self.options, self.seed)
        self._broadcast = Broadcast.like(self._published())

    def _published(self) -> dict[str, Any]:
        return broadcast_tree(self.policy, self.episodes.sampler.probabilities())

    def collect(self, actor: Actor) -> int:
        """Publishes the weights and gathers the next batch. The actors act, not `actor`."""
        self._broadcast.publish(self._published())
        processes, count = self.processes, self.count
        if not processes:  # only now, as a state may have been loaded
            processes += [self._start() for _ in range(count)]
        gathered: list[Rollout] = []
        with self.timer("wait"):
            while len(gathered) < count:
                ready = self._ready()
                for i, process in enumerate(processes):
                    if process.connection in ready and len(gathered) < count:
                        gathered += self._receive(i)
        self._rollouts = [concatenate(gathered)]
        return self._rollouts[0].task.numel()

    def _ready(self) -> list[Any]:
        """Waits for rollouts. What has been gathered is lost if none comes when the run has been asked to stop."""
        processes = self.processes
        try:
            return patiently(lambda seconds: wait([process.connection for process in processes], seconds))
        except TimeoutError as error:
            late = ", ".join(f"{i} (process {process.pid})" for i, process in enumerate(processes))
            raise ActorError(
                f"No rollout came within {ServingProcess.patience:.0f} seconds of the stop from actors {late}."
            ) from error

    def _start(self) -> ActorProcess:
        seed = int(np.random.SeedSequence([self.recipe.seed, self._started]).generate_state(1)[0])
        self._started += 1
        return ActorProcess(replace(self.recipe, seed=seed), self._broadcast)

    def _receive(self, i: int) -> list[Rollout]:
        """The rollout that actor i has ready, or none: it has died, and another is started in its place."""
        try:
            rollout, version, ended = self.processes[i].receive(self.device)
        except (EOFError, OSError):
            self._replace(i)
            return []
        self._deaths[i] = 0
        self._lags.append(self._broadcast.version - version)
        for task, results in ended:
            values = {name: torch.tensor(column, dtype=torch.float64) for name, column in results.items()}
            self.episodes.add(torch.tensor(task), values)
        return [rollout]

    def _replace(self, i: int) -> None:
        dead = self.processes[i]
        what = f"Actor {i} (process {dead.pid}) {dead.how_it_ended()}"
        dead.close()
        self._deaths[i] += 1
        if self._deaths[i] == MOST_DEATHS:
            times = f"{MOST_DEATHS} times in a row without a rollout"
            raise ActorError(f"{what}, {times}.")
        self.processes[i] = self._start()
        self.restarts += 1
        self.report(f"WARNING: {what}. It was started again (restarts so far: {self.restarts}).")

    def batches(self) -> Iterator[Rollout]:
        while self._rollouts:
            yield self._rollouts.pop()

    def statistics(self) -> Metrics:
        """Those of the episodes, and mean and maximum of the lag of the rollouts since the last call."""
        lags, self._lags = torch.tensor(self._lags or [torch.nan]).double(), []
        own = {"policy_lag": lags.mean(), "policy_lag_max": lags.max(), "actor_restarts": torch.tensor(self.restarts)}
        return {**self.episodes.statistics(), **own}

    def close(self) -> None:
        self._finalizer()

    def state_dict(self) -> State:
        return {"episodes": self.episodes.state_dict(), "started": self._started, "restarts": self.restarts}

    def load_state_dict(self, state: State) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self._started, self.restarts = state["started"], state["restarts"]


class ActorProcess(ServingProcess):
    """An actor, and its slot."""

    def __init__(self, recipe: Recipe, broadcast: Broadcast) -> None:
        super().__init__("mtrl.parallel.actor")
        self._slot: SharedTensors | None = None
        with suppress(OSError):  # it has died already, as the first `receive` will find
            self.connection.send(recipe)
            broadcast.memory.send(self.connection)

    def receive(self, device: str) -> tuple[Rollout, int, Ended]:
        """A copy of the rollout in the slot, the version of its weights, and the episodes that ended in it.

        Raises:
            ActorError: The actor failed, and says why.
            EOFError, OSError: It has died.
        """
        message = self.connection.recv()
        if isinstance(message, str):
            raise ActorError(f"An actor failed: {message}. actors=0 shows a traceback.")
        version, ended = message
        if self._slot is None:
            self._slot = SharedTensors.receive(self.connection)
        tensors = {path: tensor.to(device, copy=True) for path, tensor in leaves(self._slot.tensors)}
        with suppress(OSError):  # as above
            self.connection.send(None)  # the slot is free
        return Rollout(**build_tree(tensors)), version, ended


def _close_all(processes: list[ActorProcess]) -> None:
    close_all(processes)
    processes.clear()
