"""What `MultiTaskOptimizer` does with losses of tasks and with a loss of no task."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mtrl.optim.multi_task import JointStep, MultiTaskOptimizer, checked_once
from mtrl.optim.weighting import Uniform, Weighting
from mtrl.registry import build
from mtrl.types import NonFiniteLossError
from tests.counting_device import counting


class Fixed(Weighting):
    """Weights 1.5 and 0.5."""

    def forward(self, losses: Tensor) -> Tensor:
        return losses * torch.tensor([1.5, 0.5])


COMBINED = {
    # Weighted gradients g_1 = 1.5 (1, 0) and g_2 = 0.5 (-1, 1).
    "sum": (1.0, 0.5),
    "mean": (0.5, 0.25),
    "measured_mean": (0.5, 0.25),
    # <g_1, g_2> = -0.75. g_1 + 0.75 / 0.5 g_2 = (0.75, 0.75); g_2 + 0.75 / 2.25 g_1 = (0, 0.5); their mean.
    "pcgrad": (0.375, 0.625),
}


@pytest.mark.parametrize("aggregation", COMBINED)
@pytest.mark.parametrize("aux", [0.0, 1.0, 3.0])
def test_a_loss_of_no_task_is_added_to_the_combined_gradient(aggregation: str, aux: float) -> None:
    """Neither weighted nor combined: at W = (4, -2), aux |W|^2 / 2 adds aux W. A step of rate 1 shows the gradient."""
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[4.0, -2.0]]))
    parameters = list(network.parameters())
    step = MultiTaskOptimizer(
        parameters,
        torch.optim.SGD(parameters, lr=1.0),
        Fixed(),
        build("aggregation", {"name": aggregation}, num_tasks=2),
        math.inf,
        has_positive=False,
    )
    losses = network(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).squeeze(1)
    penalty = aux * network.weight.square().sum() / 2 if aux else torch.zeros(())  # as a trunk without one says it
    metrics = step(torch.arange(2), signed=losses, aux=penalty)
    expected = torch.tensor([COMBINED[aggregation]]) + aux * torch.tensor([[4.0, -2.0]])
    torch.testing.assert_close(torch.tensor([[4.0, -2.0]]) - network.weight.detach(), expected)
    torch.testing.assert_close(metrics["norm"], expected.norm())
    assert metrics["task_weight"].tolist() == [1.5, 0.5]


@pytest.mark.parametrize("aggregation", COMBINED)
def test_gradnorm_weighs_by_the_gradients_that_its_weights_change(aggregation: str) -> None:
    """Of a policy and a value network on one torso w, with losses 3 w_1 and 0, and w_1 + 1 and w_2 + 1.

    The values' gradients are both of length 1, so the weights stay 1, however long the policy's are.
    """
    w = nn.Parameter(torch.zeros(2))
    weighting = build("weighting", {"name": "gradnorm", "alpha": 0.0}, num_tasks=2)
    aggregate = build("aggregation", {"name": aggregation}, num_tasks=2)
    step = JointStep(
        MultiTaskOptimizer([w], torch.optim.SGD([w], lr=0.0), weighting, aggregate, math.inf, has_positive=True)
    )
    for _ in range(10):
        nothing = torch.zeros(())
        metrics = step(torch.arange(2), torch.stack([3 * w[0], 0 * w[1]]), w + 1, nothing, nothing)
        assert metrics["task_weight"].tolist() == [1, 1]


def test_an_accelerator_leaves_out_steps_of_losses_that_are_not_finite() -> None:
    """It goes on, and no parameter is changed; the error comes at the end, once, and names the tasks."""
    with counting() as device:
        w = nn.Parameter(torch.ones(3).to("meta"))
        aggregate = build("aggregation", {"name": "sum"}, num_tasks=3)
        optimizer = build("optimizer", {"name": "adam", "lr": 0.1}, parameters=[w])
        step = MultiTaskOptimizer([w], optimizer, Uniform(), aggregate, 1.0, has_positive=False)
        scale = torch.tensor([1.0, math.inf, 1.0]).to("meta")
        task = torch.arange(3).to("meta")

        def take(loss: Tensor) -> list[float]:
            step(task, signed=loss)
            device.take()  # in this
            return list(w.detach().cpu().tolist())

        with checked_once([step]):
            before = take(w.square())
            assert before == pytest.approx([0.9] * 3)
            device.take()
        assert device.take() == 1
        seen = []

        def take_two() -> None:
            with checked_once([step]):
                seen.extend(take(loss()) for loss in (lambda: w * scale, lambda: w.square()))

        with pytest.raises(NonFiniteLossError, match=r"tasks \[1\]"):
            take_two()
        assert seen[0] == before
        assert max(seen[1]) < 0.9
        with pytest.raises(NonFiniteLossError, match=r"tasks \[1\]"):  # at once, as it was before
            take(w * scale)
