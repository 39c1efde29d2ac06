"""Per-task gradients from one backward pass against autograd, one task at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrl import per_task
from mtrl.nn.layers import StackedLinear, spread
from mtrl.optim.gradients import per_task_gradients
from tests.helpers import OneBackward

K, F, H = 4, 3, 5
TASKS = {
    "stratified": torch.arange(K)[:, None].expand(K, 6),
    "random order": torch.tensor([3, 0, 1, 1, 3, 2, 0, 0, 3, 1, 1]),
    "task 1 absent": torch.tensor([3, 0, 0, 2, 3, 3, 2]),
    "one sample": torch.tensor([2]),
    "two samples": torch.tensor([3, 0]),
    "as many samples as tasks": torch.tensor([2, 0, 3, 1]),
    "a time axis": torch.tensor([[0, 1, 2], [3, 1, 0]]),
}


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(F, H), nn.Linear(H, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class UsedTwice(Linears):
    """One layer on two inputs (as a value network on an observation and the next), and after itself."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        both = self.first(x).tanh() * self.first(x + 1).sigmoid()
        return self.second(self.middle(self.middle(both).tanh()))


class Normalised(Linears):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(H)
        with torch.no_grad():
            self.norm.weight += 0.1 * torch.randn(H)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).tanh())


class Experts(Linears):
    """Stacked layers in one product, mixed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate = nn.Parameter(torch.randn(2, H, F)), nn.Linear(F, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("...i,eoi->...eo", x, self.experts).tanh()
        return self.second((hidden * self.gate(x).softmax(-1)[..., None]).sum(-2))


class Masked(Linears):
    """A layer whose weights are computed from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(H, F))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.linear(x, self.first.weight * self.mask.sigmoid(), self.first.bias).tanh())


class Regularised(Linears):
    """A weight that reaches the losses beside its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.first.weight.square().sum()


class Stacked(Linears):
    """Stacked layers with biases, mixed by weights of each sample: products with as many rows as there are mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked, self.mixture = StackedLinear(2, H, H, "orthogonal"), nn.Linear(F, 4)
        nn.init.normal_(self.stacked.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stacked(spread(self.first(x).tanh(), 2)).tanh()
        weights = self.mixture(x).unflatten(-1, (2, 2)).softmax(-1)
        return self.second((weights @ hidden).sum(-2))


class Elementwise(Linears):
    """Parameters in an operation that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh() * self.scale)


class BatchOfLayers(Linears):
    """A product of stacked layers in which the rows are not the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Parameter(torch.randn(2, F, H))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)[:, None, None].expand(-1, 2, 2, F)  # (N, 2, 2, F)
        return self.second((rows @ self.layers).sum((1, 2)).tanh()).view(*x.shape[:-1], 1)


class RowsOfTasks(Linears):
    """A product with a row for each task, from which each sample takes that of its task."""

    def __init__(self) -> None:
        super().__init__()
        self.basis, self.v = torch.randn(K, F, dtype=torch.float64), nn.Parameter(torch.randn(F, H))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh() * (self.basis @ self.v)[self.task])


class WeightsOfSamples(Linears):
    """A layer whose weights come from another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(F, H * H)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.weights(x)
        weights = hidden.flatten(0, -2).mean(0).view(H, H)
        return self.second(functional.linear(self.first(x).tanh(), weights)) + hidden.mean(-1, keepdim=True)


class MixedSamples(Linears):
    """Samples that see one another."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        return self.second(hidden - hidden.flatten(0, -2).mean(0))


class MovedSamples(Linears):
    """Samples that change places."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).flatten(0, -2).roll(1, 0).view(*x.shape[:-1], 1)


KNOWN = [Linears, UsedTwice, Normalised, Experts, Masked, Regularised, Stacked]
UNKNOWN = [Elementwise, BatchOfLayers, RowsOfTasks, WeightsOfSamples, MixedSamples, MovedSamples]


def make(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = network().double()
    made.unused = nn.Linear(F, F).double()
    made.own = nn.Parameter(torch.randn(K, dtype=torch.float64))
    return made


Through = Callable[[Tensor], Tensor]


def losses_of(network: nn.Module, task: Tensor, through: Through = torch.clone) -> Tensor:
    x = torch.randn(*task.shape, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network.task = task
    error = through(network(x)).squeeze(-1) * network.own[task] - 1
    return per_task.mean_or_zero(error.square() * (1 + task), task, K)


def check(network: nn.Module, task: Tensor, through: Through = torch.clone) -> None:
    shared = [p for name, p in network.named_parameters() if name != "own"]
    jacobian, (own,) = per_task_gradients(losses_of(network, task, through), shared, [network.own], task)
    assert not any(rows.requires_grad for rows in (*jacobian, own))
    losses = losses_of(network, task)
    for k in range(K):
        expected = torch.autograd.grad(losses[k], shared, retain_graph=True, materialize_grads=True, allow_unused=True)
        for ours, theirs in zip(jacobian, expected, strict=True):
            torch.testing.assert_close(ours[k], theirs)
    torch.testing.assert_close(own, torch.autograd.grad(losses.sum(), network.own)[0])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("network", KNOWN)
def test_one_backward_pass(network: type[nn.Module], task: Tensor) -> None:
    check(make(network), task, OneBackward.apply)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("network", UNKNOWN)
def test_other_networks(network: type[nn.Module], task: Tensor) -> None:
    """Right whatever they do, by one way or the other."""
    check(make(network), task)


@pytest.mark.parametrize("network", UNKNOWN)
def test_other_networks_take_a_pass_per_task(network: type[nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        check(make(network), TASKS["random order"], OneBackward.apply)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_losses_of_any_size(scale: float) -> None:
    """In float32, of 100 tasks: the powers of two that find the samples' rows neither overflow nor lose digits."""
    num_tasks = 100
    torch.manual_seed(0)
    network, task = Linears(), torch.randint(num_tasks, (500,))
    values = OneBackward.apply(network(torch.randn(500, F))).squeeze(-1)
    losses = scale * per_task.mean_or_zero(values.square(), task, num_tasks)
    jacobian, _ = per_task_gradients(losses, list(network.parameters()), [], task)
    total = torch.autograd.grad(losses.sum(), list(network.parameters()))
    for rows, expected in zip(jacobian, total, strict=True):
        torch.testing.assert_close(rows.sum(0), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_frozen_parameters_are_passed_by() -> None:
    """As a policy's loss passes through the critics."""
    network, task = make(Linears), TASKS["random order"]
    network.second.requires_grad_(False)
    shared = list(network.first.parameters())
    jacobian, _ = per_task_gradients(losses_of(network, task, OneBackward.apply), shared, [], task)
    for k in range(K):
        expected = torch.autograd.grad(losses_of(network, task)[k], shared)
        torch.testing.assert_close([rows[k] for rows in jacobian], list(expected))


def test_the_rows_of_a_float32_network() -> None:
    network, task = make(Linears).float(), TASKS["stratified"]
    x = torch.randn(*task.shape, F)
    losses = per_task.mean_or_zero(network(x).squeeze(-1).square(), task, K)
    jacobian, _ = per_task_gradients(losses, list(network.parameters()), [], task)
    assert all(rows.dtype == torch.float32 for rows in jacobian)
    assert [tuple(rows.shape) for rows in jacobian] == [(K, *p.shape) for p in network.parameters()]
