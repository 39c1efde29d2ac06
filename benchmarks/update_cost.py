"""Cost of one update with each gradient aggregation, trunk and switch, as a ratio to `sum` with an MLP of that width.

    python benchmarks/update_cost.py --tasks 10 --output results/update_cost_mt10.json
    python benchmarks/update_cost.py --tasks 50 --without nddr sluice cross_stitch soft_sharing --output cost.json
    python benchmarks/update_cost.py --tasks 10 --only pcgrad cagrad "pcgrad, K backward passes"
    python benchmarks/update_cost.py --device cuda --only "sum, bfloat16" "sum, compiled" "sum, bfloat16, compiled"

Networks, batches and rollouts are those of the agents' presets on Meta-World; the data are random. Rounds alternate
between the candidates and the table shows medians over the rounds, of processor time on a CPU (so that what else runs
on the machine counts less) and of wall time on a GPU. Memory is what an update adds to that of the process at its peak.

Trunks with a column per task (cross-stitch, sluice, NDDR) send every sample through all columns, so that a sample costs
K times as much as with an MLP; with NDDR, which mixes all columns with each other, K^2 times: not with 50 tasks.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.agents.components import Components
from mtrl.build import build_episodes, build_learner
from mtrl.config import composed
from mtrl.data.experience import ending
from mtrl.optim import gradients
from mtrl.optim.aggregation import Aggregation, PCGrad
from mtrl.registry import lookup, names
from mtrl.system.tuning import keep_freed_memory
from mtrl.types import Batch, EnvSpec, Metrics, Rollout, Step

OBS, ACTIONS = 39, 4


class RandomEnv:
    """Meta-World's shapes, and nothing behind them."""

    def __init__(self, num_tasks: int, slots_per_task: int) -> None:
        self.spec = EnvSpec(
            task_names=tuple(f"task-{i}" for i in range(num_tasks)),
            obs_shape=(OBS,),
            obs_dtype=torch.float32,
            action_kind="continuous",
            action_dim=ACTIONS,
            action_mask=((True,) * ACTIONS,) * num_tasks,
            horizon=500,
            reports_success=(True,) * num_tasks,
            comparable_returns=True,
        )
        self.num_envs = num_tasks * slots_per_task
        self.task = torch.arange(self.num_envs) % num_tasks
        self.goal = torch.zeros_like(self.task)

    def reset(self, seed: int | None = None) -> Tensor:
        return torch.randn(self.num_envs, OBS)

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        raise NotImplementedError

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class OneByOne(Aggregation):
    """PCGrad as it is often written: K backward passes, then a loop over pairs of gradients of all parameters."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()

    def backward(self, losses: Tensor, parameters: Sequence[nn.Parameter], task: Tensor) -> Metrics:
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        jacobian = [torch.cat([gradient.flatten() for gradient in row]) for row in rows]
        total = torch.zeros_like(jacobian[0])
        for i, gradient in enumerate(jacobian):
            projected = gradient.clone()
            for j in torch.randperm(len(jacobian)).tolist():
                inner = projected @ jacobian[j]
                if j != i and inner < 0:
                    projected -= inner / jacobian[j].square().sum() * jacobian[j]
            total += projected / len(jacobian)
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        return {}


class TorchJDEngine(Aggregation):
    """TorchJD's way from losses to gradients, with its PCGrad."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        from torchjd.aggregation import PCGrad

        self.aggregator = PCGrad()

    def backward(self, losses: Tensor, parameters: Sequence[nn.Parameter], task: Tensor) -> Metrics:
        from torchjd.autojac import backward, jac_to_grad

        backward(losses, inputs=parameters)
        jac_to_grad(parameters, self.aggregator)
        return {}


class BatchedBackwards(PCGrad):
    """Our PCGrad when it has to do K backward passes, in one batched call."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()

    def backward(self, losses: Tensor, parameters: Sequence[nn.Parameter], task: Tensor) -> Metrics:
        with mock.patch.object(gradients, "_find_uses", return_value=[]):
            return super().backward(losses, parameters, task)


OTHERS: dict[str, type[Aggregation]] = {
    "pcgrad, K backward passes": OneByOne,
    "pcgrad, K batched": BatchedBackwards,
    "pcgrad, TorchJD": TorchJDEngine,
}
SWITCHES = ("sum, bfloat16", "sum, compiled", "sum, bfloat16, compiled")


def make_update(agent: str, num_tasks: int, device: str, aggregation: str, trunk: str) -> Callable[[], Any]:
    """One update of a new learner."""
    torch.manual_seed(0)
    ours = "sum" if aggregation in (*OTHERS, *SWITCHES) else aggregation
    config = composed([f"agent={agent}", f"aggregation={ours}"], "train")
    trunk_node = config["network"]["trunk"]
    if trunk != "mlp":
        width = (
            {"width": trunk_node["width"]} if "width" in inspect.signature(lookup("trunk", trunk)).parameters else {}
        )
        trunk_node = {"name": trunk, **width}
    env = RandomEnv(num_tasks, config["data"]["slots_per_task"])
    components = Components(
        network={**config["network"], "trunk": trunk_node},
        torso=config["torso"],
        core=config["core"],
        task_encoder=config["task_encoder"],
        aggregation=config["aggregation"],
        weighting={"name": "uniform"},
        value_norm=config["value_norm"],
        value_head=config["value_head"],
        spec=env.spec,
        episodes=build_episodes(config["task_sampling"], env.spec, env.num_envs),
        device=device,
        compile=aggregation.endswith("compiled"),
    )
    precision = "bfloat16" if "bfloat16" in aggregation else "float32"
    learner = build_learner(config["agent"], components, precision=precision)
    if aggregation in OTHERS:
        for name in learner.optimizers.keys() - {"temperature"}:
            learner.optimizers[name].aggregation = OTHERS[aggregation](num_tasks)
    data = random_data(learner, config["data"], env, device)
    return functools.partial(learner.update, data, 0.0)


def random_data(learner: Learner, node: dict[str, Any], env: RandomEnv, device: str) -> Batch | Rollout:
    """A batch as SAC takes it, or a rollout."""
    k = env.spec.num_tasks
    if "batch_size" in node:
        n = node["batch_size"]
        batch = Batch(
            obs=torch.randn(k, n, OBS),
            action=torch.rand(k, n, ACTIONS) * 2 - 1,
            reward=torch.rand(k, n),
            continuation=torch.ones(k, n),
            next_obs=torch.randn(k, n, OBS),
            task=torch.arange(k)[:, None].expand(k, n),
        )
        return Batch(**{key: tensor.to(device) for key, tensor in vars(batch).items()})
    shape = (node["rollout_length"], env.num_envs)
    obs, task = torch.randn(*shape, OBS), env.task.expand(shape)
    with torch.no_grad():
        action, log_prob = learner.policy(obs.to(device), task.to(device)).sample()
    done = torch.zeros(shape, dtype=torch.bool)
    ends, end_obs = ending(done, torch.randn(*shape, OBS))
    rollout = Rollout(
        obs=obs,
        action=action,
        log_prob=log_prob,
        reward=torch.rand(shape),
        terminated=done,
        truncated=done,
        continuation=torch.ones(shape),
        ends=ends,
        end_obs=end_obs,
        task=task,
        core_state=torch.zeros(env.num_envs, 0),
    )
    return Rollout(**{key: tensor.to(device) for key, tensor in vars(rollout).items()})


def measure(update: Callable[[], Any], device: str) -> tuple[float, float]:
    """Milliseconds of one update, of the processor on a CPU and else of the clock, and the megabytes that it adds."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        update()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start), (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory that the allocator keeps
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = resident("VmRSS"), time.process_time()
    update()
    return 1e3 * (time.process_time() - start), (resident("VmHWM") - before) / 1e6


def resident(field: str) -> int:
    """A field of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def compare(
    agent: str,
    num_tasks: int,
    device: str,
    rounds: int,
    slow_rounds: int,
    only: Sequence[str],
    without: Sequence[str],
) -> list[dict[str, Any]]:
    """Prints the table of one agent and number of tasks, and returns its rows."""
    candidates = {("sum", "mlp"): rounds}
    candidates |= {(name, "mlp"): rounds for name in (*names("aggregation"), *SWITCHES)}
    candidates |= {("sum", name): rounds for name in names("trunk") if name != "grouped"}  # whose groups a user names
    candidates |= {(name, "mlp"): slow_rounds for name in OTHERS}
    if only:
        candidates = {key: n for key, n in candidates.items() if key == ("sum", "mlp") or set(key) & set(only)}
    candidates = {key: n for key, n in candidates.items() if not set(key) & set(without)}
    updates = {key: make_update(agent, num_tasks, device, *key) for key, n in candidates.items() if n}
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in updates}
    for update in updates.values():
        update()  # the first one makes the optimiser's state
    for i in range(rounds):
        for key, update in updates.items():
            if i < candidates[key]:
                measured[key].append(measure(update, device))
    print(f"\n{agent}, {num_tasks} tasks, {device}")
    print(f"{'aggregation':28}{'trunk':16}{'ms':>8}{'ratio':>8}{'MB':>8}{'ratio':>8}")
    rows = []
    for aggregation, trunk in updates:
        row: dict[str, Any] = {"agent": agent, "tasks": num_tasks, "aggregation": aggregation, "trunk": trunk}
        pairs = zip(measured[aggregation, trunk], measured["sum", "mlp"], strict=False)  # slow ones have fewer rounds
        own, base = (np.array(side) for side in zip(*pairs, strict=True))
        row["ms"], row["mb"] = np.median(own, axis=0).tolist()
        row["of_ms"], row["of_mb"] = np.median(own / base, axis=0).tolist()
        rows.append(row)
    for row in sorted(rows, key=lambda row: (row["trunk"] != "mlp", row["ms"])):
        print(
            f"{row['aggregation']:28}{row['trunk']:16}"
            f"{row['ms']:8.0f}{row['of_ms']:8.2f}{row['mb']:8.0f}{row['of_mb']:8.2f}",
            flush=True,
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[10])
    parser.add_argument("--agents", nargs="+", default=["sac", "impala"], choices=("sac", "impala", "ppo"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of those with K backward passes; 0: without them")
    parser.add_argument("--only", nargs="+", default=[], help="names of aggregations and trunks")
    parser.add_argument("--without", nargs="+", default=[], help="names of aggregations and trunks")
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers, written after each table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    machine = {"device": options.device, "threads": options.threads, "torch": torch.__version__}
    command = shlex.join(["python", "benchmarks/update_cost.py", *(sys.argv[1:] if arguments is None else arguments)])
    rounds, chosen = (options.rounds, options.slow_rounds), (options.only, options.without)
    rows = []
    for num_tasks in options.tasks:
        for agent in options.agents:
            rows += compare(agent, num_tasks, options.device, *rounds, *chosen)
            if options.output:
                options.output.write_text(json.dumps({**machine, "command": command, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
