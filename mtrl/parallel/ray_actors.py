"""Actors on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtrl.parallel.actor import Acting, Ended, Recipe, one_line
from mtrl.parallel.transport import ActorError, Death, Delivery, failed
from mtrl.registry import missing_extra, register
from mtrl.system.memory import Tree, build_tree, copy_into, leaves
from mtrl.system.process import ServingProcess, patiently
from mtrl.types import Rollout, UserError

Arrays = Mapping[tuple[str, ...], np.ndarray]
"""A tree of tensors by their paths: what Ray keeps in shared memory and reads without copying."""


class RayActor:
    """An actor in a process of Ray's."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe
        self._acting: Acting | None = None

    def rollout(self, weights: Arrays, version: int) -> tuple[Arrays, int, Ended] | str:
        """A rollout with these weights; a line about the error if there was one."""

        def read(target: Tree) -> int:
            copy_into(target, build_tree({path: torch.tensor(array) for path, array in weights.items()}))
            return version

        try:
            if self._acting is None:
                self._acting = Acting(self.recipe, read)
            self._acting.read = read
            rollout, version, ended = self._acting.rollout()
            return arrays(vars(rollout)), version, ended
        except Exception as error:
            return one_line(error)


def connected(setting: str) -> Any:
    """Ray, connected to the cluster that runs on this machine, for the setting that needs it.

    Raises:
        UserError: Ray is not installed, or no cluster runs.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra(setting, "Ray", "ray") from error
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"{setting} needs a cluster on this machine: start one with ray start --head.") from error
    finally:
        signal.signal(signal.SIGTERM, ours)  # Ray has set its own
    return ray


def connected_for(actors: int) -> Any:
    """The same, for actors. Raises `UserError` also if the cluster has fewer cores than there are actors."""
    ray = connected("transport=ray")
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < actors:
        ray.shutdown()
        raise UserError(f"actors={actors} need a core each, but the Ray cluster has {cores}.")
    return ray


@dataclass
class Running:
    """An actor and the rollout that it is making."""

    handle: Any
    rollout: Any


@register("transport", "ray")
class RayActors:
    """Actors in the Ray cluster that runs on this machine, one core for each, spread over its machines.

    Weights are put into Ray's object store once for all actors, and rollouts come back through it. Each actor is asked
    for the next rollout when its last one has been received, so that a slow learner has at most one of each waiting.

    They end with the process of the learner, however that ends. The cluster stays.

    Use it where actors need the cores of several machines.

    Args:
        device: Device of the received rollouts.
        actors: Number of actors.

    Raises:
        UserError: See `connected_for`.
    """

    def __init__(self, device: str, actors: int) -> None:
        self._ray, self.device, self.version = connected_for(actors), device, 0
        self._class = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(RayActor)
        self._weights: Any = None
        self.running: dict[int, Running] = {}

    def publish(self, weights: Tree) -> None:
        self._weights = self._ray.put(arrays(weights))
        self.version += 1

    def start(self, actor: int, recipe: Recipe) -> None:
        handle = self._class.remote(recipe)
        self.running[actor] = Running(handle, self._request(handle))

    def _request(self, handle: Any) -> Any:
        assert self._weights is not None, "publish comes first"
        return handle.rollout.remote(self._weights, self.version)

    def receive(self, most: int) -> Iterator[Delivery | Death]:
        actors = {running.rollout: actor for actor, running in sorted(self.running.items())}

        def look(seconds: float) -> list[Any]:
            ready: list[Any] = self._ray.wait(list(actors), num_returns=1, timeout=seconds)[0]
            return ready

        try:
            patiently(look)
        except TimeoutError as error:
            raise ActorError(
                f"No rollout came within {ServingProcess.patience:.0f} seconds of the stop from any of the actors."
            ) from error
        ready, _ = self._ray.wait(list(actors), num_returns=len(actors), timeout=0)
        for rollout in ready[:most]:
            yield from self._take(actors[rollout])

    def _take(self, actor: int) -> Iterator[Delivery | Death]:
        running = self.running[actor]
        try:
            message = self._ray.get(running.rollout)
        except self._ray.exceptions.ActorUnavailableError:
            # Perhaps its machine is lost. Before Ray knows, it would start a new actor there again: ask the same one.
            running.rollout = self._request(running.handle)
            return
        except self._ray.exceptions.RayError as error:
            yield Death(actor, f"Actor {actor} {how_it_ended(error)}")
            return
        if isinstance(message, str):
            raise failed(message)
        rollout, version, ended = message
        tensors = {path: torch.tensor(array, device=self.device) for path, array in rollout.items()}
        running.rollout = self._request(running.handle)
        yield Delivery(actor, Rollout(**build_tree(tensors)), version, ended)

    def close(self) -> None:
        for running in self.running.values():
            self._ray.kill(running.handle)
        self.running.clear()
        self._ray.shutdown()


def arrays(tree: Tree) -> Arrays:
    """The tensors of a tree as arrays."""
    return {path: tensor.detach().cpu().numpy() for path, tensor in leaves(tree)}


def how_it_ended(error: Exception) -> str:
    """What Ray says of the end of an actor, in a line."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    known = [line.replace(":", "") for line in others if line.startswith(("pid:", "ip:"))]
    return f"({', '.join(known)}) ended: {first.rstrip('.')}" if known else f"ended: {first.rstrip('.')}"
