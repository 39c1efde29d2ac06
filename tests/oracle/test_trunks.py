"""Trunks against loops over single samples and single modules, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.nn.trunks.base import Trunk, entropy
from mtrl.registry import build
from mtrl.types import TaskContext

K, N, F, E = 3, 4, 5, 4


def made(**node: Any) -> tuple[Trunk, Tensor, TaskContext, dict[str, Tensor]]:
    """A trunk with random parameters (biases too), K x N samples of random tasks, and the parameters by name."""
    torch.manual_seed(0)
    trunk = build("trunk", node, features=F, context=E, num_tasks=K).double()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    context = TaskContext(torch.randint(K, (K, N)), torch.randn(K, N, E, dtype=torch.float64))
    return trunk, torch.randn(K, N, F, dtype=torch.float64), context, dict(trunk.named_parameters())


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def samples(x: Tensor, context: TaskContext) -> list[tuple[Tensor, int, Tensor]]:
    """Each sample with its task and embedding."""
    return [(x[k, i], int(context.task[k, i]), context.embedding[k, i]) for k in range(K) for i in range(N)]


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def affine(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def expert(p: dict[str, Tensor], name: str, j: int, x: Tensor) -> Tensor:
    """Layer j of several that are stacked."""
    return p[f"{name}.weight"][j] @ x + p[f"{name}.bias"][j]


# --- soft modularization --------------------------------------------------------------------------------------------

DEPTH, MODULES = 3, 2


def naive_soft_modules(p: dict[str, Tensor], s: Tensor, z: Tensor) -> tuple[Tensor, list[list[list[float]]]]:
    """Module by module, as in figure 2 of the paper and in the authors' code."""
    f = affine(p, "encoder.2", relu(affine(p, "encoder.0", s)))
    product = f * (p["task_input.weight"] @ z)
    gate = affine(p, "gate.2", relu(affine(p, "gate.0", relu(product))))
    earlier: list[Tensor] = []
    weights: list[list[Tensor]] = []
    for layer in range(DEPTH):
        seen = gate if layer == 0 else gate * affine(p, f"route_up.{layer - 1}", torch.cat(earlier))
        logits = affine(p, f"route_down.{layer}", relu(seen))
        rows = [row.exp() / row.exp().sum() for row in logits.split(MODULES)]
        earlier += rows
        weights.append(rows)
    inputs = [relu(f)] * MODULES
    for layer in range(DEPTH):
        outputs = [expert(p, f"layers.{layer}", j, inputs[j]) for j in range(MODULES)]
        inputs = [relu(sum((row[j] * outputs[j] for j in range(MODULES)), torch.zeros(()))) for row in weights[layer]]
    (out,) = inputs
    return out, [[row.tolist() for row in rows] for rows in weights]


def test_soft_modules() -> None:
    node = {"width": 6, "depth": DEPTH, "modules": MODULES, "embedding": 7, "gating_width": 5}
    trunk, x, context, p = made(name="soft_modules", **node)
    naive = [naive_soft_modules(p, s, z) for s, _, z in samples(x, context)]
    close(trunk(x, context).flatten(0, 1), torch.stack([out for out, _ in naive]))
    for layer, weights in enumerate(trunk.routing(x, context)):
        expected = torch.tensor([rows[layer] for _, rows in naive], dtype=torch.float64)
        close(weights.flatten(0, 1), expected)
        assert expected.std(0).max() > 0.02, "the weights depend on the sample"


def test_soft_modules_begin_with_equal_shares() -> None:
    torch.manual_seed(0)
    trunk = build("trunk", {"name": "soft_modules", "depth": 4, "modules": 4}, features=F, context=E, num_tasks=K)
    context = TaskContext(torch.zeros(9, dtype=torch.int64), torch.randn(9, E))
    for weights in trunk.routing(torch.randn(9, F), context):
        torch.testing.assert_close(weights, torch.full_like(weights, 0.25), rtol=0, atol=0.02)


# --- diversity ------------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    """Of (1/2, 1/4, 1/4): 1/2 log 2 + 2 * 1/4 * 2 log 2 = 1.5 log 2. Of certainty: 0, with a finite gradient."""
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], requires_grad=True)
    torch.testing.assert_close(entropy(p), torch.tensor([1.5, 0.0]) * torch.log(torch.tensor(2.0)))
    entropy(p).sum().backward()
    assert torch.isfinite(p.grad).all()


def test_diversity_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutual information of task and module, of the two tasks that are there.

    Task 0 uses modules (3/4, 1/4) on average of (1, 0) and (1/2, 1/2); task 2 uses (1/4, 3/4). Together (1/2, 1/2):
    log 2 - H(1/4), H(1/4) = 1/4 log 4 + 3/4 log(4/3) = 2 log 2 - 3/4 log 3. So I = 3/4 log 3 - log 2, times 1/2.
    """
    trunk, x, _, _ = made(name="soft_modules", diversity=0.5)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)[:, None]
    monkeypatch.setattr(trunk, "routing", lambda features, context: [weights])
    context = TaskContext(torch.tensor([0, 0, 2]), torch.zeros(3, E, dtype=torch.float64))
    loss, metrics = trunk.aux(x[0, :3], context)
    log2, log3 = torch.tensor([2.0, 3.0], dtype=torch.float64).log()
    close(loss, -0.5 * (0.75 * log3 - log2))
    nan = float("nan")
    own = 2 * log2 - 0.75 * log3
    expected = {
        "routing_0_0": [0.75, nan, 0.25],
        "routing_0_1": [0.25, nan, 0.75],
        "routing_entropy": [float(log2) / 2, nan, float(own)],
    }
    assert metrics.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(metrics[key], torch.tensor(values, dtype=torch.float64), equal_nan=True)
