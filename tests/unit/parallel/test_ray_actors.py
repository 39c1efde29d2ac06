"""What becomes of Ray's errors, with a stand-in for Ray. `tests/system/test_ray.py` has a real cluster."""

from __future__ import annotations

from typing import Any

import pytest

from mtrl.parallel.ray_actors import RayActors, Running
from mtrl.parallel.transport import Death


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    pass


class Cluster:
    """Every rollout fails with the same error."""

    class exceptions:  # noqa: N801  # as in Ray
        RayError = RayError
        ActorUnavailableError = ActorUnavailableError

    def __init__(self, error: RayError) -> None:
        self.error = error

    def wait(self, rollouts: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return rollouts, []

    def get(self, rollout: str) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "messages", "asked_again"),
    [
        (RayError("It died.\nits pid: 7"), [Death(0, "Actor 0 ended: It died")], False),
        (ActorUnavailableError("Perhaps it will be back."), [], True),
    ],
)
def test_errors(error: RayError, messages: list[Death], asked_again: bool) -> None:
    """An actor whose machine may be lost is asked again: until Ray knows, a new one could be placed there."""
    actors: Any = object.__new__(RayActors)
    actors._ray, actors.running = Cluster(error), {0: Running("handle", "rollout")}
    actors._request = lambda handle: f"another of {handle}"
    assert list(actors.receive(1)) == messages
    assert actors.running[0].rollout == ("another of handle" if asked_again else "rollout")
