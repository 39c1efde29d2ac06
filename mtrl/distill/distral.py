"""Distral: task policies that are held near a shared policy, which is distilled from them.

Teh et al., "Distral: Robust Multitask Reinforcement Learning" (2017). Pure functions, in the symbols of the paper: pi_0
is the shared policy and pi_i that of task i. Together they maximise (equation 1)

    sum_i E[ sum_t gamma^t ( r_t + (alpha / beta) log pi_0(a_t | s_t) - (1 / beta) log pi_i(a_t | s_t) ) ].

`alpha` and `beta` are numbers, or tensors that broadcast with the other arguments.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.types import UserError


def strengths(c_kl: float, c_ent: float) -> tuple[float, float]:
    """alpha and beta of the costs of the KL divergence to pi_0 and of (missing) entropy.

    Raises:
        UserError: One is negative, or both are zero.
    """
    not_negative(c_kl=c_kl, c_ent=c_ent)
    if c_kl + c_ent == 0:
        raise UserError("c_kl and c_ent are both 0, so that nothing would hold the task policies: let one be above 0.")
    return c_kl / (c_kl + c_ent), 1 / (c_kl + c_ent)


def regularised_reward(
    reward: Float[Tensor, "*batch"],
    log_prob: Float[Tensor, "*batch"],
    shared_log_prob: Float[Tensor, "*batch"],
    c_kl: float,
    c_ent: float,
) -> Float[Tensor, "*batch"]:
    """r + (alpha / beta) log pi_0(a | s) - (1 / beta) log pi_i(a | s), which the costs may all be zero in."""
    return reward + c_kl * shared_log_prob - (c_kl + c_ent) * log_prob


def two_column_logits(
    shared_logits: Float[Tensor, "*batch A"],
    task_logits: Float[Tensor, "*batch A"],
    alpha: float | Tensor,
    beta: float | Tensor,
) -> Float[Tensor, "*batch A"]:
    """Logits alpha h_0 + beta f_i of a task policy in two columns (equation 8); h_0 can be log pi_0."""
    return alpha * shared_logits + beta * task_logits


def soft_value(
    q: Float[Tensor, "*batch A"],
    shared_log_probs: Float[Tensor, "*batch A"],
    alpha: float | Tensor,
    beta: float | Tensor,
) -> Float[Tensor, "*batch"]:
    """V = (1 / beta) log sum_a pi_0(a)^alpha exp(beta Q(a)) (equation 2), the value of the best policy.

    This is the one in two columns with f_i = Q. Where alpha is 0, it is that of plain soft Q-learning.
    """
    logits = two_column_logits(shared_log_probs, q, alpha, beta)
    return (logits.logsumexp(-1, keepdim=True) / beta).squeeze(-1)


def centroid(
    task_probs: Float[Tensor, "K *states A"], visits: Float[Tensor, "K *states"], prior: float = 0.0
) -> Float[Tensor, "*states A"]:
    """The shared policy that is best for given task policies: their mean, weighted by the visits to each state.

    There the gradient of the objective with respect to h_0, (alpha / beta) sum_i visits_i (pi_i - pi_0), is zero.

    Args:
        prior: Visits to each state that count as those of a uniform policy.
    """
    weighted = (visits[..., None] * task_probs).sum(0) + prior / task_probs.shape[-1]
    return weighted / weighted.sum(-1, keepdim=True)
