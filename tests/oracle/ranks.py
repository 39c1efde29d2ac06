"""Learners that learn from a joint batch: in one process, or as a program in several, each with its part.

python -m tests.oracle.ranks FOLDER    # in every rank, which writes what it found to a file of its number

The ranks also share the work of learning each case in one process. (In pytest, where shapes and types are checked, that
takes many times as long.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from mtrl.agents.components import Components
from mtrl.build import build_episodes, build_learner
from mtrl.optim.aggregation import pcgrad
from mtrl.parallel.ranks import started_ranks
from mtrl.types import ONE_PROCESS, Batch, Ranks, Rollout
from tests.helpers import TRUNK, make_spec, of_slots, random_rollout

K, T, B, N, OBS, A = 4, 6, 8, 5, 4, 2
"""N: samples per task in a batch of SAC, of which the ranks have different numbers."""
UPDATES = 10
SPEC = make_spec(K, OBS, A)
ADAM = {"name": "adam", "lr": 0.02, "eps": 1e-3}
AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {"num_epochs": 2, "clip_range": 0.2, "normalise_advantage": True, "obs_norm": "running"},
    "impala": {"obs_norm": "running"},
    "sac": {},
}
AGGREGATIONS = ("sum", "pcgrad", "cagrad", "mgda")
PLAIN = {
    "aggregation": "sum",
    "value_norm": "none",
    "weighting": "uniform",
    "trunk": "mlp",
    "absent": False,
    "dtype": "float64",
}

Case = dict[str, Any]


def cases() -> Iterator[Case]:
    """What learns. `absent`: the first half of the slots sees nothing of task 2, and none anything of task 3."""
    for agent, aggregation, value_norm, absent in itertools.product(
        AGENTS, AGGREGATIONS, ("none", "popart"), (False, True)
    ):
        yield {**PLAIN, "agent": agent, "aggregation": aggregation, "value_norm": value_norm, "absent": absent}
    for agent, aggregation in itertools.product(AGENTS, AGGREGATIONS):
        case = {**PLAIN, "agent": agent, "aggregation": aggregation, "value_norm": "popart", "absent": True}
        yield {**case, "dtype": "float32"}
    for weighting in ("gradnorm", "famo"):
        yield {**PLAIN, "agent": "ppo", "weighting": weighting, "absent": True}
    for aggregation in ("mean", "gradvac"):
        yield {**PLAIN, "agent": "impala", "aggregation": aggregation, "trunk": "soft_sharing", "absent": True}


def make_learner(case: Case, ranks: Ranks) -> Any:
    torch.manual_seed(0)  # the same weights everywhere
    none, sampling = {"name": "none"}, {"name": "uniform"}
    trunk = TRUNK if case["trunk"] == "mlp" else {"name": case["trunk"], "width": 8, "depth": 1}
    components = Components(
        network={"trunk": trunk, "head": "per_task"},
        torso=none,
        core=none,
        task_encoder={"name": "one_hot"},
        aggregation={"name": case["aggregation"]},
        weighting={"name": case["weighting"]},
        value_norm={"name": case["value_norm"]},
        value_head={"name": "scalar"},
        spec=SPEC,
        episodes=build_episodes(sampling, SPEC, B, ranks),
        device="cpu",
    )
    learner = build_learner({"name": case["agent"], "optimizer": ADAM, **AGENTS[case["agent"]]}, components)
    if case["dtype"] == "float64":  # otherwise as they are: some statistics are float64 in any case
        learner.networks.double()
    return learner


def joint_batch(case: Case, update: int) -> Rollout | Batch:
    g = torch.Generator().manual_seed(update)
    batch: Rollout | Batch
    if case["agent"] == "sac":
        batch = Batch(
            obs=torch.randn(K, N, OBS, generator=g, dtype=torch.float64),
            action=torch.rand(K, N, A, generator=g, dtype=torch.float64) * 2 - 1,
            reward=torch.randn(K, N, generator=g, dtype=torch.float64),
            continuation=(torch.rand(K, N, generator=g) < 0.9).double(),
            next_obs=torch.randn(K, N, OBS, generator=g, dtype=torch.float64),
            task=torch.arange(K)[:, None].expand(K, N),
        )
    else:
        action = torch.randn(T, B, A, generator=g, dtype=torch.float64)
        batch = random_rollout(T, B, K, OBS, action, seed=update)
    if case["absent"]:
        first, second = (batch.task % 3).tensor_split(2, 1)
        batch = replace(batch, task=torch.cat([torch.where(first == 2, 0, first), second], 1))
    dtype = getattr(torch, case["dtype"])
    return replace(batch, **{name: x.to(dtype) for name, x in vars(batch).items() if x.is_floating_point()})


def part(batch: Rollout | Batch, rank: int, size: int) -> Rollout | Batch:
    """The rank's share of the slots, or of each task's samples."""
    if isinstance(batch, Rollout):
        bounds = [B * i // size for i in range(size + 1)]
        return of_slots(batch, bounds[rank], bounds[rank + 1])
    return replace(batch, **{name: x.tensor_split(size, 1)[rank] for name, x in vars(batch).items()})


def noise(mean: Tensor) -> Tensor:
    """Noise of an action that does not depend on which process draws it."""
    return torch.sin(37 * mean.detach())


def in_turn(gramian: Tensor) -> Tensor:
    """For each task the others in ascending order."""
    return torch.stack([torch.tensor([j for j in range(K) if j != k]) for k in range(K)], 1)


def learned(case: Case, ranks: Ranks = ONE_PROCESS) -> dict[str, Tensor]:
    """Networks, and what the weightings have learned, after some updates."""
    learner = make_learner(case, ranks)
    with mock.patch.object(torch, "randn_like", noise), mock.patch.object(pcgrad, "random_orders", in_turn):
        for update in range(UPDATES):
            learner.update(part(joint_batch(case, update), ranks.rank, ranks.size), 0.0)
    state = dict(learner.networks.state_dict())
    for name, step in learner.optimizers.items():
        state |= {f"{name}.{key}": x for key, x in step.weighting.state_dict().items() if isinstance(x, Tensor)}
    return state


def digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors.values())).hexdigest()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    with started_ranks() as ranks:
        for number, case in enumerate(cases()):
            tensors = {"ranks": learned(case, ranks)}
            assert len(set(ranks.gather(digest(tensors["ranks"])))) == 1, f"the ranks differ: {case}"
            if number % ranks.size == ranks.rank:
                tensors["alone"] = learned(case)
            found |= {
                f"{json.dumps(case)} {who} {name}": tensor.contiguous()
                for who, learner in tensors.items()
                for name, tensor in learner.items()
            }
        save_file(found, Path(folder) / str(ranks.rank))


if __name__ == "__main__":
    main(sys.argv[1])
