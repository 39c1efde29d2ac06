"""Trunks against loops over single samples and single modules, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.nn.trunks.base import Trunk, entropy
from mtrl.nn.trunks.moore import gram_schmidt
from mtrl.registry import build
from mtrl.types import TaskContext, UserError

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
    # The attention learns from the context as it is.
    trunk.routing(x, context)[0].square().sum().backward()
    assert p["attention.0.weight"].grad is not None
    assert p["task_input.weight"].grad is None


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
        trunk = build("trunk", {"name": "cross_stitch", "initial_own": 0.8}, features=F, num_tasks=num_tasks)
        torch.testing.assert_close(trunk.alpha.sum(2), torch.ones(3, num_tasks))
        assert torch.equal(trunk.alpha.diagonal(dim1=1, dim2=2).unique(), torch.tensor([0.8 if num_tasks > 1 else 1]))


def test_sluice() -> None:
    depth, half = 2, 3
    trunk, x, context, p = made(name="sluice", width=2 * half, depth=depth, orthogonality=0.5)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        networks, outputs = [s] * K, []
        for layer in range(depth):
            parts: list[Tensor] = []
            for j in range(K):
                hidden = relu(expert(p, f"layers.{layer}", j, networks[j]))
                parts += [hidden[:half], hidden[half:]]
            alpha = p["alpha"][layer]
            mixed = [sum((alpha[m, j] * parts[j] for j in range(2 * K)), torch.zeros(())) for m in range(2 * K)]
            networks = [torch.cat(mixed[2 * j : 2 * j + 2]) for j in range(K)]
            outputs.append(networks[k])
        close(out[i], sum((p["beta.weight"][k, m] * outputs[m] for m in range(depth)), torch.zeros(())))
    penalty = 0.0
    for layer in range(depth):
        weight = p[f"layers.{layer}.weight"]
        products = [weight[k, a] @ weight[k, half + b] for k in range(K) for a in range(half) for b in range(half)]
        penalty += 0.5 * sum(float(q.detach()) ** 2 for q in products) / len(products)
    assert float(trunk.aux(x, context)[0].detach()) == pytest.approx(penalty)


def test_nddr() -> None:
    trunk, x, context, p = made(name="nddr", width=4, depth=2)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        networks = [s] * K
        for layer in range(2):
            every = torch.cat([relu(expert(p, f"layers.{layer}", j, networks[j])) for j in range(K)])
            networks = [relu(expert(p, f"fusions.{layer}", j, every)) for j in range(K)]
        close(out[i], networks[k])


def test_nddr_begins_with_shares_of_each_network() -> None:
    """0.8 of its own features and 0.1 of each of the two others'."""
    trunk = build("trunk", {"name": "nddr", "width": 2, "initial_own": 0.8}, features=F, num_tasks=3)
    expected = [[0.1, 0, 0.8, 0, 0.1, 0], [0, 0.1, 0, 0.8, 0, 0.1]]
    torch.testing.assert_close(trunk.fusions[0].weight[1].detach(), torch.tensor(expected))


@pytest.mark.parametrize("penalty", ["l2", "trace_norm"])
def test_soft_sharing(penalty: str) -> None:
    trunk, x, context, p = made(name="soft_sharing", width=4, depth=2, penalty=penalty, coef=0.5)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        for layer in range(2):
            s = relu(expert(p, f"layers.{layer}", k, s))
        close(out[i], s)
    total = 0.0
    for layer in range(2):
        rows = p[f"layers.{layer}.weight"].detach().flatten(1)
        if penalty == "l2":  # over pairs of tasks, divided by K
            total += sum(float((rows[i] - rows[j]).square().sum()) for i in range(K) for j in range(i)) / K
        else:  # the square roots of the eigenvalues of the products
            total += sum(float(v) ** 0.5 for v in torch.linalg.eigvalsh(rows @ rows.T))
    loss, metrics = trunk.aux(x, context)
    assert float(loss.detach()) == pytest.approx(0.5 * total)
    assert float(metrics["unshared"]) == pytest.approx(total)


def test_modular() -> None:
    """Three tasks are two goals for two robots; the first two features are the robot's."""
    node = {"goals": [0, 1, 1], "robots": [1, 0, 1], "robot_features": 2, "interface": 4}
    trunk, x, context, p = made(name="modular", width=6, depth=2, **node)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        goal, robot = [0, 1, 1][k], [1, 0, 1][k]
        plan = expert(p, "goal_modules.layers.2", goal, relu(expert(p, "goal_modules.layers.0", goal, s[2:])))
        hidden = relu(expert(p, "robot_modules.layers.0", robot, torch.cat([relu(plan), s[:2]])))
        close(out[i], relu(expert(p, "robot_modules.layers.2", robot, hidden)))


def test_modular_by_default_has_a_goal_per_task_and_one_robot() -> None:
    trunk, *_ = made(name="modular")
    assert (trunk.goal_modules.count, trunk.robot_modules.count) == (K, 1)


@pytest.mark.parametrize("node", [{"goals": [0, 1]}, {"robots": [0, 2, 2]}, {"robot_features": F}])
def test_modular_refuses_what_does_not_fit(node: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        made(name="modular", **node)


# --- choices of the task --------------------------------------------------------------------------------------------


def test_hard_routing() -> None:
    """Soft modularization with the largest weight of each module 1 and the others 0, and the softmax's gradient."""
    node = {"width": 6, "depth": DEPTH, "modules": MODULES, "embedding": 7, "gating_width": 5}
    trunk, x, context, p = made(name="hard_routing", **node)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, _, z) in enumerate(samples(x, context)):
        f = affine(p, "encoder.2", relu(affine(p, "encoder.0", s)))
        gate = affine(p, "gate.2", relu(affine(p, "gate.0", relu(f * (p["task_input.weight"] @ z)))))
        earlier: list[Tensor] = []
        inputs = [relu(f)] * MODULES
        for layer in range(DEPTH):
            seen = gate if layer == 0 else gate * affine(p, f"route_up.{layer - 1}", torch.cat(earlier))
            rows = affine(p, f"route_down.{layer}", relu(seen)).split(MODULES)
            outputs = [expert(p, f"layers.{layer}", j, inputs[j]) for j in range(MODULES)]
            inputs = [relu(outputs[int(row.argmax())]) for row in rows]
            earlier += [torch.eye(MODULES, dtype=torch.float64)[row.argmax()] for row in rows]
        close(out[i], inputs[0])
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (trunk._choose(logits) * torch.tensor([3.0, 5.0])).sum().backward()
    share = 1 / (1 + torch.tensor(1.0).exp())  # d/dlogits of 3 p + 5 (1 - p) is -2 p (1 - p), for the other one +
    torch.testing.assert_close(logits.grad, torch.stack([-2 * share * (1 - share), 2 * share * (1 - share)])[None])


def test_soft_layer_ordering() -> None:
    trunk, x, context, p = made(name="soft_layer_ordering", width=6, depth=3)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        y = relu(affine(p, "input", s))
        for depth in range(3):
            scores = p["task_input.weight"][k, depth]
            weights = scores.exp() / scores.exp().sum()
            y = sum((weights[j] * relu(expert(p, "layers", j, y)) for j in range(3)), torch.zeros(()))
        close(out[i], y)


def test_adashare() -> None:
    trunk, x, context, p = made(name="adashare", width=6, depth=3, temperature=0.5, sparsity=0.25, sharing=0.75)
    out = trunk(x, context).flatten(0, 1)
    scores = p["task_input.weight"].detach()
    for i, (s, k, _) in enumerate(samples(x, context)):
        h = affine(p, "input", s)
        for block in range(3):
            if scores[k, block, 0] >= scores[k, block, 1]:
                h = h + affine(p, f"blocks.{block}.3", relu(affine(p, f"blocks.{block}.1", relu(h))))
        close(out[i], relu(h))
    assert 0 < int((scores[..., 0] < scores[..., 1]).sum()) < scores[..., 0].numel(), "some are skipped"

    select = torch.sigmoid((scores[..., 0] - scores[..., 1]) / 0.5)
    sparsity = sum(float(select[k, b].log()) for k in range(K) for b in range(3)) / (3 * K)
    sharing = 0.0
    for j in range(K):
        for k in range(K):
            sharing += sum((3 - b) / 3 * abs(float(select[j, b] - select[k, b])) for b in range(3)) / (3 * K * K)
    assert float(trunk.aux(x, context)[0].detach()) == pytest.approx(0.25 * sparsity + 0.75 * sharing)


def test_adashare_begins_with_all_blocks() -> None:
    trunk = build("trunk", {"name": "adashare", "width": 6}, features=F, num_tasks=K)
    context = TaskContext(torch.arange(K), torch.zeros(K, E))
    assert all((weights[..., 0] >= 0.5).all() for weights in trunk.routing(torch.randn(K, F), context))


def test_piggyback() -> None:
    trunk, x, context, p = made(name="piggyback", width=6, depth=2)
    out = trunk(x, context)
    masks = [p[f"task_input.{layer}.weight"].detach() > 5e-3 for layer in range(2)]
    for i, (s, k, _) in enumerate(samples(x, context)):
        for layer in range(2):
            weight = torch.where(masks[layer][k], p[f"layers.{layer}.weight"], 0)
            s = relu(weight @ s + p[f"layers.{layer}.bias"])
        close(out.flatten(0, 1)[i], s)
    # The gradient of a mask is that of the masked weight times the weight, for masks that are 0 too.
    out.sum().backward()
    gradient = p["task_input.1.weight"].grad
    assert gradient[~masks[1]].any()
    close(gradient.mul(masks[1]).sum(0), p["layers.1.weight"].grad * p["layers.1.weight"].detach())


def test_piggyback_begins_with_all_weights() -> None:
    torch.manual_seed(0)
    trunk = build("trunk", {"name": "piggyback", "width": 6, "depth": 1}, features=F, num_tasks=K)
    x = torch.randn(K, F)
    torch.testing.assert_close(trunk(x, TaskContext(torch.arange(K), torch.zeros(K, E))), trunk.layers[0](x).relu())


def test_mtan() -> None:
    trunk, x, context, p = made(name="mtan", width=6, depth=2, attention_width=4)
    out = trunk(x, context).flatten(0, 1)
    for i, (s, k, _) in enumerate(samples(x, context)):
        attended = s[:0]
        for block in range(2):
            u = relu(affine(p, f"first.{block}", s))
            s = relu(affine(p, f"second.{block}", u))
            inner = relu(expert(p, f"task_input.{block}.g", k, torch.cat([u, attended])))
            attended = torch.sigmoid(expert(p, f"task_input.{block}.h", k, inner)) * s
        close(out[i], attended)


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


def test_grouped() -> None:
    """Each sample through the trunk of its task's group, with the task's number in it."""
    groups = [["c"], ["a", "b"]]
    for each in ({"name": "mlp", "width": 6, "depth": 1}, {"name": "soft_sharing", "width": 6, "depth": 1}):
        torch.manual_seed(0)
        node = {"name": "grouped", "groups": groups, "each": each, "stem": {"name": "none"}}
        trunk = build("trunk", node, features=F, context=E, num_tasks=K, task_names=("a", "b", "c")).double()
        _, x, context, _ = made(name="mlp")
        out = trunk(x, context)
        for k, i in ((k, i) for k in range(K) for i in range(N)):
            group, number = [(1, 0), (1, 1), (0, 0)][int(context.task[k, i])]
            alone = TaskContext(torch.tensor(number), context.embedding[k, i])
            close(out[k, i], trunk.trunks[group](x[k, i], alone))


def test_grouped_adds_up_the_losses_of_the_groups_that_are_there() -> None:
    """Routing of each task is that of its own trunk, and none is known of the group without samples."""
    each = {"name": "soft_modules", "width": 6, "depth": 1, "embedding": 5, "gating_width": 4, "diversity": 0.5}
    node = {"name": "grouped", "groups": [["b"], ["c", "a"]], "each": each, "stem": {"name": "none"}}
    trunk = build("trunk", node, features=F, context=E, num_tasks=K, task_names=("a", "b", "c")).double()
    _, x, context, _ = made(name="mlp")
    task = context.task.clamp(max=1)  # none of c
    loss, metrics = trunk.aux(x, TaskContext(task, context.embedding))
    expected = 0.0
    for group, number, there in ((0, 0, task == 1), (1, 1, task == 0)):
        within = TaskContext(torch.full_like(task[there], number), context.embedding[there])
        of_group, of_tasks = trunk.trunks[group].aux(x[there], within)
        expected = expected + of_group
        close(metrics["routing_0_1"][1 - group], of_tasks["routing_0_1"][number])
    close(loss, expected)
    assert metrics["routing_0_1"].isnan().tolist() == [False, False, True]
    alone = trunk.aux(x[task == 1], TaskContext(task[task == 1], context.embedding[task == 1]))[1]
    assert alone["routing_0_1"].isnan().tolist() == [True, False, True]


def test_grouped_with_a_stem() -> None:
    """The stem's output, for all tasks, goes to the trunk of the group; so do its losses and diagnostics."""
    torch.manual_seed(0)
    stem = {"name": "soft_modules", "width": 6, "depth": 1, "embedding": 5, "gating_width": 4, "diversity": 0.5}
    node = {"name": "grouped", "groups": [["c"], ["a", "b"]], "each": {"name": "mlp", "width": 4, "depth": 1}}
    node["stem"] = stem
    trunk = build("trunk", node, features=F, context=E, num_tasks=K, task_names=("a", "b", "c")).double()
    _, x, context, _ = made(name="mlp")
    of_stem = trunk.stem(x, context)
    for k, i in ((k, i) for k in range(K) for i in range(N)):
        group = [1, 1, 0][int(context.task[k, i])]
        alone = TaskContext(context.task[k, i], context.embedding[k, i])
        close(trunk(x, context)[k, i], trunk.trunks[group](of_stem[k, i], alone))
    loss, metrics = trunk.aux(x, context)
    expected, of_tasks = trunk.stem.aux(x, context)
    close(loss, expected)
    assert metrics.keys() == {f"stem_{name}" for name in of_tasks}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([["a", "x"], ["b", "c"]], "Unknown task in groups: 'x'"),
        ([["a", "b"], ["b", "c"]], "every task is in one group, but b is in several"),
        ([["a"], ["b"]], "every task is in one group, but c is in none"),
        ([["a", "b", "c"], []], "a group has no tasks"),
    ],
)
def test_groups_that_do_not_fit(groups: list[list[str]], expected: str) -> None:
    node = {"name": "grouped", "groups": groups, "each": {"name": "mlp"}, "stem": {"name": "none"}}
    with pytest.raises(UserError, match=expected):
        build("trunk", node, features=F, context=E, num_tasks=K, task_names=("a", "b", "c"))
