"""When things happen: small objects that the loop calls once per iteration, with state so that it resumes exactly."""

from __future__ import annotations

from mtrl.checks import not_negative
from mtrl.types import State


class Every:
    """True once whenever the step has crossed a multiple of `every` since the last call; never if `every` is 0.

    Steps advance by more than one (all slots step together), so multiples are crossed rather than hit.

    Raises:
        ValueError: `every` is negative.
    """

    def __init__(self, every: int) -> None:
        not_negative(every=every)
        self.every = every
        self._last = 0

    def __call__(self, step: int) -> bool:
        """Whether it is time, at `step` (environment steps so far)."""
        due = self.every > 0 and step // self.every > self._last // self.every
        self._last = max(self._last, step)
        return due

    def state_dict(self) -> State:
        # The step rather than a count of multiples, because the interval may change when a run is resumed.
        return {"last": self._last}

    def load_state_dict(self, state: State) -> None:
        self._last = state["last"]

    def __repr__(self) -> str:
        return f"Every({self.every})"


class Until:
    """True while the step is below `total`. Has no state, so that a resumed run can have a new total."""

    def __init__(self, total: int) -> None:
        not_negative(total=total)
        self.total = total

    def __call__(self, step: int) -> bool:
        """Whether to go on, at `step`."""
        return step < self.total

    def __repr__(self) -> str:
        return f"Until({self.total})"
