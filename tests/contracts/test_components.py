"""Every registered component keeps the contract of its kind."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mtrl.build  # noqa: F401  # registers the learners
from mtrl import per_task
from mtrl.agents.resets import Resets
from mtrl.config import presets
from mtrl.data.task_sampling import TaskSampler, allocate
from mtrl.distill.learner import Distill
from mtrl.nn.networks import build_policy, build_value
from mtrl.nn.task_encoders import OneHot
from mtrl.nn.trunks.base import RoutedTrunk, Trunk
from mtrl.optim.aggregation import JacobianAggregation
from mtrl.optim.aggregation.base import diagnostics
from mtrl.optim.gradients import per_task_gradients
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.registry import build, lookup, names
from mtrl.types import EnvSpec, Learner, NonFiniteLossError, TaskContext, UserError
from tests.helpers import SCALAR, OneBackward, describe, make_spec, names_of, small
from tests.oracle import test_distill, test_distral_agent, test_impala, test_sac

K, F, E, OUTPUTS = 3, 4, 5, 2
SHAPES: list[tuple[int, ...]] = [(), (7,), (K, 4)]
TASKS = ("reach-v3", "door-lock-v3", "door-unlock-v3")
"""Names that `language` knows."""

HISTORY = (2, 3)
"""Transitions that encoders which look at the past are given, and the numbers in each."""

Forward = Callable[[nn.Module, Tensor, TaskContext], Tensor]


def spec_of(action_head: str) -> EnvSpec:
    discrete = action_head == "categorical"
    mask = ((True, True, False), (True, True, True), (False, True, True))
    return make_spec(K, F, 3, "discrete" if discrete else "continuous", mask)


LEARNERS = names("agent")
ORACLES: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "sac": (test_sac.make_learner, test_sac.make_batch),
    "impala": (test_impala.make_learner, test_impala.make_rollout),
    "ppo": (
        partial(test_impala.make_learner, clip_range=0.2, num_epochs=2, num_minibatches=2),
        test_impala.make_rollout,
    ),
    "distral": (test_distral_agent.make_learner, test_impala.make_rollout),
    "distill": (partial(test_distill.make_learner, loss="forward_kl"), partial(test_distill.make_batch, "gaussian")),
}
"""What makes each learner, small and in float64, and what it learns from."""
VALUE_LEARNERS = [name for name in LEARNERS if name != "distill"]
SCALED_LEARNERS: list[tuple[str, dict[str, str]]] = [("distill", {})]
SCALED_LEARNERS += [(agent, {"value_norm": norm}) for agent in VALUE_LEARNERS for norm in names("value_norm")]
"""Each with options that scale its values, if it has any."""


def make_learner(agent: str, **options: Any) -> Any:
    return ORACLES[agent][0](**options)


def make_data(agent: str) -> Any:
    return ORACLES[agent][1]()


def tensors(shape: tuple[int, ...], features: int = F, seed: int = 0) -> tuple[Tensor, TaskContext]:
    g = torch.Generator().manual_seed(seed)
    context = TaskContext(torch.randint(K, shape, generator=g), torch.randn(*shape, E, generator=g))
    return torch.randn(*shape, features, generator=g), context


def build_trunk(name: str) -> tuple[nn.Module, Forward]:
    sizes = {"features": F, "context": E, "num_tasks": K, "task_names": names_of(K)}
    return build("trunk", small(name), **sizes), lambda m, x, c: m(x, c)


def build_head(name: str) -> tuple[nn.Module, Forward]:
    head = build("head", {"name": name}, features=F, outputs=OUTPUTS, num_tasks=K, gain=1.0)
    return head, lambda m, x, c: m(x, c)


def build_encoder(name: str) -> tuple[nn.Module, Forward]:
    def forward(module: nn.Module, x: Tensor, context: TaskContext) -> Tensor:
        out = module(context.task, x.repeat_interleave(2, -1)[..., : module.history_size])
        assert torch.equal(out.task, context.task)
        assert out.embedding.shape[-1] == module.dim
        return out.embedding

    return build("task_encoder", {"name": name}, num_tasks=K, task_names=TASKS, history=HISTORY), forward


def build_action_head(name: str, head: str) -> tuple[nn.Module, Forward]:
    spec = spec_of(name)

    def forward(module: nn.Module, x: Tensor, context: TaskContext) -> Tensor:
        distribution = module(x, context)
        assert type(distribution) is module.distribution_class
        action = torch.tensor(spec.action_mask)[context.task].float() * 0.3
        if spec.action_kind == "discrete":
            action = torch.ones_like(context.task)  # action 1 exists in every task
        mode = distribution.mode().float().reshape(*x.shape[:-1], -1)
        return torch.cat([distribution.log_prob(action)[..., None], mode], -1)

    return build("action_head", {"name": name}, head=head, features=F, spec=spec), forward


def make_obs_norm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A normaliser, and the shape of the F numbers that make one of its observations."""
    shape = (1, 1, F) if "images" in name else (F,)
    return build("obs_norm", {"name": name}, obs_shape=shape, num_tasks=K), shape


def build_obs_norm(name: str) -> tuple[nn.Module, Forward]:
    norm, shape = make_obs_norm(name)
    obs = 2 * torch.randn(50, *shape, generator=torch.Generator().manual_seed(1)) + 1
    norm.update(obs, torch.arange(50) % K)
    return norm, lambda m, x, c: m(x.reshape(*x.shape[:-1], *shape), c.task).reshape(x.shape)


def build_column(name: str, action_head: str) -> tuple[nn.Module, Forward]:
    spec = spec_of(action_head)
    head = build("action_head", {"name": action_head}, head="shared", features=F, spec=spec).requires_grad_(False)
    options = {"alpha": 0.5, "width": 8, "depth": 1} if name == "shared" else {}

    def forward(module: nn.Module, x: Tensor, context: TaskContext) -> Tensor:
        distribution = module(head(x, context), x, context.task)
        outputs = distribution.log_probs if action_head == "categorical" else distribution.mean
        if name == "none":
            return outputs
        entropy = module.shared_policy(x, context.task).entropy()  # the only one that its own deviation is in
        return torch.cat([outputs, entropy[..., None]], -1)

    return build("column", {"name": name} | options, features=F, spec=spec), forward


MODULES: dict[str, Callable[[], tuple[nn.Module, Forward]]] = {
    **{f"trunk-{n}": lambda n=n: build_trunk(n) for n in names("trunk")},
    **{f"head-{n}": lambda n=n: build_head(n) for n in names("head")},
    **{f"task_encoder-{n}": lambda n=n: build_encoder(n) for n in names("task_encoder")},
    **{
        f"action_head-{n}-{h}": lambda n=n, h=h: build_action_head(n, h)
        for n, h in itertools.product(names("action_head"), names("head"))
    },
    **{
        f"column-{a}-{n}": lambda n=n, a=a: build_column(n, a)
        for n, a in itertools.product(names("column"), names("action_head"))
    },
    **{f"obs_norm-{n}": lambda n=n: build_obs_norm(n) for n in names("obs_norm")},
}


@pytest.fixture(params=MODULES)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, Forward]:
    torch.manual_seed(0)
    return MODULES[request.param]()


def test_every_kind_has_a_component() -> None:
    """Or the parametrised tests below would pass for want of cases."""
    for kind in (
        "torso",
        "core",
        "trunk",
        "task_encoder",
        "head",
        "action_head",
        "column",
        "obs_norm",
        "value_norm",
        "value_head",
        "weighting",
        "aggregation",
    ):
        assert names(kind)
    assert names("optimizer")
    assert names("task_sampling")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_shapes_and_finite_values(made: tuple[nn.Module, Forward], shape: tuple[int, ...]) -> None:
    module, forward = made
    x, context = tensors(shape)
    out = forward(module, x, context)
    assert out.shape[:-1] == shape
    assert torch.isfinite(out).all()


def test_gradients_reach_every_parameter(made: tuple[nn.Module, Forward]) -> None:
    module, forward = made
    x, context = tensors((30,))
    if not list(module.parameters()):
        assert not forward(module, x, context).requires_grad
        return
    out = forward(module, x, context)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_a_batch_is_one_by_one(made: tuple[nn.Module, Forward]) -> None:
    """Samples, and therefore tasks, do not see one another."""
    module, forward = made
    x, context = tensors((K, 4))
    whole = forward(module, x, context)
    for index in itertools.product(range(K), range(4)):
        alone = forward(module, x[index], TaskContext(context.task[index], context.embedding[index]))
        torch.testing.assert_close(whole[index], alone, rtol=1e-4, atol=1e-5)


def test_permuting_the_tasks_of_a_batch_permutes_its_outputs(made: tuple[nn.Module, Forward]) -> None:
    module, forward = made
    x, context = tensors((K, 4))
    order = torch.tensor([2, 0, 1])
    permuted = forward(module, x[order], TaskContext(context.task[order], context.embedding[order]))
    torch.testing.assert_close(permuted, forward(module, x, context)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", names("head"))
def test_heads_of_permuted_tasks(name: str) -> None:
    """Task k with the k-th rows is task j with the same rows moved to j: no task is special."""
    head, forward = build_head(name)
    x, context = tensors((20,))
    order = torch.tensor([2, 0, 1])  # the new place of each task
    moved = copy.deepcopy(head)
    if name == "per_task":
        for ours, theirs in zip(moved.parameters(), head.parameters(), strict=True):
            ours.data[order] = theirs.data
    out = forward(moved, x, TaskContext(order[context.task], context.embedding))
    torch.testing.assert_close(out, forward(head, x, context))


def test_state_dict_round_trip(made: tuple[nn.Module, Forward]) -> None:
    module, forward = made
    other = copy.deepcopy(module)
    for tensor in other.state_dict().values():
        tensor.fill_(0.123)
    other.load_state_dict(module.state_dict(), strict=True)
    x, context = tensors((7,))
    assert torch.equal(forward(other, x, context), forward(module, x, context))
    assert all(isinstance(tensor, Tensor) for tensor in module.state_dict().values())


COMPILE = """
import json, sys
import torch
import mtrl.nn
from mtrl.registry import build
from mtrl.types import TaskContext

runtime = dict(features=4, context=5, outputs=2, num_tasks=3, gain=1.0, history=(2, 2), task_names=tuple(sys.argv[2:]))
task = torch.tensor([0, 2, 1, 1, 0, 2, 2])
x, embedding = torch.randn(7, 4), torch.randn(7, 5)
for kind, node in json.loads(sys.argv[1]):
    module = build(kind, node, **runtime)

    def call(x, task, embedding):
        if kind == "task_encoder":
            return module(task, x[:, : module.history_size]).embedding
        return module(x, TaskContext(task, embedding))

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, task, embedding), call(x, task, embedding))
    print("compiled", kind, node["name"])
"""


def test_trunks_heads_and_encoders_compile_whole() -> None:
    """Without a graph break. In a process of its own: the checks of shapes that tests add do not compile."""
    nodes = [("trunk", small(name, TASKS)) for name in names("trunk")]
    nodes += [(kind, {"name": name}) for kind in ("head", "task_encoder") for name in names(kind)]
    command = [sys.executable, "-c", COMPILE, json.dumps(nodes), *TASKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = {tuple(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("compiled")}
    assert compiled == {(kind, node["name"]) for kind, node in nodes}


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", names("head"))
@pytest.mark.parametrize("trunk", names("trunk"))
@pytest.mark.parametrize("task_encoder", names("task_encoder"))
def test_whole_networks(head: str, trunk: str, task_encoder: str) -> None:
    """A policy and a Q-function of every combination: finite, and all of their parameters are learned."""
    size = math.prod(HISTORY) + F
    spec = dataclasses.replace(make_spec(K, size, 2), task_names=TASKS, history=HISTORY)
    description = describe("tanh_gaussian", head, "running", small(trunk, TASKS)) | {
        "task_encoder": {"name": task_encoder}
    }
    torch.manual_seed(0)
    policy, q = build_policy(description, spec), build_value(description, spec, head, SCALAR, size + 2)
    obs, task = torch.randn(K, 8, size), torch.arange(K)[:, None].expand(K, 8)
    action, log_prob = policy(obs, task).sample()
    value = q(torch.cat([obs, action], -1), task)
    assert action.shape == (K, 8, 2)
    assert value.shape == log_prob.shape == (K, 8)
    (value.square() + log_prob).sum().backward()
    sees_embedding = "context" in inspect.signature(lookup("trunk", trunk)).parameters
    for module in (policy, q):
        for name, parameter in module.named_parameters():
            if sees_embedding or not name.startswith("task_encoder."):
                assert parameter.grad is not None, name
                assert parameter.grad.any(), name
    obs, task, state = obs[:, 0], task[:, 0], policy.initial_state(K)
    explored, modes = (policy.act(obs, task, state, explore) for explore in (True, False))
    assert not torch.equal(explored[0], modes[0])
    assert torch.equal(modes[0], policy.act(obs, task, state, False)[0])


# --- trunks ---------------------------------------------------------------------------------------------------------

COLUMNS = {"cross_stitch", "modular", "nddr", "sluice", "soft_sharing"}
"""Trunks of one network per task, all of which depends on the number of tasks."""


def trunk_of(name: str, num_tasks: int, **options: Any) -> tuple[Trunk, TaskContext, Tensor]:
    """A trunk with one-hot tasks, and 4 samples of each task in turn."""
    torch.manual_seed(0)
    tasks = names_of(num_tasks)
    sizes = {"features": F, "context": num_tasks, "num_tasks": num_tasks, "task_names": tasks}
    trunk = build("trunk", small(name, tasks) | options, **sizes)
    task = torch.arange(4 * num_tasks) % num_tasks
    return trunk, OneHot(num_tasks)(task, torch.empty(len(task), 0)), torch.randn(len(task), F)


def test_the_documentation_names_every_component() -> None:
    pages = {
        "components_networks.md": ("trunk", "task_encoder", "value_head", "task_sampling"),
        "components.md": ("value_norm", "weighting", "aggregation"),
    }
    for page, kinds in pages.items():
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        for kind in kinds:
            for name in names(kind):
                assert f"| [`{name}`](reference/{kind}.md#{name})" in text, name


def test_the_documentation_names_every_network() -> None:
    text = (Path(__file__).parents[2] / "docs" / "components_networks.md").read_text(encoding="utf-8")
    for name in presets("network"):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("num_tasks", [1, 50])
@pytest.mark.parametrize("name", names("trunk"))
def test_trunks_of_one_task_and_of_many(name: str, num_tasks: int) -> None:
    trunk, context, x = trunk_of(name, num_tasks)
    out = trunk(x.requires_grad_(), context)
    assert out.shape == (len(x), trunk.out_features)
    loss, metrics = trunk.aux(x, context)
    (out.square().sum() + loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *trunk.parameters()) if p.grad is not None)
    assert all(torch.isfinite(value).all() for value in metrics.values())


@pytest.mark.parametrize("name", [name for name in names("trunk") if name not in COLUMNS | {"grouped"}])
def test_trunks_of_relabelled_tasks(name: str) -> None:
    """Task k with its rows of the parameters is task j with the same rows moved to j: no task is special."""
    trunk, _ = build_trunk(name)
    x, context = tensors((20,))
    order = torch.tensor([2, 0, 1])
    moved = copy.deepcopy(trunk)
    for ours, theirs in zip(moved.parameters(), trunk.parameters(), strict=True):
        if getattr(theirs, "is_per_task", False):
            ours.data[order] = theirs.data
    torch.testing.assert_close(moved(x, TaskContext(order[context.task], context.embedding)), trunk(x, context))


@pytest.mark.parametrize("name", names("trunk"))
def test_trunks_can_be_taken_to_another_number_of_tasks(name: str) -> None:
    """All that depends on the number is in submodules called `task_input`, which `init_from_parts=[trunk]` leaves."""
    shapes = [
        {key: p.shape for key, p in trunk_of(name, k)[0].state_dict().items() if "task_input" not in key.split(".")}
        for k in (2, 5)
    ]
    assert (shapes[0] == shapes[1]) == (name not in COLUMNS)
    assert shapes[0] or name == "none"


@pytest.mark.parametrize("name", names("trunk"))
def test_trunk_diagnostics(name: str) -> None:
    """A loss and one value per task, or one for all; NaN for a task that is not there."""
    trunk, context, x = trunk_of(name, K)
    there = context.task != 1
    loss, metrics = trunk.aux(x[there], TaskContext(context.task[there], context.embedding[there]))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for value in metrics.values():
        assert not value.requires_grad
        assert value.shape in ((), (K,))
        if value.shape == (K,):
            assert torch.isfinite(value[[0, 2]]).all()
    for key, value in metrics.items():
        if key.startswith("routing"):
            assert value[1].isnan()


@pytest.mark.parametrize("name", [n for n in names("trunk") if issubclass(lookup("trunk", n), RoutedTrunk)])
def test_routing(name: str) -> None:
    """Weights sum to 1; the reward for diversity reaches what makes them, with tasks missing too."""
    trunk, context, x = trunk_of(name, K, diversity=0.5)
    for parameter in trunk.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # tasks that all do the same learn nothing of diversity
    layers = trunk.routing(x, context)
    for weights in layers:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    there = context.task != 1
    loss, metrics = trunk.aux(x[there], TaskContext(context.task[there], context.embedding[there]))
    loss.backward()
    gradients = [p.grad for p in trunk.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients)
    for i, weights in enumerate(layers):
        usage = torch.stack([metrics[f"routing_{i}_{j}"] for j in range(weights.shape[-1])], 1)
        torch.testing.assert_close(usage[0], weights[context.task == 0].mean((0, 1)).detach())


@pytest.mark.parametrize("agent", LEARNERS)
@pytest.mark.parametrize("name", names("trunk"))
def test_every_trunk_learns_with_every_learner(agent: str, name: str) -> None:
    learner = make_learner(agent, trunk=small(name))
    data = make_data(agent)
    use(learner, "uniform", MeanOfRows())  # per-task gradients pass through it too
    before = {key: p.detach().clone() for key, p in learner.networks.named_parameters()}
    torch.manual_seed(0)
    metrics = learner.update(data, 0.0)
    assert all(value.shape in ((), (K,), (K, K)) for value in metrics.values())
    assert all(torch.isfinite(value).all() for key, value in metrics.items() if key.endswith("_loss"))
    diagnostics = learner.diagnostics(data)
    assert set(diagnostics).isdisjoint(metrics)
    assert len(diagnostics) == (4 if agent in VALUE_LEARNERS else 2)
    assert all(value.shape == () and torch.isfinite(value) for value in diagnostics.values())
    for key, parameter in learner.networks.named_parameters():
        assert torch.isfinite(parameter).all(), key
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize(
    ("agent", "network"), [("sac", "policy"), ("sac", "critics"), ("impala", "policy"), ("impala", "value")]
)
def test_learners_add_the_loss_of_a_trunk(agent: str, network: str) -> None:
    """Once, not for every task: the gradient grows by that of sum_k ||W_k - mean W||^2."""
    gradients = []
    for coef in (0.0, 1.0):
        learner = make_learner(agent, trunk=small("soft_sharing") | {"coef": 0.0})
        trunk, *others = (part for part in learner.networks[network].modules() if isinstance(part, Trunk))
        for part in (trunk, *others):
            part.coef = coef
        learner.optimizers[network].max_grad_norm = float("inf")
        weight = trunk.layers[0].weight
        before = weight.detach().clone()
        torch.manual_seed(0)
        learner.update(make_data(agent), 0.0)
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(gradients[1] - gradients[0], 2 * (before - before.mean(0)))


# --- scaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("value_norm"))
def test_value_norms(name: str) -> None:
    """Normalising and back is nothing, for any leading shape; sigma is one positive number per task."""
    norm = build("value_norm", {"name": name}, num_tasks=K)
    head = build("head", {"name": "per_task"}, features=F, outputs=1, num_tasks=K)
    value, task = 30 * torch.randn(40, generator=torch.Generator().manual_seed(0)) + 5, torch.arange(40) % K
    norm.update(value, value, task, [head])
    torch.testing.assert_close(norm.denormalise(norm.normalise(value, task), task), value)
    grid = norm.normalise(value[:36].view(K, 12), task[:36].view(K, 12))
    torch.testing.assert_close(grid.flatten(), norm.normalise(value[:36], task[:36]))
    assert norm.sigma.shape == (K,)
    assert (norm.sigma > 0).all()
    other = build("value_norm", {"name": name}, num_tasks=K)
    other.load_state_dict(norm.state_dict(), strict=True)
    assert torch.equal(other.normalise(value, task), norm.normalise(value, task))


@pytest.mark.parametrize("name", names("obs_norm"))
def test_obs_norms_merge_batches(name: str) -> None:
    """Statistics of two updates are those of one with all observations, whatever the leading shapes."""
    (whole, shape), (parts, _) = make_obs_norm(name), make_obs_norm(name)
    g = torch.Generator().manual_seed(0)
    obs, task = 3 * torch.randn(4, 6, *shape, generator=g) - 2, torch.randint(K, (4, 6), generator=g)
    obs[..., 0] = 7.0  # a constant feature
    before = obs.clone()
    whole.update(obs, task)
    parts.update(obs[0], task[0])
    parts.update(obs[1:], task[1:])
    torch.testing.assert_close(parts(obs, task), whole(obs, task))
    assert torch.isfinite(whole(obs, task)).all()
    assert torch.equal(obs, before)
    if name == "running":
        scaled = whole(obs, task).flatten(0, 1)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(F), rtol=0, atol=1e-5)
        torch.testing.assert_close(scaled.std(0, unbiased=False), torch.tensor([0.0, 1, 1, 1]), rtol=1e-5, atol=1e-5)
        assert whole(obs + 1e6, task).max() == whole.clip


def test_images_are_scaled_to_one() -> None:
    """255 and 51 are 1 and 0.2, whatever the task."""
    norm = build("obs_norm", {"name": "scaled_images"}, obs_shape=(1, 1, 2))
    images = torch.tensor([[[[255, 51]]], [[[0, 255]]]], dtype=torch.uint8)
    norm.update(images, torch.tensor([0, 0]))
    scaled = norm(images, torch.tensor([0, 1]))
    torch.testing.assert_close(scaled, torch.tensor([[[[1.0, 0.2]]], [[[0.0, 1.0]]]]))


def test_images_lose_the_mean_of_their_task() -> None:
    """Of two frames each, the newest counts: 100 and 200 in task 0, mean 150; 40 in task 2; nothing seen of task 1."""
    norm = build("obs_norm", {"name": "centred_images"}, obs_shape=(2, 1, 1), num_tasks=3)
    seen = torch.tensor([[7, 100], [9, 200], [0, 40]], dtype=torch.uint8).reshape(3, 2, 1, 1)
    task = torch.tensor([0, 0, 2])
    norm.update(seen, task)
    norm.update(seen[:0], task[:0])
    expected = torch.tensor([[7 - 150, 100 - 150], [9 - 150, 200 - 150], [0 - 40, 40 - 40]]) / 255
    torch.testing.assert_close(norm(seen, task).flatten(1), expected)
    torch.testing.assert_close(norm(seen[0], torch.tensor(1)).flatten(), torch.tensor([7, 100]) / 255)


@pytest.mark.parametrize("name", ["scaled_images", "centred_images"])
def test_flat_observations_are_no_images(name: str) -> None:
    with pytest.raises(UserError, match=r"obs_norm '.*_images'.*\(39,\) are not images"):
        build("obs_norm", {"name": name}, obs_shape=(39,), num_tasks=K)


# --- value heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", names("value_head"))
def test_value_heads(name: str, shape: tuple[int, ...]) -> None:
    """One value and one loss per sample, that is not negative; learning brings the value to the target."""
    head = build("value_head", {"name": name})
    g = torch.Generator().manual_seed(0)
    raw = torch.randn(*shape, head.outputs, generator=g).requires_grad_()
    target = 20 * torch.randn(shape, generator=g)
    assert head(raw).shape == shape
    loss = head.loss(raw, target)
    assert loss.shape == shape
    assert (loss >= 0).all()
    optimizer = torch.optim.Adam([raw], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(raw, target).sum().backward()
        optimizer.step()
    torch.testing.assert_close(head(raw.detach()), target, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("agent", VALUE_LEARNERS)
@pytest.mark.parametrize("name", names("value_head"))
def test_every_value_head_learns_with_every_learner(agent: str, name: str) -> None:
    learner = make_learner(agent, value_head={"name": name})
    data = make_data(agent)
    data.reward.mul_(1e6)  # outside of the range of any head
    before = {key: p.detach().clone() for key, p in learner.networks.named_parameters()}
    metrics = learner.update(data, 0.0)
    assert all(torch.isfinite(value).all() for value in metrics.values())
    for key, parameter in learner.networks.named_parameters():
        assert torch.isfinite(parameter).all(), key
        assert not torch.equal(parameter, before[key]), key


# --- from losses to a step ------------------------------------------------------------------------------------------


AGGREGATIONS: dict[str, dict[str, Any]] = {"torchjd": {"aggregator": "PCGrad"}}
"""Options of the aggregations that have no default for them."""
PER_TASK = [name for name in names("aggregation") if name not in ("sum", "mean")]
STRESS = [0.0, 1e-15, 1e-6, 1.0, 1e6, 1e15]
"""Scales of the tasks, in turn."""


class MeanOfRows(JacobianAggregation):
    """The simplest combination of per-task gradients."""

    def combine(self, jacobian: Tensor) -> Tensor:
        self.seen = jacobian
        return jacobian.mean(0)


def build_aggregation(name: str, num_tasks: int = K) -> Any:
    return build("aggregation", {"name": name, **AGGREGATIONS.get(name, {})}, num_tasks=num_tasks)


def build_weighting(name: str, num_tasks: int = K) -> Any:
    runtime = {"num_tasks": num_tasks, "silent_tasks": (), "log_alpha": lambda: torch.zeros(num_tasks)}
    return build("weighting", {"name": name}, **runtime)


def network_and_losses() -> tuple[nn.Module, Tensor, Tensor]:
    """A value network with per-task heads, and one loss for each task (of either sign, of different size)."""
    torch.manual_seed(0)
    network = build_value(describe("gaussian"), make_spec(K, F), "per_task", SCALAR, F).double()
    obs, task = torch.randn(K, 6, F, dtype=torch.float64), torch.arange(K)[:, None].expand(K, 6)
    return network, (network(obs, task).square().mean(1) - 0.3) * torch.tensor([1.0, 10.0, 0.1]), task


@pytest.mark.parametrize("name", names("aggregation"))
def test_aggregations_fill_gradients(name: str) -> None:
    network, losses, task = network_and_losses()
    parameters = list(network.parameters())
    build_aggregation(name).backward(losses, parameters, task)
    gradients = [p.grad.clone() for p in parameters]
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)
    assert all(g.shape == p.shape for g, p in zip(gradients, parameters, strict=True))
    network, losses, _ = network_and_losses()
    reference = {"sum": losses.sum(), "mean": losses.mean(), "measured_mean": losses.mean()}.get(name)
    if reference is not None:
        torch.testing.assert_close(gradients, list(torch.autograd.grad(reference, list(network.parameters()))))


def test_jacobian_aggregation() -> None:
    """Combining by the mean is `mean`, also for a task's own rows; `combine` sees one row per task."""
    network, losses, task = network_and_losses()
    parameters = list(network.parameters())
    aggregation = MeanOfRows()
    metrics = aggregation.backward(losses, parameters, task)
    ours = [p.grad.clone() for p in parameters]
    network, losses, _ = network_and_losses()
    expected = torch.autograd.grad(losses.mean(), list(network.parameters()), retain_graph=True)
    torch.testing.assert_close(ours, list(expected))
    # Of the shared parameters only.
    shared = [p for name, p in network.named_parameters() if not name.startswith("head.")]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]) for loss in losses]
    torch.testing.assert_close(aggregation.seen, torch.stack(rows))
    torch.testing.assert_close(metrics["task_norm"], torch.stack([row.norm() for row in rows]))
    cosines = [functional.cosine_similarity(rows[i], rows[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(metrics["cosine"][[0, 0, 1], [1, 2, 2]], torch.stack(cosines))
    torch.testing.assert_close(metrics["cosine_mean"], torch.stack(cosines).mean())
    assert float(metrics["conflict_rate"]) == pytest.approx(sum(float(c) < 0 for c in cosines) / 3)


@pytest.mark.parametrize("name", PER_TASK)
def test_aggregations_of_networks_that_share_nothing(name: str) -> None:
    """There is nothing to combine: `mean`."""
    trunk = small("soft_sharing")
    network = build_value(describe("gaussian", trunk=trunk), make_spec(K, F), "per_task", SCALAR, F)
    task = torch.arange(K)[:, None].expand(K, 6)
    losses = network(torch.randn(K, 6, F), task).square().mean(1)
    expected = torch.autograd.grad(losses.mean(), list(network.parameters()), retain_graph=True)
    build_aggregation(name).backward(losses, list(network.parameters()), task)
    torch.testing.assert_close([p.grad for p in network.parameters()], list(expected))


def test_diagnostics_leave_absent_tasks_out() -> None:
    """g_1 = (1, 0), g_2 = 0, g_3 = (-3, 4): one pair, with cosine -3/5."""
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-3.0, 4.0]])
    metrics = diagnostics(jacobian @ jacobian.T)
    assert metrics["cosine_mean"] == pytest.approx(-0.6)
    assert metrics["conflict_rate"] == 1
    assert metrics["task_norm"][[0, 2]].tolist() == [1, 5]
    assert metrics["task_norm"][1].isnan()
    assert metrics["cosine"].isnan().sum() == 5
    alone = diagnostics(torch.ones(1, 1))
    assert alone["cosine_mean"] == alone["conflict_rate"] == 0


@pytest.mark.parametrize("num_tasks", [1, 3, 50])
@pytest.mark.parametrize("name", PER_TASK)
def test_aggregations_of_any_scale(name: str, num_tasks: int) -> None:
    """Finite for gradients from 0 to 1e15 side by side, of all tasks and of none; nothing from nothing."""
    torch.manual_seed(0)
    scale = torch.tensor(STRESS).repeat(num_tasks)[:num_tasks, None]
    jacobian = torch.randn(num_tasks, 200)
    aggregation = build_aggregation(name, num_tasks)
    for rows in (jacobian, jacobian * scale, jacobian * scale.flip(0), jacobian * 1e15):
        for _ in range(2):
            direction = aggregation.combine(rows)
            assert direction.shape == (200,)
            assert torch.isfinite(direction).all()
            assert direction.any() or not rows.any()
    assert not aggregation.combine(torch.zeros(num_tasks, 200)).any()


@pytest.mark.parametrize("name", [name for name in PER_TASK if name != "torchjd"])
def test_an_absent_task_changes_nothing_but_the_mean(name: str) -> None:
    """The direction of two tasks and an absent one is 2/3 of that of the two."""
    rows = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [-2.0, 0.3, 1.0]])
    assert rows[0] @ rows[2] < 0
    direction = build_aggregation(name, 3).combine(rows)
    torch.testing.assert_close(direction, 2 / 3 * build_aggregation(name, 2).combine(rows[[0, 2]]))


@pytest.mark.parametrize("name", PER_TASK)
def test_one_task_keeps_its_direction(name: str) -> None:
    row = torch.tensor([[3.0, -4.0]])
    direction = build_aggregation(name, 1).combine(row)
    torch.testing.assert_close(direction / direction.norm(), row[0] / 5)


BATCHES = {
    "stratified": torch.arange(K)[:, None].expand(K, 5),
    "random order": torch.tensor([2, 0, 0, 1, 2, 1, 0, 1, 2, 2, 0]),
    "task 1 absent": torch.tensor([0, 2, 2, 0, 0, 0, 2]),
    "one sample": torch.tensor([1]),
    "as many samples as tasks": torch.tensor([2, 0, 1]),
}
ONE_BY_ONE = {"cross_stitch", "simba_v2", "sluice"}
"""Trunks with shared parameters in other operations than layers, whose per-task gradients take K backward passes."""


def shared_and_own(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    shared, own = ([p for p in network.parameters() if hasattr(p, "is_per_task") is mine] for mine in (False, True))
    return shared, own


@pytest.mark.parametrize("head", names("head"))
@pytest.mark.parametrize("trunk", names("trunk"))
def test_per_task_gradients_of_every_trunk(trunk: str, head: str) -> None:
    """Those of the tasks' losses one by one."""
    torch.manual_seed(0)
    network = build_value(describe("gaussian", trunk=small(trunk)), make_spec(K, F), head, SCALAR, F).double()
    shared, own = shared_and_own(network)
    for task in BATCHES.values():
        x = torch.randn(*task.shape, F, dtype=torch.float64)
        losses = per_task.mean_or_zero(network(x, task).square(), task, K)
        rows, own_rows = per_task_gradients(losses, shared, own, task)
        losses = per_task.mean_or_zero(network(x, task).square(), task, K)
        for k in range(K):
            expected = torch.autograd.grad(losses[k], [*shared, *own], retain_graph=True, allow_unused=True)
            for ours, theirs in zip(rows, expected[: len(shared)], strict=True):
                torch.testing.assert_close(ours[k], torch.zeros_like(ours[k]) if theirs is None else theirs)
        if own:
            torch.testing.assert_close(own_rows, list(torch.autograd.grad(losses.sum(), own)))


@pytest.mark.parametrize("name", [name for name in names("trunk") if name not in ONE_BY_ONE])
def test_trunks_of_layers_need_no_backward_pass_per_task(name: str) -> None:
    torch.manual_seed(0)
    network = build_value(describe("gaussian", trunk=small(name)), make_spec(K, F), "shared", SCALAR, F)
    task = BATCHES["random order"]
    values = OneBackward.apply(network(torch.randn(*task.shape, F), task))
    per_task_gradients(per_task.mean_or_zero(values.square(), task, K), *shared_and_own(network), task)


@pytest.mark.parametrize("core", names("core"))
@pytest.mark.parametrize("torso", names("torso"))
def test_per_task_gradients_of_what_policy_and_value_share(torso: str, core: str) -> None:
    """Those of the tasks' losses one by one, of both networks together."""
    torch.manual_seed(0)
    of_flat: dict[str, dict[str, Any]] = {"none": {}, "differences": {"points": [0, 1], "scales": [1.0], "axes": 1}}
    flat = torso in of_flat
    shape, width = ((F,), of_flat[torso]) if flat else ((2, 44, 44), {"width": 8})
    spec = dataclasses.replace(make_spec(K, F), obs_shape=shape)
    nodes = {"torso": {"name": torso, **width}, "core": {"name": core, **({} if core == "none" else {"width": 5})}}
    description = describe("gaussian", obs_norm="none" if flat else "scaled_images") | nodes
    policy = build_policy(description, spec)
    value = build_value(description, spec, "per_task", SCALAR, policy.core.out_features)
    shared, own = shared_and_own(nn.ModuleList([policy, value]))
    task, obs = torch.randint(K, (3, 4)), 255 * torch.rand(3, 4, *spec.obs_shape)
    first, state = torch.rand(3, 4) < 0.3, torch.randn(4, policy.core.state_size)

    def losses() -> Tensor:
        features, _ = policy.unroll(obs, task, first, state)
        action = policy.distribution(features, task).mode()
        return per_task.mean_or_zero(action.square().sum(-1) + value(features, task).square(), task, K)

    rows, own_rows = per_task_gradients(losses(), shared, own, task)
    for k in range(K):
        expected = torch.autograd.grad(losses()[k], shared, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close([row[k] for row in rows], list(expected))
    expected = torch.autograd.grad(losses().sum(), own, materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(own_rows, list(expected))


@pytest.mark.parametrize("agent", LEARNERS)
def test_learners_need_no_backward_pass_per_task(agent: str) -> None:
    learner = make_learner(agent)
    for part in learner.networks.modules():
        if isinstance(part, Trunk):
            part.register_forward_hook(lambda module, inputs, output: OneBackward.apply(output))
    use(learner, "uniform", MeanOfRows())
    learner.update(make_data(agent), 0.0)


def weights_of(weighting: Any, losses: Tensor) -> Tensor:
    losses = losses.clone().requires_grad_()
    (weights,) = torch.autograd.grad(weighting(losses).sum(), losses)
    return weights


def step_weighting(weighting: Any, losses: Tensor) -> None:
    """As `MultiTaskOptimizer` and the data source call it. Gradients are as long as weighted losses are large."""
    norm = weighting(losses)
    weighting.after_step(losses, {"task_norm": norm.where(norm > 0, torch.nan)})
    success = torch.linspace(0, 1, len(losses))
    weighting.observe({"success_rate": success.where(losses > 0, torch.nan).double()})


@pytest.mark.parametrize("name", names("weighting"))
def test_weightings(name: str) -> None:
    """(K,) to (K,), differentiable, with mean weight 1; no task is special; the state is all there is."""
    weighting = build_weighting(name)
    losses = torch.tensor([0.5, 3.0, 20.0])
    assert weighting(losses).shape == (K,)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(weighting(losses[order]), weighting(losses)[order])
    for factor in (1.0, 0.7, 0.9, 0.1):
        step_weighting(weighting, losses * torch.tensor([factor, 1.0, factor**2]))
        weights = weights_of(weighting, losses)
        assert torch.isfinite(weights).all()
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4)
    other = build_weighting(name)
    other.load_state_dict(copy.deepcopy(weighting.state_dict()), strict=True)
    for _ in range(3):
        assert torch.equal(other(losses), weighting(losses))
        for one in (weighting, other):
            step_weighting(one, losses * 0.5)


@pytest.mark.parametrize("num_tasks", [1, 3, 50])
@pytest.mark.parametrize("name", names("weighting"))
def test_weightings_of_any_scale(name: str, num_tasks: int) -> None:
    """Losses from 0 (an absent task) to 1e15 side by side: finite weights of at least zero, with mean 1."""
    weighting = build_weighting(name, num_tasks)
    scale = torch.tensor(STRESS).repeat(num_tasks)[:num_tasks]
    for losses in (scale, scale.flip(0), torch.ones(num_tasks), torch.zeros(num_tasks), scale * 1e15, scale):
        weights = weights_of(weighting, losses)
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4)
        step_weighting(weighting, losses)


@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers(name: str) -> None:
    """They go downhill, from gradients of any size, and know their initial rate."""
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build("optimizer", {"name": name, "lr": 0.01}, parameters=[parameter])
    assert optimizer.param_groups[0]["initial_lr"] == 0.01
    start = parameter.detach().clone()
    for _ in range(50):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert (parameter.detach().abs() < start.abs() - 0.1).all()
    assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("silent", [(), ("task-1",)])
@pytest.mark.parametrize("name", names("task_sampling"))
def test_task_samplers(name: str, silent: tuple[str, ...]) -> None:
    """Probabilities before any result, while tasks lack theirs, and after; they fit `allocate`. State round-trips."""
    runtime: dict[str, Any] = {"num_tasks": K, "num_slots": 6, "silent_tasks": silent}
    node: dict[str, Any] = {"name": name}
    if silent and "targets" in inspect.signature(lookup("task_sampling", name)).parameters:
        with pytest.raises(UserError, match="targets"):
            build("task_sampling", node, **runtime)
        node["targets"] = [10.0, 100.0, 3.0]

    def play(sampler: TaskSampler, seed: int, tasks: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(30):
            task = torch.randint(tasks, (2,), generator=g)
            success = (torch.rand(2, generator=g) < 0.6).double()
            sampler.update(task, {"return": 100 * torch.rand(2, generator=g), "success": success})

    def check(sampler: TaskSampler) -> Tensor:
        probabilities = sampler.probabilities()
        assert probabilities.shape == (K,)
        assert (probabilities >= 0).all()
        assert float(probabilities.sum()) == pytest.approx(1)
        assert allocate(probabilities, torch.tensor([0, 1, 2, 2, 1, 0])).shape == (6,)
        assert torch.equal(probabilities, sampler.probabilities())
        return probabilities

    sampler = build("task_sampling", node, **runtime)
    check(sampler)
    play(sampler, 0, tasks=1)
    check(sampler)
    play(sampler, 1, tasks=K)
    check(sampler)
    other = build("task_sampling", node, **runtime)
    other.load_state_dict(copy.deepcopy(sampler.state_dict()), strict=True)
    for one in (sampler, other):
        play(one, 2, tasks=K)
    assert torch.equal(check(other), check(sampler))


def use(learner: Learner, weighting: str, aggregation: Any) -> None:
    """Puts other components into the learner's steps, as `Components.optimizer` does."""
    for network in learner.optimizers.keys() - {"temperature"}:
        step = learner.optimizers[network]
        has_positive = network not in ("policy", "shared_policy") or isinstance(learner, Distill)
        chosen = build_weighting(weighting)
        if chosen.requires_positive and not has_positive:
            chosen = build_weighting("uniform")
        rebuilt = MultiTaskOptimizer(
            step.parameters, step.optimizer, chosen, aggregation, step.max_grad_norm, has_positive
        )
        learner.optimizers[network] = rebuilt


def update_and_check(agent: str, options: dict[str, str], weighting: str, aggregation: Any) -> None:
    learner = make_learner(agent, **options)
    data = make_data(agent)
    use(learner, weighting, aggregation)
    before = {name: p.detach().clone() for name, p in learner.networks.named_parameters()}
    torch.manual_seed(0)
    metrics = learner.update(data, 0.0)
    assert all(torch.isfinite(value).all() for value in metrics.values())
    assert all(value.shape in ((), (K,), (K, K)) for value in metrics.values())
    for name, parameter in learner.networks.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(("agent", "options"), SCALED_LEARNERS)
def test_every_learner_learns_something_finite(agent: str, options: dict[str, str]) -> None:
    """Of values on every scale. What a scale does to a component is the size of its losses: see `of_any_scale`."""
    update_and_check(agent, options, "uniform", build_aggregation("measured_mean"))


@pytest.mark.parametrize("agent", LEARNERS)
@pytest.mark.parametrize("aggregation", names("aggregation"))
def test_every_aggregation_learns_something_finite(agent: str, aggregation: str) -> None:
    update_and_check(agent, {}, "uniform", build_aggregation(aggregation))


@pytest.mark.parametrize("agent", LEARNERS)
@pytest.mark.parametrize("weighting", names("weighting"))
def test_every_weighting_learns_something_finite(agent: str, weighting: str) -> None:
    update_and_check(agent, {}, weighting, build_aggregation("measured_mean"))


@pytest.mark.parametrize("weighting", names("weighting"))
@pytest.mark.parametrize("aggregation", PER_TASK)
def test_weightings_and_aggregations_combine(weighting: str, aggregation: str) -> None:
    update_and_check("impala", {}, weighting, build_aggregation(aggregation))


@pytest.mark.parametrize("agent", LEARNERS)
@pytest.mark.parametrize("aggregation", names("aggregation"))
def test_a_learner_goes_on_from_its_state(agent: str, aggregation: str) -> None:
    """With a weighting that has an optimiser."""
    learners = [make_learner(agent) for _ in range(2)]
    for learner in learners:
        use(learner, "gradnorm", build_aggregation(aggregation))
    data = make_data(agent)
    torch.manual_seed(0)
    for _ in range(2):
        learners[0].update(data, 0.0)
    learners[1].load_state_dict(copy.deepcopy(learners[0].state_dict()))
    for learner in learners:
        torch.manual_seed(1)
        learner.update(data, 0.0)
    states = [learner.networks.state_dict() for learner in learners]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def check_a_reset_learner_is_a_new_one(weighting: str, aggregation: Any) -> None:
    """The first update after a reset is the very first: parameters, and what steps remember."""
    learner = test_sac.make_learner()
    use(learner, weighting, aggregation)
    sampler = build("task_sampling", {"name": "uniform"}, num_tasks=K)
    resets, found = Resets(learner, count=1, sampler=sampler), []
    for progress in (0.0, 0.2, 0.4, 0.5):
        torch.manual_seed(0)
        resets.update(test_sac.make_batch(), progress)
        found.append(copy.deepcopy(learner.state_dict()))
        for name in ("sizes", "squares"):  # of the rewards, which are the environment's
            del found[-1]["networks"][f"value_norm.rewards.{name}"]
        for network in ("policy", "critics"):
            learner.optimizers[network].weighting.observe({"success_rate": torch.tensor([1.0, 0.5, 0.0])})
    torch.testing.assert_close(found[3], found[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", names("weighting"))
def test_a_weighting_begins_anew_with_the_networks(name: str) -> None:
    check_a_reset_learner_is_a_new_one(name, build_aggregation("mean"))


@pytest.mark.parametrize("name", names("aggregation"))
def test_an_aggregation_begins_anew_with_the_networks(name: str) -> None:
    check_a_reset_learner_is_a_new_one("uniform", build_aggregation(name))


def test_an_aggregator_of_torchjd_begins_anew_with_the_networks() -> None:
    aggregation = build("aggregation", {"name": "torchjd", "aggregator": "GradVac"}, num_tasks=K)
    check_a_reset_learner_is_a_new_one("uniform", aggregation)


@pytest.mark.parametrize("name", names("task_sampling"))
def test_a_task_sampler_begins_anew_with_the_networks(name: str) -> None:
    sampler = build("task_sampling", {"name": name}, num_tasks=K, num_slots=6, silent_tasks=())
    resets, initial = Resets(test_sac.make_learner(), count=1, sampler=sampler), copy.deepcopy(sampler.state_dict())
    for _ in range(50):
        sampler.update(torch.tensor([0, 1, 1]), {"return": torch.ones(3), "success": torch.tensor([1.0, 0.0, 1.0])})
    before = copy.deepcopy(sampler.state_dict())
    resets.update(test_sac.make_batch(), 0.4)
    torch.testing.assert_close(sampler.state_dict(), before, rtol=0, atol=0)
    resets.update(test_sac.make_batch(), 0.5)
    torch.testing.assert_close(sampler.state_dict(), initial, rtol=0, atol=0)


def test_what_a_weighting_requires() -> None:
    """Positive losses: an error that says what to choose."""
    step = test_sac.make_learner().optimizers["critics"]
    with pytest.raises(ValueError, match="GeometricMean weighting needs positive losses"):
        MultiTaskOptimizer(
            step.parameters, step.optimizer, build_weighting("geometric_mean"), step.aggregation, 1.0, False
        )


@pytest.mark.parametrize("agent", VALUE_LEARNERS)
@pytest.mark.parametrize("value_norm", names("value_norm"))
def test_a_loss_that_is_not_finite_names_its_task(agent: str, value_norm: str) -> None:
    learner = make_learner(agent, value_norm=value_norm)
    data = make_data(agent)
    data.reward[tuple((data.task == 1).nonzero()[0])] = torch.nan
    before = {name: p.detach().clone() for name, p in learner.networks.named_parameters() if "head" not in name}
    with pytest.raises(NonFiniteLossError) as error:
        learner.update(data, 0.0)
    assert error.value.tasks == [1]
    for name, parameter in learner.networks.named_parameters():
        assert "head" in name or torch.equal(parameter, before[name]), name
