"""Where a run's time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Wall time by phase: `with timer("env"): ...`. Time in nested phases counts for the innermost only.

    Time outside all phases is `other`, so that the shares sum to 1. Host time is measured: GPU kernels count for the
    phase in which the host waits for them. Not thread-safe.
    """

    def __init__(self) -> None:
        self._stack = ["other"]
        self.reset()

    def reset(self) -> None:
        """Sets all times to zero."""
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time until exit for this phase."""
        self._charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last reset."""
        self._charge()
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """Fraction of the time since the last reset, by phase, largest first."""
        seconds = self.seconds
        total = math.fsum(seconds.values()) or 1.0
        return {phase: seconds[phase] / total for phase in sorted(seconds, key=lambda phase: -seconds[phase])}

    def _charge(self) -> None:
        now = time.perf_counter()
        phase = self._stack[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now
