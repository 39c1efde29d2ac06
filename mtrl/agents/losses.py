"""The mathematics of the learners as pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtrl import per_task
from mtrl.types import ONE_PROCESS, NonFiniteLossError, Ranks


def require_finite(
    values: Float[Tensor, "*samples"], task: Int[Tensor, "*samples"], ranks: Ranks = ONE_PROCESS
) -> None:
    """Raises `NonFiniteLossError` in every rank, with the tasks of NaN or infinite samples of any of them."""
    finite = torch.isfinite(values)
    if not ranks.all(bool(finite.all())):
        tasks = ranks.gather(task[~finite].unique().tolist())
        raise NonFiniteLossError(sorted({one for of_rank in tasks for one in of_rank}))


def per_task_standardise(
    values: Float[Tensor, "*samples"],
    task: Int[Tensor, "*samples"],
    chosen: Bool[Tensor, "*samples"],
    floor: Float[Tensor, " K"],
    ranks: Ranks = ONE_PROCESS,
) -> Float[Tensor, "*samples"]:
    """Shifts and scales each task's samples so that the `chosen` have mean 0 and (population) standard deviation 1.

    Mean and standard deviation are those of all ranks together.

    The divisor is at least `floor` (K,), so a smaller standard deviation is not scaled up to 1. If it is no larger than
    the rounding error of the values in their precision, all samples of the task become 0.
    """

    def totals(*of_each: Tensor) -> Float[Tensor, "n K"]:
        return ranks.sum(torch.stack([per_task.total(x.where(chosen, 0), task, len(floor)) for x in of_each]))

    exact = values.double()
    count, first, size = totals(torch.ones_like(exact), exact, exact.abs())
    count = count.clamp(min=1)
    centred = exact - (first / count)[task]
    (second,) = totals(centred.square())
    spread = (second / count).sqrt()
    rounding = torch.finfo(values.dtype).eps * size / count
    divisor = spread.clamp(min=floor).where(spread > rounding, torch.inf)
    return (centred / divisor[task]).to(values.dtype)


def td_target(
    reward: Float[Tensor, "*batch"],
    continuation: Float[Tensor, "*batch"],
    next_value: Float[Tensor, "*batch"],
    gamma: float,
) -> Float[Tensor, "*batch"]:
    """r + gamma V(s') where the task continues (`continuation` 1, also at a time limit), r where it ended (0)."""
    return reward + gamma * continuation * next_value


def vtrace(
    log_rho: Float[Tensor, "T B"],
    reward: Float[Tensor, "T B"],
    discount: Float[Tensor, "T B"],
    done: Float[Tensor, "T B"],
    value: Float[Tensor, "T B"],
    next_value: Float[Tensor, "T B"],
    lambda_: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg_rho: float = 1.0,
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """V-trace targets, advantages and their weights (Espeholt et al. 2018, equation 1 and section 4.2).

    With log_rho = 0 and clips of at least 1 the advantages are GAE(lambda) and the targets TD(lambda) returns.

    Args:
        log_rho: Log-ratio of the current to the behaviour policy for the action taken; minus infinity where no policy
            chose the action, so that nothing is learned from it.
        discount: gamma, zero where the task terminated.
        done: 1 where an episode terminated or was truncated (later steps belong to another episode), else 0.
        value: V(s_t).
        next_value: V(s_{t+1}) of the state that the step led to, also if the episode was truncated there.
        lambda_: Decay of the traces; 1 in the paper.

    Returns:
        Targets v_s, advantages r + gamma q - V, and their weights min(clip_pg_rho, rho) in the policy gradient. q
        mixes the next target and the next value by lambda, so that on-policy V-trace with lambda is GAE.
    """
    rho = log_rho.exp()
    delta = rho.clamp(max=clip_rho) * (reward + discount * next_value - value)
    trace = lambda_ * rho.clamp(max=clip_c) * discount * (1 - done)
    correction = torch.zeros_like(value)
    following = torch.zeros_like(value[0])
    for t in reversed(range(len(value))):
        following = delta[t] + trace[t] * following
        correction[t] = following
    # v_{t+1} - V(s_{t+1}), zero across an episode's end and after the last step
    next_correction = torch.cat([correction[1:], torch.zeros_like(correction[:1])]) * (1 - done)
    q = reward + discount * (next_value + lambda_ * next_correction)
    return value + correction, q - value, rho.clamp(max=clip_pg_rho)


def clipped_surrogate(
    ratio: Float[Tensor, "*batch"], advantage: Float[Tensor, "*batch"], clip: float
) -> Float[Tensor, "*batch"]:
    """PPO's objective, to maximise (Schulman et al. 2017, equation 7); an infinite clip gives the policy gradient."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
