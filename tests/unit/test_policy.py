"""Saved policies, and weights taken from other runs."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mtrl
from mtrl.envs import make
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.policy import Policy, check_device, find_policy, load_policy, save_policy
from mtrl.train import initialise
from mtrl.types import EnvSpec, Learner, UserError

TRUNK = {"name": "mlp", "width": 8, "depth": 1, "activation": "tanh", "init": "orthogonal"}
HEADS = {
    "gaussian": {"name": "gaussian", "initial_std": 1.0},
    "tanh_gaussian": {"name": "tanh_gaussian"},
    "categorical": {"name": "categorical"},
}


COLUMNS = {"none": {"name": "none"}, "shared": {"name": "shared", "alpha": 0.5, "width": 4, "depth": 1}}


def description(
    action_head: str, head: str = "per_task", encoder: str = "one_hot", column: str = "none"
) -> dict[str, Any]:
    return {
        "obs_norm": {"name": "running"},
        "torso": {"name": "none"},
        "core": {"name": "none"},
        "task_encoder": {"name": "embedding", "dim": 3} if encoder == "embedding" else {"name": "one_hot"},
        "trunk": TRUNK,
        "head": head,
        "action_head": HEADS[action_head],
        "column": COLUMNS[column],
    }


def made(
    env: str = "toy_reach", action_head: str = "gaussian", **how: str
) -> tuple[PolicyNetwork, dict[str, Any], Any]:
    spec, node = make(env).spec, description(action_head, **how)
    network = build_policy(node, spec)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.obs_norm.update(torch.randn(50, *spec.obs_shape) * 3 + 1, torch.zeros(50, dtype=torch.int64))
    return network, node, spec


def saved(folder: Path, **how: str) -> tuple[PolicyNetwork, Any]:
    network, node, spec = made(**how)
    save_policy(folder, network, node, spec)
    return network, spec


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"head": "shared", "encoder": "embedding"},
        {"action_head": "tanh_gaussian"},
        {"env": "toy_grid", "action_head": "categorical"},
        {"column": "shared"},
        {"env": "toy_grid", "action_head": "categorical", "column": "shared"},
    ],
)
def test_round_trip(tmp_path: Path, how: dict[str, str]) -> None:
    network, spec = saved(tmp_path / "policy", **how)
    policy = load_policy(tmp_path / "policy")
    assert policy.spec == spec
    obs, task = torch.randn(20, *spec.obs_shape), torch.arange(20) % 4
    expected, *_ = network.act(obs, task, network.initial_state(20), explore=False)
    assert torch.equal(torch.as_tensor(policy.act(obs, task)), expected)
    assert not any(parameter.requires_grad for parameter in policy.network.parameters())


def test_memory_lasts_until_it_is_reset() -> None:
    spec = make("toy_reach").spec
    policy = Policy(build_policy(description("gaussian") | {"core": {"name": "lstm", "width": 5}}, spec), spec)
    obs = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    first, second = policy.act(obs, 0), policy.act(obs, 0)
    assert (first != second).any(1).all()
    policy.reset()
    assert np.array_equal(policy.act(obs, 0), first)
    policy.reset(np.array([True, False, False]))
    assert np.array_equal(policy.act(obs, 0), np.concatenate([first[:1], second[1:]]))
    assert np.allclose(policy.act(obs[:2], 0), first[:2]), "another number of observations begins anew"


def test_stored_before_each_task_said_whether_it_reports_success(tmp_path: Path) -> None:
    network, spec = saved(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["spec"]["reports_success"], config["spec"]["comparable_returns"]
    del config["weights"], config["sha256"]  # which are younger
    for has_success in (True, False):
        config["spec"]["has_success"] = has_success
        path.write_text(json.dumps(config))
        policy = load_policy(tmp_path)
        assert policy.spec.reports_success == (has_success,) * spec.num_tasks
        obs = np.zeros(2, np.float32)
        assert np.array_equal(policy.act(obs, 1), Policy(network, spec).act(obs, 1))


def test_files_need_no_code_to_be_read(tmp_path: Path) -> None:
    network, spec = saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == network.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["spec"]["task_names"] == list(spec.task_names)


def test_exported() -> None:
    assert mtrl.load_policy is load_policy


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)  # of weights and observations: some leave every action at its bound
    network, _, spec = made()
    return Policy(network, spec)


def test_numpy_in_numpy_out(policy: Policy) -> None:
    obs = np.random.default_rng(0).normal(size=(5, 2))  # float64, as gymnasium gives it
    action = policy.act(obs, "reach-1")
    assert isinstance(action, np.ndarray)
    assert (action.shape, action.dtype) == ((5, 2), np.float32)
    assert np.abs(action).max() <= 1
    single = policy.act(obs[0], "reach-1")
    assert single.shape == (2,)
    np.testing.assert_allclose(single, action[0], atol=1e-6)  # a batch of one is summed in another order
    assert isinstance(policy.act(torch.from_numpy(obs), "reach-1"), torch.Tensor)


def test_any_numpy_array(policy: Policy) -> None:
    """Mirrored, read-only, of another byte order or of more digits: what torch refuses or warns of."""
    obs = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    expected = policy.act(obs, 0)
    frozen = obs.copy()
    frozen.flags.writeable = False
    same = (obs[::-1].copy()[::-1], obs[:, ::-1].copy()[:, ::-1], frozen, obs.astype(">f4"), obs.astype(np.longdouble))
    for array in same:
        assert np.array_equal(policy.act(array, np.zeros(3, np.int64)[::-1]), expected)
    policy.reset(np.array([True, False, True])[::-1])


def test_every_way_to_name_a_task(policy: Policy) -> None:
    obs = torch.randn(3, 2)
    by_name = torch.as_tensor(policy.act(obs, "reach-2"))
    two = torch.tensor(2)
    for task in (2, np.int64(2), two, ["reach-2"] * 3, [2, "reach-2", 2], two.expand(3), np.array([2, 2, 2]), [2]):
        assert torch.equal(torch.as_tensor(policy.act(obs, task)), by_name), repr(task)
    each = torch.as_tensor(policy.act(obs, ["reach-0", "reach-2", "reach-3"]))
    torch.testing.assert_close(each[1], by_name[1])
    assert not torch.allclose(each[0], by_name[0])


def test_explores_when_asked_to(policy: Policy) -> None:
    obs = torch.zeros(50, 2)
    assert len({float(a[0]) for a in policy.act(obs, 0)}) == 1
    assert len({float(a[0]) for a in policy.act(obs, 0, explore=True)}) > 10


def test_discrete(tmp_path: Path) -> None:
    saved(tmp_path, env="toy_grid", action_head="categorical")
    policy = load_policy(tmp_path)
    assert policy.act(np.zeros((7, 25)), "top-left").shape == (7,)
    assert policy.act(np.zeros(25), "top-left").shape == ()


@pytest.mark.parametrize(
    ("obs", "task", "expected"),
    [
        (
            (3, 2),
            "reach-9",
            r"Unknown task of this policy: 'reach-9'. Did you mean 'reach-\d'\? Valid: reach-0, reach-1",
        ),
        ((3, 2), 4, "The task id must be from 0 to 3, not 4"),
        ((3, 2), -1, "The task id must be from 0 to 3, not -1"),
        ((3, 2), [0, 1], "Expected one task, or one for each of 3 observations, found 2"),
        ((3, 5), 0, r"Expected observations \(N, 2\), found \(3, 5\)"),
        ((5,), 0, r"Expected observations \(N, 2\), found \(1, 5\)"),
        ((1, 3, 2), 0, "Expected observations"),
    ],
)
def test_wrong_arguments(policy: Policy, obs: tuple[int, ...], task: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        policy.act(np.zeros(obs), task)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: edit(folder, lambda config: config["spec"].update(obs_dtype="floot32")),
        lambda folder: edit(folder, lambda config: config["spec"].update(obs_shape=[3])),
        lambda folder: edit(folder, lambda config: config["spec"].pop("horizon")),
    ],
)
def test_damaged(tmp_path: Path, damage: Any) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=f"The policy in {tmp_path} is damaged") as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)


def edit(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_later_format(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda config: config.update(format=2))
    with pytest.raises(UserError, match=r"config.json: it has format 2; this version reads 1\."):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "found nothing there"), ("file", "found a file"), ("folder", "found an empty folder")],
)
def test_no_policy(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "x"
    if content == "file":
        path.write_text("")
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=rf"No policy in {path}: expected a run folder .*{expected}"):
        find_policy(path)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a policy
# ---------------------------------------------------------------------------------------------------------------------


class FakeLearner(Learner):
    """As much of a learner as `initialise` looks at."""

    def __init__(self, network: PolicyNetwork) -> None:
        self.policy, self.networks = network, torch.nn.ModuleDict({"policy": network})

    def update(self, batch: Any, progress: float) -> Any: ...


def nobody(line: str) -> None:
    raise AssertionError(line)


@pytest.mark.parametrize(
    ("parts", "taken"),
    [
        (["trunk"], ("trunk.input", "trunk.hidden")),
        (["trunk", "task_input"], ("trunk",)),
        (["trunk", "obs_norm"], ("trunk.input", "trunk.hidden", "obs_norm")),
        (None, ("trunk", "obs_norm", "head")),
    ],
)
def test_init_from_parts(tmp_path: Path, parts: list[str] | None, taken: tuple[str, ...]) -> None:
    source, spec = saved(tmp_path)
    network, _, _ = made()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initialise(FakeLearner(network), str(tmp_path), parts, spec.task_names, nobody)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name] if name.startswith(taken) else before[name]), name


def test_unknown_part(tmp_path: Path) -> None:
    saved(tmp_path)
    network, _, _ = made()
    with pytest.raises(UserError, match=r"Unknown part 'tronk'. Did you mean 'trunk'\? Valid: .*obs_norm.*trunk"):
        initialise(FakeLearner(network), str(tmp_path), ["tronk"], (), nobody)


# --- tasks by name --------------------------------------------------------------------------------------------------

ORDER = ("reach-3", "reach-0", "reach-2", "reach-1")


def actions(policy: Policy, tasks: Any) -> torch.Tensor:
    obs = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    return torch.as_tensor(policy.act(obs, tasks))


@pytest.mark.parametrize("names", [ORDER, ("reach-2",), ("reach-0", "reach-3")])
def test_an_environment_with_the_tasks_in_another_order(policy: Policy, names: tuple[str, ...]) -> None:
    """Ids are the environment's; a name is what it was."""
    there = policy.for_env(spec_with(names))
    assert there.tasks == names
    for task, name in enumerate(names):
        expected = actions(policy, name)
        assert torch.equal(actions(there, task), expected)
        assert torch.equal(actions(there, name), expected)
        ids = torch.full((8,), task)
        obs = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
        assert torch.equal(there.actor.act(obs, ids, there.actor.initial_state(8), False)[0], expected)
    again = there.for_env(spec_with(ORDER))
    assert torch.equal(actions(again, 0), actions(policy, "reach-3"))


def spec_with(names: tuple[str, ...], **changes: Any) -> EnvSpec:
    spec = make("toy_reach", num_tasks=len(names)).spec
    return dataclasses.replace(spec, task_names=names, **changes)


def policy_with(names: tuple[str, ...], head: str = "shared", trunk: dict[str, Any] = TRUNK) -> Policy:
    torch.manual_seed(0)
    spec = spec_with(names)
    network = build_policy(description("gaussian", head) | {"trunk": trunk}, spec)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return Policy(network, spec)


@pytest.mark.parametrize(
    ("head", "trunk", "readers"),
    [
        ("per_task", TRUNK, "task_encoder, head"),
        ("shared", TRUNK, "task_encoder"),
        ("per_task", {"name": "none"}, "head"),
        ("shared", {"name": "mmoe", "width": 8}, "task_encoder, trunk"),
    ],
)
def test_a_task_without_a_counterpart_is_refused_where_ids_are_read(head: str, trunk: Any, readers: str) -> None:
    trained = policy_with(("a", "b"), head, trunk)
    with pytest.raises(UserError, match=rf"not trained in c and cannot act .*\({readers}\).*task_encoder=context"):
        trained.for_env(spec_with(("b", "c")))


def test_tasks_without_a_counterpart_where_no_id_is_read() -> None:
    """Neither a shared head without a trunk nor a policy of a single task has anything to tell tasks apart by."""
    for trained in (policy_with(("a", "b"), trunk={"name": "none"}), policy_with(("a",), head="per_task")):
        there = trained.for_env(spec_with(("c", "d")))
        assert torch.equal(actions(there, "c"), actions(trained, "a"))
        assert torch.equal(actions(there, 1), actions(trained, "a"))
        with pytest.raises(UserError, match="Unknown task of this policy: 'a'"):
            actions(there, "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_shape": (3,)}, r"obs_shape is \(2,\) here, \(3,\) there"),
        ({"history": (1, 1)}, "history is"),
        ({"action_mask": ((True, True), (True, False))}, "b has other actions there"),
    ],
)
def test_environments_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"does not fit the environment: {message}"):
        policy_with(("a", "b")).for_env(spec_with(("a", "b"), **changes))


def test_init_from_goes_by_name(tmp_path: Path) -> None:
    """The trained heads and columns go with their names; who has none begins as drawn, and is named."""
    source, spec = saved(tmp_path)
    before, trained = made()[0], Policy(source, spec)
    names, said = (*ORDER, "reach-9"), list[str]()
    target = policy_with(names, "per_task")
    fresh = target.network.head.head.weight[4].clone()
    initialise(FakeLearner(target.network), str(tmp_path), None, names, said.append)
    for name in ORDER:
        torch.testing.assert_close(actions(target, name), actions(trained, name))
    assert torch.equal(target.network.head.head.weight[4], fresh)
    assert said == [f"{tmp_path} was not trained in reach-9: weights of these tasks start from scratch."]
    initialise(FakeLearner(before), str(tmp_path), ["obs_norm"], ("x",), nobody)


@pytest.mark.parametrize("device", ["mps", "meta", "xla", "gpu", "cuda:99", "cpu:1", "", "1"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UserError, match=rf"^device={device} cannot be used. Here: cpu[^\n]{{0,80}}\.$"):
        check_device(device)
