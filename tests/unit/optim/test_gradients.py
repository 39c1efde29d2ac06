"""Per-task gradients from one backward pass against autograd, one task at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrl.agents.losses import per_task_mean
from mtrl.optim import gradients
from mtrl.optim.gradients import per_task_gradients

K, F, H = 4, 3, 5
TASKS = {
    "stratified": torch.arange(K)[:, None].expand(K, 6),
    "random order": torch.tensor([3, 0, 1, 1, 3, 2, 0, 0, 3, 1, 1]),
    "task 1 absent": torch.tensor([3, 0, 0, 2, 3, 3, 2]),
    "one sample": torch.tensor([2]),
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


KNOWN = [Linears, UsedTwice, Normalised, Experts, Masked]
UNKNOWN = [Regularised, Elementwise, BatchOfLayers]


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("K backward passes")

    monkeypatch.setattr(gradients, "_from_many_backwards", refuse)


def make(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = network().double()
    made.unused = nn.Linear(F, F).double()
    made.own = nn.Parameter(torch.randn(K, dtype=torch.float64))
    return made


def losses_of(network: nn.Module, task: Tensor) -> Tensor:
    x = torch.randn(*task.shape, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = network(x).squeeze(-1) * network.own[task] - 1
    return per_task_mean(error.square() * (1 + task), task, K)


def check(network: nn.Module, task: Tensor) -> None:
    shared = [p for name, p in network.named_parameters() if name != "own"]
    jacobian, (own,) = per_task_gradients(losses_of(network, task), shared, [network.own], task)
    assert not any(rows.requires_grad for rows in (*jacobian, own))
    losses = losses_of(network, task)
    for k in range(K):
        expected = torch.autograd.grad(losses[k], shared, retain_graph=True, materialize_grads=True, allow_unused=True)
        for ours, theirs in zip(jacobian, expected, strict=True):
            torch.testing.assert_close(ours[k], theirs)
    torch.testing.assert_close(own, torch.autograd.grad(losses.sum(), network.own)[0])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("network", KNOWN)
def test_one_backward_pass(network: type[nn.Module], task: Tensor, no_fallback: None) -> None:
    check(make(network), task)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("network", UNKNOWN)
def test_other_networks_fall_back(network: type[nn.Module], task: Tensor) -> None:
    check(make(network), task)
    made = make(network)
    shared = [p for name, p in made.named_parameters() if name != "own"]
    assert not gradients._find_uses(losses_of(made, task), shared, task.numel())


def test_frozen_parameters_are_passed_by(no_fallback: None) -> None:
    """As a policy's loss passes through the critics."""
    network, task = make(Linears), TASKS["random order"]
    network.second.requires_grad_(False)
    shared = list(network.first.parameters())
    jacobian, _ = per_task_gradients(losses_of(network, task), shared, [], task)
    for k in range(K):
        expected = torch.autograd.grad(losses_of(network, task)[k], shared)
        torch.testing.assert_close([rows[k] for rows in jacobian], list(expected))


def test_the_rows_of_a_float32_network() -> None:
    network, task = make(Linears).float(), TASKS["stratified"]
    x = torch.randn(*task.shape, F)
    losses = per_task_mean(network(x).squeeze(-1).square(), task, K)
    jacobian, _ = per_task_gradients(losses, list(network.parameters()), [], task)
    assert all(rows.dtype == torch.float32 for rows in jacobian)
    assert [tuple(rows.shape) for rows in jacobian] == [(K, *p.shape) for p in network.parameters()]
