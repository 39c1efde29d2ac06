"""How weights reach actors and rollouts come back: a protocol, and its implementation with local processes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, runtime_checkable

import torch

from mtrl.parallel.actor import Ended, Recipe
from mtrl.registry import register
from mtrl.system.memory import SharedTensors, Tree, WeightBroadcast, build_tree, leaves
from mtrl.system.process import EnvironmentFailedError, ServingProcess, close_all, patiently
from mtrl.types import Rollout, UserError


class ActorError(UserError, EnvironmentFailedError):
    """An actor failed in a way that restarting it would not fix."""


@dataclass(frozen=True)
class Delivery:
    """A rollout from an actor."""

    actor: int
    rollout: Rollout
    version: int
    """Version of the weights that acted; the first published version is 1."""
    ended: Ended
    """Episodes that ended in the rollout."""


@dataclass(frozen=True)
class Death:
    """An actor has ended unexpectedly."""

    actor: int
    description: str
    """For example "Actor 1 (process 77) ended with exit code 3"."""


def failed(message: str) -> ActorError:
    """The error for an actor that reports why it failed."""
    return ActorError(f"An actor failed: {message}. actors=0 shows a traceback.")


@runtime_checkable
class Transport(Protocol):
    """Connection to actors, numbered from 0, wherever they run."""

    @property
    def version(self) -> int:
        """Version of the newest weights."""
        ...

    def publish(self, weights: Tree) -> None:
        """Publishes weights. Every rollout begins with the newest ones."""
        ...

    def start(self, actor: int, recipe: Recipe) -> None:
        """Starts an actor, or replaces one that has died. Must be called after the first `publish`."""
        ...

    def receive(self, most: int) -> Iterable[Delivery | Death]:
        """Waits for messages and returns at most `most` of them; the rest stays for the next call.

        Raises:
            ActorError: An actor failed and reports why, or there was no message in time after a request to stop.
        """
        ...

    def close(self) -> None:
        """Ends all actors."""
        ...


@register("transport", "local")
class LocalProcesses:
    """Actors in processes of this machine, which share memory with the learner's process.

    Each has room for one rollout, fills it while the learner learns, and waits until it has been received.

    Use it on one machine.

    Args:
        device: Device of the received rollouts.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.processes: dict[int, ActorProcess] = {}
        self._broadcast: WeightBroadcast | None = None
        self._finalizer = weakref.finalize(self, _close_all, self.processes)

    @property
    def version(self) -> int:
        return 0 if self._broadcast is None else self._broadcast.version

    def publish(self, weights: Tree) -> None:
        if self._broadcast is None:
            self._broadcast = WeightBroadcast.like(weights)
        self._broadcast.publish(weights)

    def start(self, actor: int, recipe: Recipe) -> None:
        assert self._broadcast is not None, "publish comes first"
        self.processes[actor] = ActorProcess(recipe, self._broadcast)

    def receive(self, most: int) -> list[Delivery | Death]:
        connections = self._ready()
        ready = [i for i in sorted(self.processes) if self.processes[i].connection in connections]
        return [self._take(i) for i in ready[:most]]

    def _ready(self) -> list[Any]:
        connections: list[Any] = [process.connection for process in self.processes.values()]
        try:
            return patiently(lambda seconds: wait(connections, seconds))
        except TimeoutError as error:
            late = ", ".join(f"{i} (process {process.pid})" for i, process in sorted(self.processes.items()))
            raise ActorError(
                f"No rollout came within {ServingProcess.patience:.0f} seconds of the stop from actors {late}."
            ) from error

    def _take(self, i: int) -> Delivery | Death:
        process = self.processes[i]
        try:
            return Delivery(i, *process.receive(self.device))
        except (EOFError, OSError):
            death = Death(i, f"Actor {i} (process {process.pid}) {process.how_it_ended()}")
            process.close()
            return death

    def close(self) -> None:
        self._finalizer()


class ActorProcess(ServingProcess):
    """The process of an actor and its memory for a rollout."""

    def __init__(self, recipe: Recipe, broadcast: WeightBroadcast) -> None:
        super().__init__("mtrl.parallel.actor")
        self._slot: SharedTensors | None = None
        with suppress(OSError):  # it has already died; the first `receive` reports it
            self.connection.send(recipe)
            broadcast.memory.send(self.connection)

    def receive(self, device: str) -> tuple[Rollout, int, Ended]:
        """A copy of the rollout in the slot, the version of its weights, and the episodes that ended in it.

        Raises:
            ActorError: The actor failed, and reports why.
            EOFError, OSError: The actor has died.
        """
        message = self.connection.recv()
        if isinstance(message, str):
            raise failed(message)
        version, ended, ends = message
        if self._slot is None:
            self._slot = SharedTensors.receive(self.connection)
        tensors = {path: tensor.to(device, copy=True) for path, tensor in leaves(self._slot.tensors)}
        with suppress(OSError):  # as above
            self.connection.send(None)  # the slot is free
        of_ends = {name: torch.tensor(array, device=device) for name, array in ends.items()}
        return Rollout(**build_tree(tensors), **of_ends), version, ended


def _close_all(processes: dict[int, ActorProcess]) -> None:
    close_all(processes.values())
    processes.clear()
