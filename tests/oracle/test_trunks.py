"""Trunks against loops over single samples and single modules, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.nn.trunks.base import Trunk, entropy
from mtrl.nn.trunks.moore import gram_schmidt
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


# --- mixtures -------------------------------------------------------------------------------------------------------


def naive_gram_schmidt(vectors: list[Tensor]) -> list[Tensor]:
    basis: list[Tensor] = []
    for vector in vectors:
        rest = vector - sum(((vector @ b) * b for b in basis), torch.zeros_like(vector))
        basis.append(rest / rest.square().sum().sqrt())
    return basis


def test_moore() -> None:
    trunk, x, context, p = made(name="moore", width=7, depth=1, experts=3)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        hidden = [relu(expert(p, "experts.layers.0", j, s)) for j in range(3)]
        basis = naive_gram_schmidt([expert(p, "experts.layers.2", j, hidden[j]) for j in range(3)])
        w = p["task_input.weight"] @ z
        close(out[i], torch.tanh(sum((w[j] * basis[j] for j in range(3)), torch.zeros(()))))


def test_gram_schmidt() -> None:
    """Orthonormal for every sample; the first k vectors span what the first k given ones do."""
    vectors = torch.randn(6, 4, 7, dtype=torch.float64)
    basis = gram_schmidt(vectors)
    close(basis @ basis.mT, torch.eye(4, dtype=torch.float64).expand(6, 4, 4))
    close((vectors @ basis.mT).triu(1), torch.zeros(6, 4, 4, dtype=torch.float64))


def test_gram_schmidt_of_dependent_vectors() -> None:
    """Experts that agree, or say nothing, give no NaN, neither in the values nor in the gradients."""
    vectors = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 0.0]], requires_grad=True)
    basis = gram_schmidt(vectors)
    basis.sum().backward()
    assert torch.isfinite(basis).all()
    assert (basis.norm(dim=-1) < 1.001).all()
    assert torch.isfinite(vectors.grad).all()


def test_paco() -> None:
    """Each sample through an MLP whose weights are the task's combination, the last (head) layer's too."""
    sets, width, outputs = 3, 6, 2
    trunk, x, context, p = made(name="paco", width=width, depth=2, sets=sets)
    head = torch.randn(outputs, sets, width + 1, dtype=torch.float64)
    out = (trunk(x, context) @ head.flatten(1).T).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        w = p["task_input.weight"] @ z
        for layer in range(2):
            weight = sum((w[j] * p[f"layers.{layer}.weight"][j] for j in range(sets)), torch.zeros(()))
            bias = sum((w[j] * p[f"layers.{layer}.bias"][j] for j in range(sets)), torch.zeros(()))
            s = relu(weight @ s + bias)
        last = sum((w[j] * head[:, j] for j in range(sets)), torch.zeros(()))
        close(out[i], last[:, :width] @ s + last[:, width])


def test_mmoe() -> None:
    trunk, x, context, p = made(name="mmoe", width=6, depth=2, experts=3)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        logits = expert(p, "task_input", k, s)
        gate = logits.exp() / logits.exp().sum()
        total = torch.zeros(6, dtype=torch.float64)
        for j in range(3):
            hidden = relu(expert(p, "experts.layers.0", j, s))
            total = total + gate[j] * relu(expert(p, "experts.layers.2", j, hidden))
        close(out[i], total)


def test_film() -> None:
    trunk, x, context, p = made(name="film", width=6, depth=2)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        modulation = p["task_input.weight"] @ z
        for layer in range(2):
            gamma, beta = modulation[12 * layer : 12 * layer + 6], modulation[12 * layer + 6 : 12 * layer + 12]
            s = relu((1 + gamma) * affine(p, f"layers.{layer}", s) + beta)
        close(out[i], s)


def test_care() -> None:
    trunk, x, context, p = made(name="care", width=6, depth=1, experts=3, embedding=4, temperature=0.5)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        inner = relu(affine(p, "context_encoder.0", relu(p["task_input.weight"] @ z)))
        z_context = affine(p, "context_encoder.2", inner)
        logits = affine(p, "attention.2", relu(affine(p, "attention.0", z_context))) / 0.5
        weights = logits.exp() / logits.exp().sum()
        encoded = torch.zeros(4, dtype=torch.float64)
        for j in range(3):
            hidden = s
            for layer in (0, 2, 4):
                hidden = expert(p, f"experts.layers.{layer}", j, hidden)
                hidden = relu(hidden) if layer < 4 else hidden
            encoded = encoded + weights[j] * hidden
        close(out[i], relu(affine(p, "hidden.0.0", torch.cat([encoded, z_context]))))


# --- one network per task -------------------------------------------------------------------------------------------


def test_cross_stitch() -> None:
    depth = 3
    trunk, x, context, p = made(name="cross_stitch", width=6, depth=depth)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        networks = [s] * K
        for layer in range(depth):
            before = [relu(expert(p, f"layers.{layer}", j, networks[j])) for j in range(K)]
            networks = [sum((p["alpha"][layer, m, j] * before[j] for j in range(K)), torch.zeros(())) for m in range(K)]
        close(out[i], networks[k])


def test_cross_stitch_units_sum_to_one_at_first() -> None:
    for num_tasks in (1, 2, 5):
        trunk = build("trunk", {"name": "cross_stitch", "own": 0.8}, features=F, num_tasks=num_tasks)
        torch.testing.assert_close(trunk.alpha.sum(2), torch.ones(3, num_tasks))
        assert torch.equal(trunk.alpha.diagonal(dim1=1, dim2=2).unique(), torch.tensor([0.8 if num_tasks > 1 else 1]))


# --- residual networks ----------------------------------------------------------------------------------------------


def layer_norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def test_bronet() -> None:
    trunk, x, context, p = made(name="bronet", width=6, depth=2)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        h = relu(layer_norm(p, "first.0", affine(p, "input", s) + p["task_input.weight"] @ z))
        for block in ("blocks.0", "blocks.1"):
            inner = relu(layer_norm(p, f"{block}.1", affine(p, f"{block}.0", h)))
            h = h + layer_norm(p, f"{block}.4", affine(p, f"{block}.3", inner))
        close(out[i], h)


def test_simba_v2() -> None:
    trunk, x, context, p = made(name="simba_v2", width=6, depth=2, expansion=2, shift=3.0)
    out = trunk(x, context).flatten(0, 1)

    def unit(v: Tensor) -> Tensor:
        return v / v.square().sum().sqrt()

    def rows(weight: Tensor) -> Tensor:
        return torch.stack([unit(row) for row in weight])

    for i, (s, _, z) in enumerate(samples(x, context)):
        start = unit(torch.cat([s, torch.tensor([3.0], dtype=torch.float64), z]))
        h = unit(p["scale"] * (rows(torch.cat([p["input.weight"], p["task_input.weight"]], 1)) @ start))
        for block in ("blocks.0", "blocks.1"):
            inner = relu(p[f"{block}.scale"] * (rows(p[f"{block}.up.weight"]) @ h))
            alpha = p[f"{block}.alpha"] * 6**0.5 / 3
            h = unit((1 - alpha) * h + alpha * unit(rows(p[f"{block}.down.weight"]) @ inner))
        close(out[i], h)
        close(h.square().sum(), torch.tensor(1.0, dtype=torch.float64))


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
