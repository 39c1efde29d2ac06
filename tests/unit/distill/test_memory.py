"""Teachers with memory: it follows each episode of the student from its beginning, also over a resume."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtrl.distill.losses import teacher_action
from mtrl.distill.teachers import Teacher, TeacherActor
from mtrl.policy import load_policy
from tests.unit.distill.test_source import EPISODE, SLOT, STEP, K, Student, make, make_env, ring
from tests.unit.distill.test_teachers import labels, named, saved, teacher

SPEC = make_env().spec
FULL = torch.tensor(SPEC.action_mask)


def specialists(folder: Path) -> tuple[Teacher, list[Path]]:
    """Where the policy of each task is, too. The third has no memory."""
    paths = [folder / name for name in ("one", "second", "other")]
    saved(paths[0], SPEC, core={"name": "lstm", "width": 3})
    saved(paths[1], named(SPEC, "count-1"), core={"name": "lstm", "width": 5})
    saved(paths[2], SPEC)
    by_name = {task: str(path) for task, path in zip(SPEC.task_names, paths, strict=True)}
    return teacher("specialists", SPEC, paths=by_name), paths


def test_labels_are_those_of_the_policy_in_one_episode_at_a_time(tmp_path: Path) -> None:
    """In episodes of 4, 5 and 6 steps, whether the teacher acts or the student."""
    found, paths = specialists(tmp_path)
    source, _ = make(0.5, teacher=found, capacity=100)
    for _ in range(11):
        source.collect(Student(), 0.0)
    without_memory = []
    for task, path in enumerate(paths):
        obs, label = ring(source, "obs", task), ring(source, "label", task)
        action = teacher_action(found.kind, label, FULL[task].expand(len(obs), -1))
        alone = labels(found, obs, torch.full((len(obs),), task))
        without_memory.append(torch.isclose(alone, label, atol=1e-3).all())
        policy = load_policy(path)
        for slot, episode in obs[:, [SLOT, EPISODE]].unique(dim=0).tolist():
            (rows,) = ((obs[:, SLOT] == slot) & (obs[:, EPISODE] == episode)).nonzero(as_tuple=True)
            assert obs[rows, STEP].tolist() == list(range(len(rows)))
            policy.reset()
            acted = [policy.act(obs[row], SPEC.task_names[task]) for row in rows]
            torch.testing.assert_close(action[rows], torch.stack([torch.as_tensor(a) for a in acted]))
    assert torch.stack(without_memory).tolist() == [False, False, True]


def test_memory_goes_on_from_its_state(tmp_path: Path) -> None:
    """In the middle of episodes."""
    found, _ = specialists(tmp_path)
    one, _ = make(0.5, teacher=found)
    for _ in range(8):
        one.collect(Student(), 0.0)
    state = copy.deepcopy(one.state_dict())
    assert state["teacher_state"].any()
    other, _ = make(0.5, seed=1, teacher=found)
    other.load_state_dict(state)
    for source in (one, other):
        torch.manual_seed(3)
        for _ in range(7):
            source.collect(Student(), 0.0)
    for task in range(K):
        assert torch.equal(ring(one, "label", task), ring(other, "label", task))
    state["teacher_state"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="teacher_state: expected finite numbers"):
        other.load_state_dict(state)


def test_it_is_evaluated_with_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "one"
    saved(path, SPEC, core={"name": "lstm", "width": 3})
    actor, policy = TeacherActor(teacher("policy", SPEC, path=str(path)), SPEC), load_policy(path)
    obs, task = torch.randn(3, 2, 5), torch.tensor([0, 2])
    state = actor.initial_state(2)
    for now in obs:
        action, _, state = actor.act(now, task, state, explore=False)
        expected = policy.act(now, task)
        assert isinstance(expected, Tensor)
        assert torch.equal(action, expected)
