"""Lookahead by hand, and against steps of a copy."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mtrl.optim.lookahead import lookahead
from mtrl.registry import build


def test_by_hand() -> None:
    """Losses (w - 3)^2, (w + 1)^2 at w = 1: both 4, with gradients -4 and 4. Steps of rate 1/4 lead to 2 and to 0.

    At 2 the losses are 1 and 9, at 0 they are 9 and 1. The third task has no gradient.
    """
    w = nn.Parameter(torch.tensor(1.0))
    found = lookahead(lambda: torch.stack([(w - 3) ** 2, (w + 1) ** 2, 0 * w]), torch.optim.SGD([w], lr=0.25), [w])
    nan = torch.nan
    torch.testing.assert_close(found, torch.tensor([[3, -5, nan], [-5, 3, nan], [nan] * 3]), equal_nan=True)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_it_is_what_a_fresh_optimizer_does_to_a_copy(optimizer: str) -> None:
    """While the network and the moments of the optimiser stay what they were, to the last bit."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(2, 6).double()

    def losses(module: nn.Module) -> Tensor:
        return (module(x).T - y).square().mean(1)  # output k is of task k

    running = build("optimizer", {"name": optimizer, "lr": 0.01}, parameters=list(network.parameters()))
    for _ in range(3):
        running.zero_grad()
        losses(network).sum().backward()
        running.step()
    before = copy.deepcopy((network.state_dict(), running.state_dict()["state"]))
    found = lookahead(lambda: losses(network), running, list(network[0].parameters()))
    torch.testing.assert_close((network.state_dict(), running.state_dict()["state"]), before, rtol=0, atol=0)
    for i in range(2):
        moved = copy.deepcopy(network)
        fresh = build("optimizer", {"name": optimizer, "lr": 0.01}, parameters=list(moved[0].parameters()))
        losses(moved)[i].backward()
        fresh.step()
        torch.testing.assert_close(found[i], (losses(network) - losses(moved)).detach())
    assert (found.diagonal() > 0).all()
