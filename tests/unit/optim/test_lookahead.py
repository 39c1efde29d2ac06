"""Lookahead by hand, and against steps of a copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mtrl.optim.lookahead import lookahead
from mtrl.registry import build


def test_by_hand() -> None:
    """Losses (w - 3)^2, (w + 1)^2 at w = 1: 4, with gradients -4 and 4. With thirds of them, rate 3/4 leads to 2 and 0.

    At 2 the losses are 1 and 9, at 0 they are 9 and 1. The third task has no gradient.
    """
    w = nn.Parameter(torch.tensor(1.0))
    found = lookahead(lambda: torch.stack([(w - 3) ** 2, (w + 1) ** 2, 0 * w]), torch.optim.SGD([w], lr=0.75), [w])
    nan = torch.nan
    torch.testing.assert_close(found, torch.tensor([[3, -5, nan], [-5, 3, nan], [nan] * 3]), equal_nan=True)


def test_it_is_what_a_step_of_the_optimizer_does_to_a_copy() -> None:
    """By Adam's equations, with the second moments of three steps for all tasks and no momentum.

    Meanwhile the network and the optimiser stay what they were, to the last bit.
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(2, 6).double()

    def losses(module: nn.Module) -> Tensor:
        return (module(x).T - y).square().mean(1)  # output k is of task k

    running = build("optimizer", {"name": "adam", "lr": 0.1}, parameters=list(network.parameters()))
    for _ in range(3):
        running.zero_grad()
        losses(network).sum().backward()
        running.step()
    before = copy.deepcopy((network.state_dict(), running.state_dict()["state"]))
    found = lookahead(lambda: losses(network), running, list(network[0].parameters()))
    torch.testing.assert_close((network.state_dict(), running.state_dict()["state"]), before, rtol=0, atol=0)
    for i in range(2):
        moved = copy.deepcopy(network)
        (losses(moved)[i] / 2).backward()
        with torch.no_grad():
            for parameter, same in zip(moved[0].parameters(), network[0].parameters(), strict=True):
                g, v = parameter.grad, running.state[same]["exp_avg_sq"]
                m, v = 0.1 * g / (1 - 0.9**4), (0.999 * v + 0.001 * g**2) / (1 - 0.999**4)
                parameter -= 0.1 * m / (v.sqrt() + 1e-8)
        torch.testing.assert_close(found[i], (losses(network) - losses(moved)).detach())
    assert (found.diagonal() > 0).all()
