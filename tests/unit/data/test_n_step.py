"""Transitions of several steps by a loop over the steps of each slot."""

from __future__ import annotations

import pytest
import torch

from mtrl.agents.losses import td_target
from mtrl.data.n_step import NStep, Row

T, B, GAMMA = 60, 4, 0.9


def random_steps() -> list[Row]:
    """Steps whose observations say which step they belong to. Some end an episode, or only the value."""
    torch.manual_seed(0)
    draws = torch.rand(T, B)
    return [
        {
            "obs": torch.full((B, 2), float(t)),
            "next_obs": torch.full((B, 2), t + 1.0),
            "reward": torch.randn(B, dtype=torch.float64),
            "done": draws[t] < 0.2,
            "continuation": ((draws[t] > 0.1) & (draws[t] < 0.9)).double(),
        }
        for t in range(T)
    ]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_targets_by_a_loop(n: int) -> None:
    steps, join = random_steps(), NStep(n, GAMMA)
    joined = [found for step in steps if (found := join.add(step)) is not None]
    assert len(joined) == T - n + 1
    value = torch.randn(T + 1, B, dtype=torch.float64)  # of the observation after t steps
    lengths = set()
    for t, found in enumerate(joined):
        after = found["next_obs"][:, 0].long()
        target = td_target(found["reward"], found["continuation"], value[after, torch.arange(B)], GAMMA)
        for slot in range(B):
            expected, m = 0.0, 0
            while True:
                step = steps[t + m]
                expected += GAMMA**m * float(step["reward"][slot])
                m += 1
                if m == n or step["done"][slot] or step["continuation"][slot] == 0:
                    break
            expected += GAMMA**m * float(step["continuation"][slot] * value[t + m, slot])
            assert float(target[slot]) == pytest.approx(expected, abs=1e-12)
            assert after[slot] == t + m
            lengths.add(m)
        assert torch.equal(found["obs"], steps[t]["obs"])
    assert lengths == set(range(1, n + 1))


def test_the_state_of_longer_transitions_is_refused() -> None:
    join = NStep(4, GAMMA)
    for step in random_steps()[:3]:
        join.add(step)
    with pytest.raises(ValueError, match="more than 3 steps, not 3"):
        NStep(3, GAMMA).load_state_dict(join.state_dict())
