"""Measures of task relations find groups that were planted in tasks, and claim none where there are none.

Nine tasks: a point must go to the origin in one step, from the state x with the action a to B_k x + a. In a group, B_k
is the same up to noise; the three groups are opposed: their B_k add up to zero. Without groups, every task has a random
B_k of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import mtrl.relate.measures  # noqa: F401  # registers relations
from mtrl.nn.networks import PolicyNetwork, build_policy
from mtrl.optim.aggregation import Mean, MeasuredMean
from mtrl.optim.aggregation.base import shared_and_per_task
from mtrl.optim.lookahead import lookahead
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.optim.weighting import Uniform
from mtrl.registry import build
from mtrl.relate.grouping import GROUPINGS, structure_p_value
from mtrl.relate.probe import Probe
from mtrl.relate.transfer import auc, transfer_matrix
from mtrl.run.logger import Logger
from tests.helpers import describe, make_spec

K, D, A, SEEDS = 9, 6, 3, 10


class Case(NamedTuple):
    """A network, and the measures that look at it."""

    measures: tuple[str, ...]
    head: str
    trunk: dict[str, Any]
    updates: int


CASES = (
    Case(
        ("cka", "rsa", "attribution", "embedding", "gradient", "lookahead"),
        "shared",
        {"name": "mlp", "width": 32, "depth": 2},
        400,
    ),
    Case(("routing",), "shared", {"name": "soft_modules", "width": 16, "depth": 2}, 300),
    Case(("heads", "heads_low_rank"), "per_task", {"name": "mlp", "width": 32, "depth": 1}, 150),
)
MEASURES = ("transfer", *(measure for case in CASES for measure in case.measures))
WEAK = {"embedding", "routing"}
"""Measures that miss the groups in some seeds."""


def dynamics(seed: int, planted: bool) -> tuple[np.ndarray, list[list[int]]]:
    """Where a state leads in each task (K, A, D), and the groups."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(K, A, D))
    if not planted:
        return own, []
    group, opposed = rng.permutation(np.arange(K) % 3), rng.normal(size=(3, A, D))
    opposed = opposed - opposed.mean(0)
    return opposed[group] + 0.2 * own, sorted(np.flatnonzero(group == g).tolist() for g in range(3))


def trained(network: PolicyNetwork, moves: np.ndarray, run: Path, seed: int, updates: int) -> None:
    """Minimises the squared distance from the origin after an action, and logs what tasks do to each other."""
    g, parameters = torch.Generator().manual_seed(seed), list(network.parameters())
    optimizer = build("optimizer", {"name": "adam", "lr": 5e-3}, parameters=parameters)
    step, measured = (
        MultiTaskOptimizer(parameters, optimizer, Uniform(), mean, 1e9, has_positive=True)
        for mean in (Mean(), MeasuredMean())
    )
    logger, task = Logger(run, [str(k) for k in range(K)]), torch.arange(K)[:, None].expand(K, 16)
    leads = torch.from_numpy(moves).float()

    def losses(obs: Tensor) -> Tensor:
        distribution: Any = network(obs, task)
        return (obs @ leads.mT + distribution.mean).square().sum(-1).mean(1)

    for update in range(updates):
        obs = torch.randn(K, 16, D, generator=g)
        if update % 25:
            step(task, positive=losses(obs))
        else:
            metrics = measured(task, positive=losses(obs))
            ahead = lookahead(lambda obs=obs: losses(obs), optimizer, shared_and_per_task(parameters)[0])
            logger.log(update, {"grad/policy_cosine": metrics["cosine"], "grad/lookahead": ahead})
    logger.close()


def transfer(moves: np.ndarray, seed: int) -> np.ndarray:
    """Forward transfer of a linear policy, from the success in each of 20 steps of gradient descent."""
    obs = np.random.default_rng(seed).normal(size=(200, D))

    def learned(weight: np.ndarray, task: int) -> tuple[np.ndarray, float]:
        curve = []
        for update in range(20):
            after = obs @ (moves[task] + weight).T
            curve.append((update + 1.0, float((np.linalg.norm(after, axis=1) < 1).mean())))
            weight = weight - 0.2 * after.T @ obs / len(obs)
        return weight, auc(curve)

    names = [str(task) for task in range(K)]
    first = [learned(np.zeros((A, D)), task) for task in range(K)]
    scratch = {name: [area] for name, (_, area) in zip(names, first, strict=True)}
    after = {(names[i], names[j]): [learned(first[i][0], j)[1]] for i in range(K) for j in range(K) if i != j}
    matrix = transfer_matrix(names, scratch, after)
    np.fill_diagonal(matrix, 0)
    return matrix


def relations(seed: int, planted: bool, folder: Path) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    moves, groups = dynamics(seed, planted)
    found = {"transfer": transfer(moves, seed)}
    spec, obs = make_spec(K, D, A), torch.randn(90, D, generator=torch.Generator().manual_seed(seed))
    for number, case in enumerate(CASES):
        torch.manual_seed(seed)
        network = build_policy(describe("gaussian", case.head, trunk=case.trunk), spec)
        run = folder / f"{seed}_{number}"
        run.mkdir()
        trained(network, moves, run, seed, case.updates)
        probe = Probe(spec.task_names, (network,) * K, tuple(range(K)), obs, torch.arange(K).repeat_interleave(10), run)
        found |= {name: build("relation", {"name": name}, probe=probe).matrix.numpy() for name in case.measures}
    return found, groups


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planted_groups_are_found(tmp_path: Path) -> None:
    """In every seed with every grouping and the lowest p-value there can be; less often by `WEAK` measures.

    These find them in two seeds or more (p = .001 by chance: there are 280 partitions into three groups of three).
    """
    found = {name: dict.fromkeys((*GROUPINGS, "p-value"), 0) for name in MEASURES}
    for seed in range(SEEDS):
        matrices, groups = relations(seed, True, tmp_path)
        for name, matrix in matrices.items():
            for grouping, search in GROUPINGS.items():
                found[name][grouping] += search(matrix, 3) == groups
            found[name]["p-value"] += structure_p_value(matrix, 3, draws=19, seed=seed) <= 0.05
    print(f"Of {SEEDS} seeds with planted groups, found in:", *(f"{name} {counts}" for name, counts in found.items()),
          sep="\n")  # fmt: skip
    assert {name for name, counts in found.items() if min(counts.values()) < SEEDS} <= WEAK, found
    assert all(found[name][grouping] >= 2 for name in WEAK for grouping in GROUPINGS), found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_are_claimed_where_there_are_none(tmp_path: Path) -> None:
    """At a level of 1 in 20, of ten seeds at most three by each measure (p = .001 for a fourth)."""
    claimed = dict.fromkeys(MEASURES, 0)
    for seed in range(SEEDS):
        for name, matrix in relations(seed, False, tmp_path)[0].items():
            claimed[name] += structure_p_value(matrix, 3, draws=19, seed=seed) <= 0.05
    print(f"Of {SEEDS} seeds without groups, claimed in: {claimed}")
    assert max(claimed.values()) <= 3, claimed
