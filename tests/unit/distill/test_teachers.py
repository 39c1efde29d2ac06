"""Teachers: matched by task names, frozen, and refused in a line where they cannot teach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.policies import ENV_POLICY_MAP
from torch import Tensor, nn

import mtrl.envs
from mtrl.distill.losses import Kind
from mtrl.distill.teachers import FunctionTeacher, Teacher, TeacherActor
from mtrl.envs.metaworld.catalog import MT50
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.policy import save_policy
from mtrl.registry import build
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.types import Actor, EnvSpec, EvaluationProtocol, UserError
from tests.helpers import make_spec
from tests.unit.test_policy import description

SEED = 5


def teacher(name: str, spec: EnvSpec, **options: Any) -> Teacher:
    made: Teacher = build("teacher", {"name": name, **options}, spec=spec, device="cpu")
    return made


def saved(folder: Path, spec: EnvSpec, action_head: str = "gaussian", **parts: Any) -> PolicyNetwork:
    """A policy of random parameters and statistics, in a folder."""
    torch.manual_seed(len(folder.name))
    node = description(action_head) | parts
    network = build_policy(node, spec)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network.obs_norm.update(torch.randn(50, *spec.obs_shape) * 3 + 1, torch.zeros(50, dtype=torch.int64))
    save_policy(folder, network, node, spec)
    return network


def labels(found: Teacher, obs: Tensor, task: Tensor) -> Tensor:
    """Of observations with which episodes begin."""
    return found.label(obs, task, torch.zeros(len(task), found.state_size))[0]


def named(spec: EnvSpec, *names: str) -> EnvSpec:
    """Some tasks, in an order."""
    ids = [spec.task_names.index(name) for name in names]
    per_task = {field: tuple(getattr(spec, field)[i] for i in ids) for field in ("action_mask", "reports_success")}
    return dataclasses.replace(spec, task_names=names, **per_task)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spec() -> EnvSpec:
    return make_spec(action_mask=((True, True), (True, False), (True, True)))


# --- saved policies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action_head", "size"), [("gaussian", 4), ("tanh_gaussian", 4), ("categorical", 2)], ids=lambda value: str(value)
)
def test_labels_are_the_distributions_of_the_policy(tmp_path: Path, action_head: str, size: int) -> None:
    spec = make_spec(action_kind="discrete" if action_head == "categorical" else "continuous")
    network = saved(tmp_path / "policy", spec, action_head)
    found = teacher("policy", spec, path=str(tmp_path / "policy"))
    obs, task = torch.randn(6, 4), torch.arange(6) % 3
    label = labels(found, obs, task)
    assert (found.kind, label.shape, label.requires_grad) == (action_head, (6, size), False)
    distribution: Any = network(obs, task)
    if action_head == "categorical":
        assert torch.equal(label, distribution.log_probs)
    else:
        assert torch.equal(label, torch.cat([distribution.mean, distribution.log_std], -1))
    expected, *_ = network.act(obs, task, network.initial_state(6), explore=False)
    actor = TeacherActor(found, spec)
    assert isinstance(actor, Actor)
    state = actor.initial_state(6)
    assert torch.equal(actor.act(obs, task, state, explore=False)[0], expected)
    torch.manual_seed(0)
    drawn, log_prob, _ = actor.act(obs, task, state, explore=True)
    torch.manual_seed(0)
    torch.testing.assert_close((drawn, log_prob), distribution.sample())


def test_tasks_are_matched_by_name(tmp_path: Path, spec: EnvSpec) -> None:
    network = saved(tmp_path / "policy", spec)
    found = teacher("policy", named(spec, "task-2", "task-1"), path=str(tmp_path / "policy"))
    obs = torch.randn(4, 4)
    distribution: Any = network(obs, torch.tensor([2, 1, 1, 2]))
    assert torch.equal(labels(found, obs, torch.tensor([0, 1, 1, 0]))[:, :2], distribution.mean)


def test_labels_are_what_they_were_whatever_is_observed(tmp_path: Path, spec: EnvSpec) -> None:
    """Its statistics of observations stay its own."""
    saved(tmp_path / "policy", spec)
    found = teacher("policy", spec, path=str(tmp_path / "policy"))
    obs, task = torch.randn(4, 4), torch.arange(4) % 3
    before = labels(found, obs, task)
    for _ in range(3):
        labels(found, obs * 100, task)
    assert torch.equal(labels(found, obs, task), before)


def test_loading_it_changes_no_random_numbers(tmp_path: Path, spec: EnvSpec) -> None:
    """A run with a teacher begins with the parameters of one without."""
    saved(tmp_path / "policy", spec)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    teacher("policy", spec, path=str(tmp_path / "policy"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_names": ("task-0", "task-1", "other")},
            "was not trained in other. Its tasks: task-0, task-1, t",
        ),
        ({"obs_shape": (5,)}, r"cannot teach here\. .*obs_shape is \(4,\) here, \(5,\) there"),
        ({"action_kind": "discrete"}, "cannot teach here.*action_kind is continuous here, discrete there"),
        ({"action_dim": 3, "action_mask": ((True,) * 3,) * 3}, "cannot teach here.*action_dim is 2 here, 3 there"),
        ({"action_mask": ((True, True),) * 3}, "cannot teach here.*task-1 has other actions there"),
        ({"history": (2, 7)}, "cannot teach here.*history"),
    ],
)
def test_a_policy_of_another_environment_is_refused(
    tmp_path: Path, spec: EnvSpec, changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "policy", spec)
    with pytest.raises(UserError, match=message) as error:
        teacher("policy", dataclasses.replace(spec, **changes), path=str(tmp_path / "policy"))
    assert "\n" not in str(error.value)


def test_a_policy_of_one_task_teaches_no_other(tmp_path: Path, spec: EnvSpec) -> None:
    """Though it would act there: it has nothing to tell tasks apart by."""
    saved(tmp_path / "policy", named(spec, "task-0"))
    with pytest.raises(UserError, match="was not trained in task-2"):
        teacher("policy", named(spec, "task-2"), path=str(tmp_path / "policy"))


def test_a_damaged_policy_is_refused_in_a_line(tmp_path: Path, spec: EnvSpec) -> None:
    saved(tmp_path / "policy", spec)
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="is damaged") as error:
        teacher("policy", spec, path=str(tmp_path / "policy"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="No policy in"):
        teacher("policy", spec, path=str(tmp_path / "nowhere"))


# --- specialists ----------------------------------------------------------------------------------------------------


def test_every_specialist_labels_its_task(tmp_path: Path, spec: EnvSpec) -> None:
    """One of a single task, and one for two tasks that has a third."""
    one, other = saved(tmp_path / "one", named(spec, "task-1")), saved(tmp_path / "other", spec)
    paths = {"task-2": "other", "task-0": "other", "task-1": "one"}
    found = teacher("specialists", spec, paths={name: str(tmp_path / path) for name, path in paths.items()})
    obs, task = torch.randn(7, 4), torch.tensor([1, 0, 2, 2, 1, 0, 1])
    theirs: tuple[Any, Any] = one(obs, torch.zeros_like(task)), other(obs, task)
    each = [torch.cat([distribution.mean, distribution.log_std], -1) for distribution in theirs]
    torch.testing.assert_close(labels(found, obs, task), torch.where((task == 1)[:, None], *each))
    assert labels(found, obs[:0], task[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["task-0", "task-1"], "There is none for: task-2"),
        (["task-0", "task-1", "task-2", "task-3"], r"Unknown task .* 'task-3'\. Did you mean .* Valid: task-0, task-1"),
        ({"task-0": "gaussian", "task-1": "gaussian", "task-2": "tanh"}, "must have one kind of distribution"),
        ({"task-0": "gaussian", "task-1": "first", "task-2": "gaussian"}, "first was not trained in task-1"),
    ],
)
def test_specialists_that_do_not_fit(tmp_path: Path, spec: EnvSpec, paths: Any, message: str) -> None:
    saved(tmp_path / "gaussian", spec)
    saved(tmp_path / "tanh", spec, "tanh_gaussian")
    saved(tmp_path / "first", named(spec, "task-0"))
    given = paths if isinstance(paths, dict) else dict.fromkeys(paths, "gaussian")
    with pytest.raises(UserError, match=message) as error:
        teacher("specialists", spec, paths={name: str(tmp_path / path) for name, path in given.items()})
    assert "\n" not in str(error.value)


# --- functions ------------------------------------------------------------------------------------------------------


def test_functions_and_modules_teach(spec: EnvSpec) -> None:
    def push(obs: Tensor, task: Tensor) -> Tensor:
        return 3 * obs[:, :2]

    found = FunctionTeacher(push, "action")
    obs, task = torch.ones(3, 4), torch.tensor([0, 1, 2])
    assert found.description == "push"
    action, log_prob, _ = TeacherActor(found, spec).act(obs, task, torch.zeros(3, 0), explore=True)
    assert action.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert log_prob.tolist() == [0, 0, 0]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.noise = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, obs: Tensor, task: Tensor) -> Tensor:
            return self.noise(self.layer(obs))

    label = labels(FunctionTeacher(module := Module(), "gaussian"), obs, task)
    assert torch.equal(label, module.layer(obs).detach())
    assert not label.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    kind: Kind = "action"
    wrong = FunctionTeacher(lambda obs, task: torch.zeros(shape), kind)
    with pytest.raises(UserError, match=r"must give labels \(3, L\)"):
        labels(wrong, torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))


# --- scripted -------------------------------------------------------------------------------------------------------

META = dataclasses.replace(make_spec(50, 39, 4), task_names=MT50)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def assert_official(obs: Tensor, task: Tensor) -> None:
    found = labels(teacher("scripted", META), obs, task)
    rows = obs.double().numpy()
    expected = [ENV_POLICY_MAP[MT50[k]]().get_action(row) for k, row in zip(task.tolist(), rows, strict=True)]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), np.clip(np.array(expected), -1, 1))


@pytest.mark.filterwarnings("ignore:Constant")  # actions beyond [-1, 1]
def test_labels_are_the_official_actions_in_every_task() -> None:
    """Of random states around the table, in an order of no tasks: each policy goes through several of its phases."""
    g = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-0.3, 0.4, 0.0]), torch.tensor([0.3, 0.9, 0.4])
    obs = torch.rand(1000, 39, generator=g)
    for first in (0, 4, 11, 18, 22, 29, 36):
        obs[:, first : first + 3] = low + (high - low) * obs[:, first : first + 3]
    obs[::2, 4:7] = obs[::2, :3] + 0.02 * torch.rand(500, 3, generator=g)  # the hand at the object
    assert_official(obs, torch.randperm(1000, generator=g) % 50)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_labels_are_the_official_actions_where_episodes_begin() -> None:
    env = mtrl.envs.make("mt50", seed=1, slots_per_task=2)
    assert_official(env.reset(), env.task)


def test_scripted_teachers_solve_tasks(cache: None) -> None:
    env_settings = {"name": "metaworld", "tasks": ["drawer-open-v3", "reach-v3"], "physics": "rollout"}

    class Protocol(EvaluationProtocol):
        def record_settings(self) -> dict[str, Any]:
            return self.settings

    evaluator = Evaluator(Protocol(env_settings, SEED), mtrl.envs.make, SEED, 5, 1000)
    actor = TeacherActor(teacher("scripted", evaluator.env.spec), evaluator.env.spec)
    result = evaluator(actor)
    evaluator.close()
    for episodes in result.by_task.values():
        assert sum(bool(episode.success) for episode in episodes) == 5


def test_hidden_goals_are_refused() -> None:
    obs = torch.rand(3, 39)
    obs[1, 36:] = 0
    with pytest.raises(UserError, match="must see the goal, which hammer-v3 hides: use mt1, mt10 or mt50"):
        labels(teacher("scripted", META), obs, torch.tensor([0, MT50.index("hammer-v3"), 1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_names": (*MT50[:-1], "reech-v3")},
            "Unknown task of the teacher 'scripted': 'reech-v3'. Did",
        ),
        ({"obs_shape": (78,)}, r"reads Meta-World's 39 numbers, not observations \(78,\)"),
        ({"obs_shape": (39,), "history": (2, 7)}, "with a history of 2 steps"),
    ],
)
def test_other_environments_have_no_scripted_policies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        teacher("scripted", dataclasses.replace(META, **changes))
    assert "\n" not in str(error.value)


def test_unknown_teachers_are_refused(spec: EnvSpec) -> None:
    with pytest.raises(UserError, match=r"Unknown teacher 'script'\. Did you mean 'scripted'\? Valid: policy, "):
        teacher("script", spec)
