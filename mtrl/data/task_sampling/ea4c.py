"""EA4C: a recurrent actor-critic that learns which task to run next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import not_negative, positive
from mtrl.data.task_sampling.base import RecentScores, ScoreSampler
from mtrl.optim.optimizers import restore
from mtrl.registry import register


@register("task_sampling", "ea4c")
class EA4C(ScoreSampler):
    """Episodic meta-learner active sampling: p is the policy of an advantage actor-critic on the stream of episodes.

    Sharma et al., "Learning to Multi-Task by Active Sampling" (2018). A step is an episode. Input (3K): fraction of
    each task among the episodes so far, the last p, one-hot last task; then two layers of 100 units and an LSTM of 100.
    Reward: lambda (1 - a_j) for the task j just played, plus (1 - lambda) times the mean of min(1, a_i) over the worst
    K / 2 tasks, a being the mean of recent scores, within [0, 1].

    Use it in runs of many episodes: the sampler has to learn from them, too.

    Differences from the paper:
        1. One actor, and learning every `unroll` episodes with Adam. The paper's settings of the meta-learner are
           unknown; the values of `gamma`, `lr`, `entropy_coef` and `unroll` are our choice.
        2. The second term of the reward grows as the worst tasks improve. A public re-implementation of the paper's
           listing has one minus that mean; the paper's text was not available to decide which one is correct.
        3. Many slots run at once. An episode that ends counts as an action of the policy of the previous step.

    Args:
        window: Number of scores that are averaged.
        lambda_: Weight of the task just played, against that of the worst ones.
        width: Units of the layers and of the LSTM.
        unroll: Episodes between two updates of the sampler.
        gamma: Its discount.
        lr: Its learning rate.
        entropy_coef: Weight of its entropy bonus.
    """

    probability: Tensor
    start: Tensor
    inputs: Tensor
    played: Tensor
    rewards: Tensor
    steps: Tensor

    def __init__(
        self,
        num_tasks: int,
        silent_tasks: Sequence[str],
        targets: list[float] | None = None,
        baselines: list[float] | None = None,
        window: int = 10,
        lambda_: float = 0.5,
        width: int = 100,
        unroll: int = 20,
        gamma: float = 0.8,
        lr: float = 1e-3,
        entropy_coef: float = 0.02,
    ) -> None:
        super().__init__(num_tasks, silent_tasks, targets, baselines)
        positive(window=window, width=width, unroll=unroll, lr=lr)
        not_negative(gamma=gamma, entropy_coef=entropy_coef)
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must be from 0 to 1, not {lambda_}.")
        self.recent, self.lambda_ = RecentScores(num_tasks, window), lambda_
        self.gamma, self.entropy_coef = gamma, entropy_coef
        self.body = nn.Sequential(nn.Linear(3 * num_tasks, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.memory = nn.LSTMCell(width, width)
        self.policy, self.value = nn.Linear(width, num_tasks), nn.Linear(width, 1)
        nn.init.zeros_(self.policy.weight)  # uniform at first
        nn.init.zeros_(self.policy.bias)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        self.register_buffer("probability", torch.full((num_tasks,), 1 / num_tasks))
        # The unroll: the LSTM's state before it, its inputs, and the task and reward after each input.
        self.register_buffer("start", torch.zeros(2, width))
        self.register_buffer("inputs", torch.zeros(unroll + 1, 3 * num_tasks))
        self.register_buffer("played", torch.zeros(unroll, dtype=torch.int64))
        self.register_buffer("rewards", torch.zeros(unroll))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def probabilities(self) -> Float[Tensor, " K"]:
        return self.probability.double() / self.probability.double().sum()

    def add(self, task: int, score: float) -> None:
        self.recent.add(task, score)
        self.played[self.steps] = task
        self.rewards[self.steps] = self.reward(task)
        self.steps += 1
        last = functional.one_hot(torch.tensor(task), self.num_tasks)
        self.inputs[self.steps] = torch.cat([self.recent.count / self.recent.count.sum(), self.probability, last])
        states = self._states()
        if self.steps == len(self.played):
            self._learn(torch.stack([h for h, _ in states]))
            self.start.copy_(torch.stack(states[-2]).detach())
            self.inputs[0] = self.inputs[-1]
            self.steps.zero_()
            states = self._states()
        with torch.no_grad():
            self.probability.copy_(self.policy(states[-1][0]).softmax(0))

    def reward(self, task: int) -> float:
        """Reward of the meta-learner for playing a task."""
        scores = self.recent.mean().clamp(0, 1)
        worst = scores.sort().values[: max(self.num_tasks // 2, 1)].mean()
        return float(self.lambda_ * (1 - scores[task]) + (1 - self.lambda_) * worst)

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        """States (h, c) of the LSTM after each input of the unroll so far."""
        states: list[tuple[Tensor, Tensor]] = []
        state = (self.start[0], self.start[1])
        for x in self.inputs[: int(self.steps) + 1]:
            state = self.memory(self.body(x), state)
            states.append(state)
        return states

    def _learn(self, hidden: Float[Tensor, "n W"]) -> None:
        """One step of advantage actor-critic on a whole unroll."""
        log_p, value = self.policy(hidden[:-1]).log_softmax(-1), self.value(hidden).squeeze(-1)
        returns = [value[-1].detach()]
        for reward in self.rewards.flip(0):
            returns.append(reward + self.gamma * returns[-1])
        advantage = torch.stack(returns[:0:-1]) - value[:-1]
        chosen = log_p.gather(1, self.played[:, None]).squeeze(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        loss = (0.5 * advantage.square() - chosen * advantage.detach() - self.entropy_coef * entropy).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def get_extra_state(self) -> Any:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: Any) -> None:
        restore(self.optimizer, state)
