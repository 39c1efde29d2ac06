"""Scaling of values, with statistics per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtrl import per_task
from mtrl.checks import positive
from mtrl.nn.heads import PerTaskHead
from mtrl.registry import register
from mtrl.types import ONE_PROCESS, Metrics, Ranks, TaskAxes


class RewardSizes(nn.Module):
    """Statistics of the size of each task's rewards."""

    ranks: Ranks = ONE_PROCESS
    """Whose rewards are added up."""
    task_axes: ClassVar[TaskAxes] = {"sizes": (0,), "squares": (0,)}
    sizes: Tensor
    squares: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def typical(self) -> Float[Tensor, " K"]:
        """Sum r^2 / sum |r| over all rewards so far; 1 as long as all are zero.

        This is the mean of |r| weighted by |r|, so that steps without a reward do not lower it.
        """
        return (self.squares / self.sizes).where(self.sizes > 0, 1)

    def add(self, reward: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> None:
        """Adds rewards to the statistics."""
        of = (reward.abs().double(), reward.double().square())
        sizes, squares = self.ranks.sum(torch.stack([per_task.total(x, task, len(self.sizes)) for x in of]))
        self.sizes += sizes
        self.squares += squares


class ValueNorm(nn.Module):
    """Base of the value scalings, which keep the value targets of all tasks at one scale."""

    ranks: Ranks = ONE_PROCESS
    """Whose samples an `update` is with: the statistics must become the same in all of them."""
    requires_per_task_head = False
    discount: float | None = None
    """Discount of the `largest_return` of episodes that `observe` needs, for which rewards are kept; None for none."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.rewards = RewardSizes(num_tasks)

    @property
    def sigma(self) -> Float[Tensor, " K"]:
        """Scale of each task's values, in units of its reward."""
        raise NotImplementedError

    @property
    def floor(self) -> Float[Tensor, " K"]:
        """Lower bound of the divisor of values or advantages: a tenth of the size of a typical reward.

        While a task has no rewards that distinguish states, its values differ only by the network's errors. Divided by
        their standard deviation, however small, these would count as much as meaningful advantages.
        """
        return 0.1 * self.rewards.typical

    @torch.no_grad()
    def update(
        self,
        target: Float[Tensor, "*batch"],
        reward: Float[Tensor, "*batch"],
        task: Int[Tensor, "*batch"],
        heads: Sequence[nn.Module],
    ) -> None:
        """Updates statistics with unnormalised value targets and rewards, and rescales `heads` to preserve values."""
        self.rewards.add(reward, task)

    def observe(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        """Receives E episodes that ended together (`EpisodeStatistics.episode_listeners`)."""

    def restart(self) -> None:
        """Called when the networks are reset (`Resets`)."""

    def normalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Converts values from units of the reward to those that the network learns."""
        raise NotImplementedError

    def denormalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The inverse of `normalise`."""
        raise NotImplementedError


@register("value_norm", "none")
class NoValueNorm(ValueNorm):
    """Learns values in the units of the reward.

    Use it where the rewards of all tasks have one scale that is known.
    """

    unit: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("unit", torch.ones(num_tasks), persistent=False)

    @property
    def sigma(self) -> Float[Tensor, " K"]:
        return self.unit

    def normalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return value

    def denormalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return value


@register("value_norm", "popart")
class PopArt(ValueNorm):
    """Standardises value targets per task, and rescales the value heads to preserve their outputs.

    Hessel et al., "Multi-task Deep RL with PopArt" (2018), section 3; van Hasselt et al. (2016) for the first updates.
    First and second moments mu, nu move towards each update's per-task means; sigma = sqrt(nu - mu^2), clipped to
    `floor` and `sigma_max`. A task absent from an update keeps its statistics.

    Use it where rewards differ between tasks, or their scale is unknown. It needs a linear value head for each task.

    Differences from the paper:
        1. The step size is max(beta, 1 / number of updates of that task) instead of a constant beta: the first update
           sets the statistics, so that a run of a few hundred updates is not spent on finding the scale. (The debiased
           step of the 2016 paper has the same purpose.)
        2. The lower clip is relative to the task's rewards instead of 1e-4.

    Args:
        beta: Step size of the moments.
        sigma_max: Upper clip of sigma.
    """

    requires_per_task_head = True
    mu: Tensor
    nu: Tensor
    updates: Tensor
    task_axes: ClassVar[TaskAxes] = {"mu": (0,), "nu": (0,), "updates": (0,)}

    def __init__(self, num_tasks: int, beta: float = 3e-4, sigma_max: float = 1e6) -> None:
        super().__init__(num_tasks)
        if not 0 < beta <= 1:
            raise ValueError(f"beta must be in (0, 1], not {beta}.")
        self.beta, self.sigma_max = beta, sigma_max
        # float64, because nu - mu^2 cancels if a task's returns are large and similar.
        self.register_buffer("mu", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("nu", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(num_tasks, dtype=torch.int64))

    @property
    def sigma(self) -> Float[Tensor, " K"]:
        variance = (self.nu - self.mu.square()).clamp(min=0)
        return variance.sqrt().clamp(min=self.floor).clamp(max=self.sigma_max)

    @torch.no_grad()
    def update(
        self,
        target: Float[Tensor, "*batch"],
        reward: Float[Tensor, "*batch"],
        task: Int[Tensor, "*batch"],
        heads: Sequence[nn.Module],
    ) -> None:
        """Moves the statistics towards unnormalised targets ("ART") and rescales the heads ("POP")."""
        num_tasks = self.mu.shape[0]
        old_mu, old_sigma = self.mu.clone(), self.sigma.clone()
        super().update(target, reward, task, heads)
        target = target.double()
        of = (torch.ones_like(target), target, target.square())
        sums = torch.stack([per_task.total(x, task, num_tasks) for x in of])
        count, first, second = self.ranks.sum(sums)
        present = count > 0
        self.updates += present
        step = (1.0 / self.updates.clamp(min=1).double()).clamp(min=self.beta) * present
        self.mu.lerp_(first / count.clamp(min=1), step)
        self.nu.lerp_(second / count.clamp(min=1), step)
        scale, shift = old_sigma / self.sigma, (old_mu - self.mu) / self.sigma
        for head in heads:
            if not isinstance(head, PerTaskHead):
                raise ValueError("PopArt needs per-task value heads: set network.head=per_task.")
            head.weight.mul_(scale[:, None, None])
            head.bias.mul_(scale[:, None]).add_(shift[:, None])

    def normalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return ((value - self.mu[task]) / self.sigma[task]).to(value.dtype)

    def denormalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return (value * self.sigma[task] + self.mu[task]).to(value.dtype)


class Division(ValueNorm):
    """Base of the scalings that divide a task's values by `sigma`, which subclasses define."""

    def normalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return (value / self.sigma[task]).to(value.dtype)

    def denormalise(self, value: Float[Tensor, "*batch"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return (value * self.sigma[task]).to(value.dtype)


@register("value_norm", "return_range")
class ReturnRange(Division):
    """Divides by the largest return seen in the task, so that values lie within +-`v_max`.

    Nauman et al., "Bigger, Regularized, Categorical" (2025): sigma = (max |G| + alpha |target entropy| / (2 (1 -
    gamma))) / v_max over the discounted returns G of all steps of finished episodes; the second term makes room for
    the entropy in SAC's values. It is 1 as long as all returns are zero.

    Use it with a categorical value head, whose range is bounded.

    Differences from the authors' code:
        1. Values are divided where they are learned, instead of rewards where they are sampled. A temperature is
           therefore in units of its task's reward, and so is the room for entropy.

    Args:
        v_max: Bound of the normalised values, which is the end of a categorical head's range; 10 in the paper.
        entropy: Returns alpha |target entropy| (K,); None without temperatures.
    """

    largest: Tensor
    task_axes: ClassVar[TaskAxes] = {"largest": (0,)}

    def __init__(
        self, num_tasks: int, gamma: float = 0.99, v_max: float = 10.0, entropy: Callable[[], Tensor] | None = None
    ) -> None:
        super().__init__(num_tasks)
        positive(v_max=v_max)
        if not gamma < 1:
            raise ValueError(f"returns have a range for gamma < 1 only, not for {gamma}.")
        self.gamma, self.discount, self.v_max, self.entropy = gamma, gamma, v_max, entropy
        self.register_buffer("largest", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def sigma(self) -> Float[Tensor, " K"]:
        room = 0.0 if self.entropy is None else self.entropy() / (2 * (1 - self.gamma))
        bound = self.largest + room
        return (bound / self.v_max).where(bound > 0, 1)

    def observe(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        seen = results["largest_return"].to(self.largest)
        self.largest.scatter_reduce_(0, task.to(seen.device), seen, "amax")


@register("value_norm", "mean_reward")
class MeanReward(Division):
    """Scales mean rewards to that of the task with the largest, as measured when the networks were last reset.

    Cho et al., "ARS: Adaptive Reward Scaling for Multi-Task RL" (2025): rewards times c_k = max_j mean(r_j) /
    mean(r_k), so sigma_k = 1 / c_k. It changes only at resets (`resets`), because targets change with it; until
    all tasks have finished an episode, also with each episode. It is 1 for a task without rewards so far.

    Use it with `agent=sac` and `resets`, as it was published.

    Differences from the paper:
        1. Values are divided where they are learned, instead of rewards where they are sampled.
        2. The mean is over the steps of all finished episodes instead of a replay, which not every learner has, and of
           the magnitude of each episode's return, because rewards may be negative.
        3. sigma is at least `minimum`.

    Args:
        minimum: Lower bound of sigma.
    """

    reward: Tensor
    steps: Tensor
    scale: Tensor
    settled: Tensor
    task_axes: ClassVar[TaskAxes] = {"reward": (0,), "steps": (0,), "scale": (0,)}

    def __init__(self, num_tasks: int, minimum: float = 1e-3) -> None:
        super().__init__(num_tasks)
        positive(minimum=minimum)
        self.minimum = minimum
        self.register_buffer("reward", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("settled", torch.tensor(False))

    @property
    def sigma(self) -> Float[Tensor, " K"]:
        return self.scale

    def observe(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        task = task.to(self.reward.device)
        self.settled &= self.steps.all()  # no longer if `init_from` added tasks
        self.reward.index_add_(0, task, results["return"].abs().to(self.reward))
        self.steps.index_add_(0, task, results["length"].to(self.steps))
        if not self.settled:
            self.restart()
            self.settled.copy_(self.steps.all())

    def restart(self) -> None:
        mean = self.reward / self.steps.clamp(min=1)
        self.scale.copy_((mean / mean.max()).clamp(min=self.minimum).where(mean > 0, 1))
