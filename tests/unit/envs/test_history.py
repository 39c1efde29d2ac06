"""Observations that begin with the last transitions of the episode."""

from __future__ import annotations

import pytest
import torch

import mtrl.envs
from mtrl.types import UserError, VecEnv


def counting(**options: object) -> VecEnv:
    return mtrl.envs.make("counting", num_envs=3, episode_length=3, stagger=1, **options)


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_it_is_what_happened(kind: str) -> None:
    """Beside the same environment without, whose steps are written down in lists."""
    H, B, A = 2, 3, 2
    env, plain = counting(history=H, action_kind=kind), counting(action_kind=kind)
    width = 5 + A + 1
    assert env.spec.history == (H, width)
    assert env.spec.obs_shape == (H * width + 5,)
    generator = torch.Generator().manual_seed(0)
    past: list[list[list[float]]] = [[] for _ in range(B)]

    def expected(obs: torch.Tensor) -> list[list[float]]:
        rows = []
        for episode, last in zip(past, obs.tolist(), strict=True):
            seen = [[0.0] * width] * (H - len(episode)) + episode[-H:]
            rows.append([number for row in seen for number in row] + last)
        return rows

    obs, last = env.reset(seed=1), plain.reset(seed=1)
    assert obs.tolist() == expected(last)
    for _ in range(11):
        if kind == "discrete":
            action = torch.randint(A, (B,), generator=generator)
            taken = [[float(a == i) for i in range(A)] for a in action.tolist()]
        else:
            action = torch.randn(B, A, generator=generator)
            taken = action.clamp(-1, 1).tolist()
        found, step = env.step(action), plain.step(action)
        for b in range(B):
            past[b].append([*last[b].tolist(), *taken[b], step.reward[b].item()])
        assert found.final_obs.tolist() == expected(step.final_obs)
        for b in step.done.nonzero().flatten().tolist():
            past[b] = []
        assert found.obs.tolist() == expected(step.obs)
        for field in ("reward", "terminated", "truncated", "success", "task"):
            assert torch.equal(getattr(found, field), getattr(step, field))
        assert torch.equal(env.task, plain.task)
        assert torch.equal(env.goal, plain.goal)
        last = step.obs


def test_it_goes_on_from_a_saved_state() -> None:
    one, other = counting(history=3), counting(history=3)
    one.reset(seed=2)
    action = torch.full((3, 2), 0.5)
    one.step(action)
    other.load_state_dict(one.state_dict())
    for _ in range(6):
        assert torch.equal(one.step(action).obs, other.step(action).obs)


def test_tasks_and_goals_can_be_assigned() -> None:
    env = counting(history=1)
    env.assign(torch.tensor([2, 1, 0]), torch.tensor([7, 8, 9]))
    obs = env.reset()
    assert env.task.tolist() == [2, 1, 0]
    assert obs[:, -5:-3].tolist() == [[2, 7], [1, 8], [0, 9]]


def test_what_the_environment_has_besides_is_there() -> None:
    with pytest.raises(AttributeError, match="render"):
        _ = counting(history=1).render  # type: ignore[attr-defined]


@pytest.mark.parametrize("history", [-1, True])
def test_a_number_of_transitions(history: object) -> None:
    with pytest.raises(UserError, match="history must be a number of transitions, 0 or more"):
        counting(history=history)
