"""What the tests of learners, data and components share: small specs, networks, and naive float64 oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

import mtrl.data
import mtrl.nn
import mtrl.optim  # noqa: F401
from mtrl.agents.components import Components
from mtrl.data.experience import EpisodeStatistics, ending
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.nn.networks import PolicyNetwork, ValueNetwork
from mtrl.nn.value_norm import ValueNorm
from mtrl.optim.multi_task import MultiTaskOptimizer
from mtrl.types import EnvSpec, Rollout

TRUNK = {"name": "mlp", "width": 8, "depth": 1}
NO_TORSO = {"name": "none"}
SCALAR = {"name": "scalar"}
SMALL: dict[str, dict[str, Any]] = {
    "soft_modules": {"embedding": 6, "gating_width": 5},
    "hard_routing": {"embedding": 6, "gating_width": 5},
    "care": {"embedding": 6},
    "mtan": {"attention_width": 5},
    "modular": {"interface": 5},
}


def names_of(num_tasks: int) -> tuple[str, ...]:
    return tuple(f"task-{i}" for i in range(num_tasks))


def small(trunk: str, tasks: Sequence[str] = names_of(3)) -> dict[str, Any]:
    """A trunk of two hidden layers of 8 units."""
    if trunk == "grouped":  # by name, so that a task is in the same group whatever the others are
        apart = [name for name in tasks if name == "task-1" or "door" in name]
        groups = [[name for name in tasks if name not in apart], apart]
        groups = [group for group in groups if group]
        return {"name": trunk, "groups": groups, "each": small("mlp"), "stem": {"name": "none"}}
    if trunk == "none":
        return {"name": trunk}
    return {"name": trunk, "width": 8, "depth": 2, **SMALL.get(trunk, {})}


def no_timer(phase: str) -> AbstractContextManager[None]:
    return nullcontext()


def make_spec(
    num_tasks: int = 3,
    obs_dim: int = 4,
    action_dim: int = 2,
    action_kind: Literal["continuous", "discrete"] = "continuous",
    action_mask: tuple[tuple[bool, ...], ...] | None = None,
) -> EnvSpec:
    return EnvSpec(
        task_names=names_of(num_tasks),
        obs_shape=(obs_dim,),
        obs_dtype=torch.float32,
        action_kind=action_kind,
        action_dim=action_dim,
        action_mask=action_mask or ((True,) * action_dim,) * num_tasks,
        horizon=None,
        reports_success=(True,) * num_tasks,
        comparable_returns=True,
    )


def describe(
    action_head: str,
    head: str = "per_task",
    obs_norm: str = "none",
    trunk: dict[str, Any] = TRUNK,
    torso: dict[str, Any] = NO_TORSO,
) -> dict[str, Any]:
    """What `build_policy` and `build_value` take: by default one hidden layer of 8 tanh units."""
    return {
        "obs_norm": {"name": obs_norm},
        "torso": torso,
        "core": {"name": "none"},
        "task_encoder": {"name": "one_hot"},
        "trunk": trunk,
        "head": head,
        "action_head": {"name": action_head},
        "column": {"name": "none"},
    }


class OneBackward(torch.autograd.Function):
    """What it is given; gradients of several losses at once do not pass it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient.sum().item()  # an error within a batched call
        return gradient


def copy_parameters(module: torch.nn.Module) -> dict[str, Tensor]:
    """Leaves of their own with a module's values, in float64."""
    return {key: p.detach().double().clone().requires_grad_() for key, p in module.named_parameters()}


def naive_network(params: dict[str, Tensor], x: Tensor, k: int, num_tasks: int, head: str = "head.") -> Tensor:
    """One sample through one hidden tanh layer on [x, one-hot(k)] and task k's linear head."""
    one_hot = torch.zeros(num_tasks, dtype=torch.float64)
    one_hot[k] = 1
    weight = torch.cat([params["trunk.input.weight"], params["trunk.task_input.weight"]], dim=1)
    hidden = torch.tanh(weight @ torch.cat([x.double(), one_hot]) + params["trunk.input.bias"])
    return params[head + "weight"][k] @ hidden + params[head + "bias"][k]


def naive_vtrace(
    log_rho: Tensor,
    reward: Tensor,
    gamma: float,
    terminated: Tensor,
    truncated: Tensor,
    value: Tensor,
    next_value: Tensor,
    lambda_: float,
    clip_rho: float,
    clip_c: float,
    clip_pg_rho: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Espeholt et al. (2018), equation 1, as the sum it is written as, in float64.

    v_s = V(x_s) + sum_t gamma^(t-s) (prod_{i=s}^{t-1} c_i) delta_t, over the steps from s to the episode's (or the
    row's) last, with c_i = lambda min(clip_c, rho_i) (remark 2). The advantage is r + gamma q - V, q the mixture
    (1 - lambda) V(x_{s+1}) + lambda v_{s+1}, and its weight min(clip_pg_rho, rho).
    """
    T, B = reward.shape
    rho = log_rho.double().exp()
    target, advantage, weight_pg = (torch.zeros(T, B, dtype=torch.float64) for _ in range(3))

    def discount(t: int, b: int) -> float:
        return 0.0 if terminated[t, b] else gamma

    def done(t: int, b: int) -> bool:
        return bool(terminated[t, b] or truncated[t, b])

    for b in range(B):
        for s in range(T):
            total = float(value[s, b])
            for t in range(s, T):
                if any(done(i, b) for i in range(s, t)):
                    break  # another episode
                weight = 1.0
                for i in range(s, t):
                    weight *= discount(i, b) * lambda_ * min(clip_c, float(rho[i, b]))
                bellman = float(reward[t, b]) + discount(t, b) * float(next_value[t, b]) - float(value[t, b])
                total += weight * min(clip_rho, float(rho[t, b])) * bellman
            target[s, b] = total
        for s in range(T):
            following = float(next_value[s, b])
            if s + 1 < T and not done(s, b):
                following = (1 - lambda_) * following + lambda_ * float(target[s + 1, b])
            q = float(reward[s, b]) + discount(s, b) * following
            advantage[s, b] = q - float(value[s, b])
            weight_pg[s, b] = min(clip_pg_rho, float(rho[s, b]))
    return target, advantage, weight_pg


def end_fields(done: Tensor, next_obs: Tensor) -> dict[str, Tensor]:
    """What a rollout says of the steps that end an episode or the rollout, from what every step led to."""
    ends, end_obs = ending(done, next_obs)
    return {"ends": ends, "end_obs": end_obs}


def next_obs_of(rollout: Rollout) -> Tensor:
    """The observation (T, B, ...) that each step led to."""
    next_obs = rollout.obs.roll(-1, dims=0)
    for step, slot, obs in zip(*rollout.ends.tolist(), rollout.end_obs, strict=True):
        next_obs[step, slot] = obs
    return next_obs


def of_slots(rollout: Rollout, begin: int, end: int) -> Rollout:
    """The rollout of some of the slots."""
    of_steps = {name: x for name, x in vars(rollout).items() if name not in ("ends", "end_obs", "core_state")}
    others = {name: x[:, begin:end] for name, x in of_steps.items()}
    inside = (rollout.ends[1] >= begin) & (rollout.ends[1] < end)
    ends = rollout.ends[:, inside] - torch.tensor([[0], [begin]])
    core_state = rollout.core_state[begin:end]
    return Rollout(**others, ends=ends, end_obs=rollout.end_obs[inside], core_state=core_state)


def random_rollout(
    T: int, B: int, num_tasks: int, obs_dim: int, action: Tensor, seed: int, done_share: float = 0.3
) -> Rollout:
    """Float64 steps of B slots that end in both ways."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(T + 1, B, obs_dim, generator=g, dtype=torch.float64)
    ended = torch.rand(T, B, generator=g) < done_share
    terminated = ended & (torch.rand(T, B, generator=g) < 0.5)
    final = torch.randn(T, B, obs_dim, generator=g, dtype=torch.float64)
    task = torch.zeros(T, B, dtype=torch.int64)
    task[0] = torch.arange(B) % num_tasks
    for t in range(1, T):  # a slot changes its task where an episode ended
        task[t] = torch.where(ended[t - 1], (task[t - 1] + 1) % num_tasks, task[t - 1])
    return Rollout(
        obs=obs[:-1],
        action=action,
        log_prob=-2 + 0.5 * torch.randn(T, B, generator=g, dtype=torch.float64),
        reward=torch.randn(T, B, generator=g, dtype=torch.float64),
        terminated=terminated,
        truncated=ended & ~terminated,
        continuation=(~terminated).double(),
        **end_fields(ended, torch.where(ended[..., None], final, obs[1:])),
        task=task,
        core_state=torch.zeros(B, 0),
    )


@dataclasses.dataclass(frozen=True)
class Given(Components):
    """Components that hands out networks and steps which a test has made itself."""

    given_policy: PolicyNetwork = dataclasses.field(kw_only=True)
    given_values: Iterator[ValueNetwork] = dataclasses.field(kw_only=True)
    given_norm: ValueNorm = dataclasses.field(kw_only=True)
    step: Callable[[nn.Module, float, bool], MultiTaskOptimizer] = dataclasses.field(kw_only=True)

    def policy(self, obs_norm: str = "none", action_head: Any = None) -> PolicyNetwork:
        return self.given_policy

    def value(self, policy: PolicyNetwork, head: str, action: bool = False, gain: float = 1.0) -> ValueNetwork:
        return next(self.given_values)

    def value_scaling(self, head: str, gamma: float, **runtime: Any) -> ValueNorm:
        return self.given_norm

    def optimizer(
        self, module: nn.Module, optimizer: Any, max_grad_norm: float, has_positive: bool, **runtime: Any
    ) -> MultiTaskOptimizer:
        return self.step(module, max_grad_norm, has_positive)


def given(
    spec: EnvSpec,
    policy: PolicyNetwork,
    values: Iterable[ValueNetwork],
    norm: ValueNorm,
    step: Callable[[nn.Module, float, bool], MultiTaskOptimizer],
    **options: Any,
) -> Given:
    """Components of networks that have been made. `step` gets a module, the largest norm, and `has_positive`."""
    none: dict[str, Any] = {"name": "none"}
    episodes = EpisodeStatistics(spec, Uniform(spec.num_tasks))
    nodes = {"network": {"head": "per_task"}, "torso": none, "core": none, "task_encoder": none, "aggregation": none}
    nodes |= {"weighting": none, "value_norm": none, "value_head": none}
    return Given(
        **nodes,
        spec=spec,
        episodes=episodes,
        device="cpu",
        given_policy=policy,
        given_values=iter(values),
        given_norm=norm,
        step=step,
        **options,
    )
