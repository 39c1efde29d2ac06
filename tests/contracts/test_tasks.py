"""Tasks are matched by name: every registered component says which of its numbers are a task's, and what it reads."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.agents.sac import Temperature
from mtrl.nn.networks import PolicyNetwork, build_policy, build_value
from mtrl.registry import build, names
from mtrl.run.checkpoint.transfer import load_parts, task_axes
from mtrl.types import EnvSpec, TaskContext
from tests.contracts.test_components import COLUMNS, HISTORY
from tests.helpers import SCALAR, describe, make_spec, names_of, small

OLD = ("reach-v3", "door-lock-v3", "door-unlock-v3")
PERMUTED = ("door-unlock-v3", "reach-v3", "door-lock-v3")
OTHERS = ("button-press-v3", "door-unlock-v3", "reach-v3", "push-v3")
"""Two of the old tasks, and two more. All are names that `language` knows."""

MIXING = COLUMNS | {"simba_v2"}
"""Trunks in which a task's features depend on the numbers of all tasks."""

OBS = math.prod(HISTORY) + 4
NETWORKS = list(itertools.product(names("trunk"), names("task_encoder"), names("head")))

Call = Callable[[Any, Tensor], Tensor]
"""What a module gives for the same samples, each in the task of an id."""


def spec_of(tasks: tuple[str, ...], discrete: bool = False) -> EnvSpec:
    spec = make_spec(len(tasks), OBS, 2, "discrete" if discrete else "continuous")
    return dataclasses.replace(spec, task_names=tasks, history=HISTORY)


def description(
    tasks: tuple[str, ...], trunk: str, encoder: str, head: str, action_head: str = "gaussian"
) -> dict[str, Any]:
    return describe(action_head, head, "running", small(trunk, tasks)) | {"task_encoder": {"name": encoder}}


def samples(task: Tensor, *shape: int) -> Tensor:
    return torch.randn(len(task), *shape, generator=torch.Generator().manual_seed(1))


def policy_of(tasks: tuple[str, ...], *parts: str) -> PolicyNetwork:
    return drawn(build_policy(description(tasks, *parts), spec_of(tasks, "categorical" in parts)))


def drawn(module: Any) -> Any:
    """The module with parameters away from their initial values, which tasks often share."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def obs_norm_of(tasks: tuple[str, ...], name: str) -> nn.Module:
    shape = (1, 1, 4) if "images" in name else (4,)
    norm = build("obs_norm", {"name": name}, obs_shape=shape, num_tasks=len(tasks))
    norm.update(torch.randn(50, *shape), torch.arange(50) % len(tasks))
    return norm


def value_norm_of(tasks: tuple[str, ...], name: str) -> nn.Module:
    norm = build("value_norm", {"name": name}, num_tasks=len(tasks))
    head = build("head", {"name": "per_task"}, features=4, outputs=1, num_tasks=len(tasks))
    task, size = torch.arange(50) % len(tasks), 10 * torch.rand(50) + 1
    norm.update(size, size, task, [head])
    norm.observe(task, {"return": size, "length": size.square(), "largest_return": size})
    return norm


def of_value_norm(norm: Any, task: Tensor) -> Tensor:
    return norm.denormalise(samples(task), task)


def of_obs_norm(norm: Any, task: Tensor) -> Tensor:
    return norm(samples(task, 1, 1, 4) if "Images" in type(norm).__name__ else samples(task, 4), task)


def of_policy(policy: Any, task: Tensor) -> Tensor:
    distribution = policy(samples(task, OBS), task)
    action = torch.zeros_like(task) if "Categorical" in type(distribution).__name__ else 0.3 * samples(task, 2)
    return distribution.log_prob(action)


def of_value(value: Any, task: Tensor) -> Tensor:
    return value(samples(task, OBS), task)


Make = Callable[[tuple[str, ...]], Any]
MODULES: dict[str, tuple[Make, Call]] = {
    **{"-".join(n): (lambda t, n=n: policy_of(t, *n), of_policy) for n in NETWORKS if n[2] == "per_task"},
    **{
        f"{n}-{h}": (lambda t, n=n, h=h: policy_of(t, "mlp", "one_hot", h, n), of_policy)
        for n, h in itertools.product(names("action_head"), names("head"))
    },
    **{
        f"value-{n}": (
            lambda t, n=n: drawn(build_value(description(t, n, "one_hot", "x"), spec_of(t), "per_task", SCALAR, OBS)),
            of_value,
        )
        for n in names("trunk")
    },
    **{f"obs_norm-{n}": (lambda t, n=n: obs_norm_of(t, n), of_obs_norm) for n in names("obs_norm")},
    **{f"value_norm-{n}": (lambda t, n=n: value_norm_of(t, n), of_value_norm) for n in names("value_norm")},
    "temperature": (lambda t: drawn(Temperature(len(t), 1.0)), lambda module, task: module(task)),
}


@pytest.fixture(params=MODULES)
def made(request: pytest.FixtureRequest) -> tuple[str, Make, Call]:
    torch.manual_seed(0)
    return request.param, *MODULES[request.param]


def test_task_axes_are_those_that_grow_with_the_tasks(made: tuple[str, Make, Call]) -> None:
    _, make, _ = made
    three, four = (make(tasks).state_dict() for tasks in (OLD, OTHERS))
    grown = {
        name: tuple(axis for axis, size in enumerate(tensor.shape) if size != four[name].shape[axis])
        for name, tensor in three.items()
    }
    assert {name: axes for name, axes in grown.items() if axes} == task_axes(make(OLD))


def by_name(call: Call, module: Any, tasks: tuple[str, ...], of: tuple[str, ...]) -> Tensor:
    """What the module gives in tasks of some names, five samples each."""
    with torch.no_grad():
        return call(module, torch.tensor([tasks.index(name) for name in of]).repeat(5))


def test_permuted_tasks_keep_their_numbers(made: tuple[str, Make, Call]) -> None:
    """The same function of observation and name."""
    _, make, call = made
    old, new = make(OLD), make(PERMUTED)
    load_parts(new, old.state_dict(), None, OLD, PERMUTED)
    torch.testing.assert_close(by_name(call, new, PERMUTED, OLD), by_name(call, old, OLD, OLD), rtol=1e-4, atol=1e-5)


def test_tasks_without_a_counterpart_begin_fresh(made: tuple[str, Make, Call]) -> None:
    name, make, call = made
    old, new = make(OLD), make(OTHERS)
    before = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    load_parts(new, old.state_dict(), None, OLD, OTHERS)
    for key, axes in task_axes(new).items():
        for axis in axes:
            ours, fresh = (t.unflatten(axis, (len(OTHERS), -1)) for t in (new.state_dict()[key], before[key]))
            for task in (0, 3):
                assert torch.equal(ours.select(axis, task), fresh.select(axis, task)), key
    if name.removeprefix("value-").split("-")[0] not in MIXING:
        shared = ("reach-v3", "door-unlock-v3")
        torch.testing.assert_close(
            by_name(call, new, OTHERS, shared), by_name(call, old, OLD, shared), rtol=1e-4, atol=1e-5
        )


# --- what depends on the id -----------------------------------------------------------------------------------------


def varies(of: Callable[[Tensor], Tensor], K: int = 3) -> bool:
    """Whether the same samples come out differently in different tasks."""
    with torch.no_grad():
        first, *others = (of(torch.full((20,), task)) for task in range(K))
    return not all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("parts", NETWORKS, ids="-".join)
def test_policies_know_whether_they_read_the_task(parts: tuple[str, str, str]) -> None:
    torch.manual_seed(0)
    policy = policy_of(OLD, *parts)
    assert varies(lambda task: policy(samples(task, OBS), task).mean) == bool(policy.task_readers)


@pytest.mark.parametrize("name", names("trunk"))
def test_what_trunks_read(name: str) -> None:
    torch.manual_seed(0)
    trunk = drawn(build("trunk", small(name), features=4, context=5, num_tasks=3, task_names=names_of(3)))
    same, zero = torch.ones(20, 5), torch.zeros(20, dtype=torch.int64)
    by_id = varies(lambda task: trunk(samples(task, 4), TaskContext(task, same)))
    by_embedding = varies(lambda task: trunk(samples(task, 4), TaskContext(zero, task[:, None] + same)))
    assert by_id == trunk.reads_task
    assert not by_embedding or trunk.reads_embedding


@pytest.mark.parametrize("name", names("task_encoder"))
def test_what_task_encoders_read(name: str) -> None:
    encoder = build("task_encoder", {"name": name}, num_tasks=3, task_names=OLD, history=HISTORY)
    assert varies(lambda task: encoder(task, samples(task, encoder.history_size)).embedding) == encoder.reads_task


@pytest.mark.parametrize("name", names("obs_norm"))
def test_what_obs_norms_read(name: str) -> None:
    norm: Any = obs_norm_of(OLD, name)
    assert varies(lambda task: of_obs_norm(norm, task)) == norm.reads_task


# --- what follows from tasks that begin fresh -----------------------------------------------------------------------


def test_mean_reward_is_unsettled_by_a_new_task() -> None:
    """Mean rewards 4 and 1 give scales 1 and 1/4; a task that joins with mean reward 2 gets 1/2, not 1."""
    old, new = (build("value_norm", {"name": "mean_reward"}, num_tasks=k) for k in (2, 3))
    length = torch.ones(2, dtype=torch.float64)
    old.observe(torch.tensor([0, 1]), {"return": torch.tensor([4.0, 1.0]), "length": length})
    load_parts(new, old.state_dict(), None, ("a", "b"), ("c", "b", "a"))
    assert new.sigma.tolist() == [1, 0.25, 1]
    new.observe(torch.tensor([0]), {"return": torch.tensor([2.0]), "length": length[:1]})
    assert new.sigma.tolist() == [0.5, 0.25, 1]


def test_no_task_in_common() -> None:
    """What is shared is taken, and every number per task stays."""
    old, new = (policy_of(tasks, "mlp", "one_hot", "per_task") for tasks in (OLD, ("push-v3", "pull-v3")))
    before = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    load_parts(new, old.state_dict(), None, OLD, ("push-v3", "pull-v3"))
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, before[key] if key in task_axes(new) else old.state_dict()[key]), key
