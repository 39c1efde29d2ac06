"""An evaluation shared by processes, on this machine or on those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch

from mtrl.checks import positive
from mtrl.parallel.actor import listen, one_line
from mtrl.parallel.actors import MOST_DEATHS
from mtrl.parallel.ray_actors import connected_for, how_it_ended
from mtrl.parallel.transport import ActorError, Death, failed
from mtrl.registry import unknown
from mtrl.run.evaluation.episodes import Ended, Job
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.system.process import ServingProcess, close_all, patiently
from mtrl.types import Actor, EnvSpec, UserError

SLOTS_PER_TASK = 5
"""Most slots of each task in a process."""


@dataclass(frozen=True)
class Share:
    """What a process evaluates. Everything in it can be pickled.

    Attributes:
        evaluator: An evaluator without an environment yet.
        make_actor: Makes the actor; a module-level function, or a partial of one.
        jobs: The episodes, by their places in the whole evaluation.
    """

    evaluator: Evaluator
    make_actor: Callable[[EnvSpec], Actor]
    jobs: Mapping[int, Job]


def shared_episodes(
    evaluator: Evaluator,
    make_actor: Callable[[EnvSpec], Actor],
    actors: int,
    transport: str,
    report: Callable[[str], None],
) -> Iterator[Ended]:
    """Runs all episodes of an evaluation in several processes; `Evaluator.joined` makes the result of them.

    Each process has all tasks and every n-th goal, one thread, and an environment of its own. One that dies is
    replaced, and its unfinished episodes begin again.

    Args:
        make_actor: See `Share`.
        actors: Number of processes.
        transport: local or ray.
        report: Called with a line about each process that died.

    Raises:
        UserError: More processes than episodes per task, an unknown transport, or what the transport raises.
        ActorError: A process failed, or has died several times in a row without finishing an episode.
    """
    positive(actors=actors)
    if transport not in TRANSPORTS:
        raise UserError(unknown("transport", transport, TRANSPORTS))
    if actors > evaluator.episodes_per_task:
        raise UserError(
            f"actors={actors} share {evaluator.episodes_per_task} episodes per task: at most one for each of them."
        )
    K = evaluator.env.spec.num_tasks
    left: list[dict[int, Job]] = [{} for _ in range(actors)]
    for index, job in enumerate(evaluator.jobs):
        left[index // K % actors][index] = job
    slots_per_task = min(SLOTS_PER_TASK, -(-evaluator.episodes_per_task // actors))
    deaths = [0] * actors
    processes = TRANSPORTS[transport](actors)

    def start(i: int) -> None:
        processes.start(i, Share(evaluator.share(slots_per_task), make_actor, left[i]))

    try:
        for i in range(actors):
            start(i)
        while any(left):
            for i, message in processes.receive():
                if isinstance(message, Death):
                    deaths[i] += 1
                    if deaths[i] == MOST_DEATHS:
                        raise ActorError(f"{message.description}, {MOST_DEATHS} times in a row without an episode.")
                    if left[i]:
                        start(i)
                        report(f"WARNING: {message.description}. Its {len(left[i])} other episodes begin again.")
                elif isinstance(message, str):
                    raise failed(message)
                else:
                    deaths[i] = 0
                    for index in message:
                        del left[i][index]
                    yield message
    finally:
        processes.close()


Message = Ended | str
"""Episodes that have ended, or a line about an error."""


def messages(share: Share) -> Iterator[Message]:
    """Evaluates a share in this process."""
    torch.set_num_threads(1)
    indices, jobs = list(share.jobs), list(share.jobs.values())
    try:
        actor = share.make_actor(share.evaluator.env.spec)
        for ended in share.evaluator.episodes(actor, jobs):
            if ended:
                yield {indices[place]: episode for place, episode in ended.items()}
    except Exception as error:
        yield one_line(error)
    finally:
        share.evaluator.close()


class Processes(Protocol):
    """Processes that evaluate shares, numbered from 0, wherever they run."""

    def start(self, i: int, share: Share) -> None:
        """Starts a process, or replaces one that has died."""
        ...

    def receive(self) -> Iterator[tuple[int, Message | Death]]:
        """Waits for messages. A process that is done is not heard of again."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


class LocalShares:
    """Processes of this machine."""

    def __init__(self, actors: int) -> None:
        self.processes: dict[int, ServingProcess] = {}

    def start(self, i: int, share: Share) -> None:
        process = self.processes[i] = ServingProcess(__name__)
        with suppress(OSError):  # it has already died; `receive` reports it
            process.connection.send(share)

    def receive(self) -> Iterator[tuple[int, Message | Death]]:
        connections: list[Any] = [process.connection for process in self.processes.values()]
        ready = patiently(lambda seconds: wait(connections, seconds))
        for i, process in list(self.processes.items()):
            if process.connection not in ready:
                continue
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                del self.processes[i]
                yield i, Death(i, f"Actor {i} (process {process.pid}) {process.how_it_ended()}")
                process.close()
                continue
            yield i, message

    def close(self) -> None:
        close_all(self.processes.values())
        self.processes.clear()


class RayShares:
    """Processes on the machines of the Ray cluster that runs on this one, a core for each."""

    def __init__(self, actors: int) -> None:
        self._ray = connected_for(actors)
        # A dead one is replaced as local ones are, not by Ray, which would repeat all of its episodes.
        self._messages = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=0)(messages)
        self.running: dict[int, Any] = {}

    def start(self, i: int, share: Share) -> None:
        self.running[i] = self._messages.remote(share)

    def receive(self) -> Iterator[tuple[int, Message | Death]]:
        running = {generator: i for i, generator in self.running.items()}
        ready = patiently(lambda seconds: self._ray.wait(list(running), timeout=seconds)[0])
        for generator in ready:
            i = running[generator]
            try:
                message = self._ray.get(next(generator))
            except StopIteration:
                del self.running[i]
                continue
            except self._ray.exceptions.RayError as error:
                del self.running[i]
                yield i, Death(i, f"Actor {i} {how_it_ended(error)}")
                continue
            yield i, message

    def close(self) -> None:
        for generator in self.running.values():
            self._ray.cancel(generator, force=True)
        self.running.clear()
        self._ray.shutdown()


TRANSPORTS: Mapping[str, Callable[[int], Processes]] = {"local": LocalShares, "ray": RayShares}


def main(fd: int) -> None:
    """Evaluates the share that comes through a pipe, and ends when it closes, also if the other end is killed."""
    connection = Connection(fd)
    with suppress(OSError):  # the other end is gone
        share: Share = connection.recv()
        listener = Thread(target=listen, args=(connection, SimpleQueue()), daemon=True)
        listener.start()
        for message in messages(share):
            connection.send(message)
        listener.join()
