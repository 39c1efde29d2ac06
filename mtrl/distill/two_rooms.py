"""The toy problem of the Distral paper (section 4.1): soft Q-learning in two rooms and a corridor, many runs at once.

Each task has its goal in one of the rooms, and episodes begin anywhere. To cross the corridor is common to the tasks,
but not in which direction: a state is the cell, the action before and whether it met a wall, so that a shared policy
can go on as it came.

Differences from the paper, whose appendix leaves these open or could not be read:
    1. Sizes, number of tasks and rewards are the arguments below. The action before and the reward before are kept as
       four actions, or none, and whether the move was into a wall.
    2. The shared policy is the centroid of the task policies in the states visited lately, without the discount gamma^t
       of the time in the episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtrl.distill.distral import centroid, soft_value, two_column_logits

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column: up, down, left, right."""
BACK = (1, 0, 3, 2)
"""The opposite of each move."""


class TwoRooms:
    """The map, and moves in it. A state is (cell, action before or none, whether it met a wall), as one number.

    Args:
        room: Height and width of a room.
        corridor: Length of the corridor between the middles of the rooms.
        step_reward: Of a move.
        wall_reward: Of a move into a wall, which leads nowhere.
        goal_reward: Of the move to the goal, which ends the episode.
    """

    def __init__(
        self,
        room: int = 5,
        corridor: int = 5,
        step_reward: float = -0.1,
        wall_reward: float = -0.5,
        goal_reward: float = 1.0,
    ) -> None:
        left = [(row, column) for row in range(room) for column in range(room)]
        between = [(room // 2, room + column) for column in range(corridor)]
        right = [(row, column + room + corridor) for row, column in left]
        self.cells = left + between + right
        self.rooms = torch.tensor([0] * len(left) + [-1] * corridor + [1] * len(right))
        """Of each cell, 0 or 1; -1 in the corridor."""
        number = {cell: i for i, cell in enumerate(self.cells)}
        leads_to = [[number.get((r + dr, c + dc), number[r, c]) for dr, dc in MOVES] for r, c in self.cells]
        self.leads_to = torch.tensor(leads_to)  # (cells, 4)
        self.num_actions = len(MOVES)
        self.num_states = len(self.cells) * (self.num_actions + 1) * 2
        self.step_reward, self.wall_reward, self.goal_reward = step_reward, wall_reward, goal_reward

    def state(
        self, cell: Int[Tensor, "*n"], previous: Int[Tensor, "*n"], bumped: Bool[Tensor, "*n"]
    ) -> Int[Tensor, "*n"]:
        """The number of a state; `previous` is the action before, or `num_actions` for none."""
        return (cell * (self.num_actions + 1) + previous) * 2 + bumped

    def first_state(self, cell: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The state of an episode that begins in a cell."""
        return self.state(cell, torch.full_like(cell, self.num_actions), torch.zeros_like(cell, dtype=torch.bool))

    def cell(self, state: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        return state // (2 * (self.num_actions + 1))

    def step(
        self, state: Int[Tensor, "*n"], action: Int[Tensor, "*n"], goal: Int[Tensor, "*n"]
    ) -> tuple[Int[Tensor, "*n"], Float[Tensor, "*n"], Bool[Tensor, "*n"]]:
        """Next state, reward, and whether the goal (a cell) is reached."""
        before = self.cell(state)
        after = self.leads_to[before, action]
        bumped, reached = after == before, after == goal
        reward = torch.full(state.shape, self.step_reward, dtype=torch.float64)
        reward = reward.where(~bumped, self.wall_reward).where(~reached, self.goal_reward)
        return self.state(after, action, bumped), reward, reached

    def draw_goals(self, num_tasks: int, generator: torch.Generator) -> Int[Tensor, " K"]:
        """Different cells, half of them in either room."""
        halves = []
        for room, num in ((0, num_tasks // 2), (1, num_tasks - num_tasks // 2)):
            cells = (self.rooms == room).nonzero().flatten()
            halves.append(cells[torch.randperm(len(cells), generator=generator)[:num]])
        return torch.cat(halves)


@dataclass(frozen=True)
class Settings:
    """Of one run. With alpha = 0, tasks are learned by soft Q-learning, each for itself."""

    alpha: float
    beta: float
    lr: float
    two_columns: bool


class TabularDistral:
    """Soft Q-learning of K tasks and their shared policy in tables, for R independent runs.

    A task's table holds f_i. In two columns, pi_i is proportional to pi_0^alpha exp(beta f_i), and f_i is Q_i. In one
    column it is proportional to exp(beta f_i): the table alone, whose rewards have (alpha / beta) log pi_0 added. What
    both converge to is the same, f_i = Q_i + (alpha / beta) log pi_0 in one column; but there pi_i follows a change of
    pi_0 only as fast as it learns.

    Args:
        runs: Settings of each run.
        gamma: Discount.
        memory: What the visits of the past are multiplied by whenever there are new ones.
        prior: See `centroid`.
    """

    def __init__(
        self,
        runs: list[Settings],
        num_tasks: int,
        num_states: int,
        num_actions: int,
        gamma: float = 0.95,
        memory: float = 0.99,
        prior: float = 1.0,
    ) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[:, None]

        self.alpha, self.beta = column([run.alpha for run in runs]), column([run.beta for run in runs])
        self.lr, self.gamma, self.memory, self.prior = column([run.lr for run in runs]), gamma, memory, prior
        two_columns = torch.tensor([run.two_columns for run in runs])[:, None]
        self.alpha_policy = self.alpha.where(two_columns, 0)
        self.alpha_reward = self.alpha.where(~two_columns, 0)
        R, K = len(runs), num_tasks
        self.table = torch.zeros(R, K, num_states, num_actions, dtype=torch.float64)
        self.visits = torch.zeros(R, num_states, num_actions, dtype=torch.float64)
        """By any task, each with the probabilities of the actions there; those of the past count less."""
        self.shared_log_probs = torch.full_like(self.visits, 1 / num_actions).log()
        self._run, self._task = torch.arange(R)[:, None].expand(R, K), torch.arange(K).expand(R, K)

    def log_probs(self, state: Int[Tensor, "R K"]) -> Float[Tensor, "R K A"]:
        """log pi_i."""
        f, shared = self.table[self._run, self._task, state], self.shared_log_probs[self._run, state]
        return two_column_logits(shared, f, self.alpha_policy[..., None], self.beta[..., None]).log_softmax(-1)

    def learn(
        self,
        state: Int[Tensor, "R K"],
        action: Int[Tensor, "R K"],
        reward: Float[Tensor, "R K"],
        next_state: Int[Tensor, "R K"],
        reached: Bool[Tensor, "R K"],
        active: Bool[Tensor, "R K"],
    ) -> None:
        """One soft Bellman backup of a transition of each task, where it is `active`."""
        f, shared = self.table[self._run, self._task, next_state], self.shared_log_probs[self._run, next_state]
        value = soft_value(f, shared, self.alpha_policy[..., None], self.beta[..., None])
        log_prob = self.shared_log_probs[self._run, state, action]
        target = reward + self.alpha_reward / self.beta * log_prob + self.gamma * value * ~reached
        where = (self._run, self._task, state, action)
        self.table[where] += self.lr * active * (target - self.table[where])

    def distill(self, states: Int[Tensor, "T R K"], active: Bool[Tensor, "T R K"]) -> None:
        """The shared policy becomes the centroid of the task policies, in the states that were visited."""
        self.visits *= self.memory
        for state, counts in zip(states, active, strict=True):
            probs = self.log_probs(state).exp() * counts[..., None]
            self.visits.index_put_((self._run, state), probs, accumulate=True)
        total = self.visits.sum(-1)
        mean = self.visits / total.clamp(min=1e-300)[..., None]
        self.shared_log_probs = centroid(mean[None], total[None], self.prior).log()


def train(
    runs: list[Settings],
    goals: Int[Tensor, "R K"],
    rooms: TwoRooms,
    num_episodes: int,
    seed: int,
    horizon: int = 100,
    rollout_length: int = 10,
) -> tuple[Float[Tensor, "episodes R"], TabularDistral]:
    """Trains all runs; after each rollout, tables learn from it backwards in time, then the shared policy does.

    Returns:
        Return of each episode, with the noise of the policies, mean over the tasks; and the learner.
    """
    R, K = goals.shape
    g = torch.Generator().manual_seed(seed)
    learner = TabularDistral(runs, K, rooms.num_states, rooms.num_actions)
    returns = torch.zeros(num_episodes, R, dtype=torch.float64)
    for episode in range(num_episodes):
        start = torch.randint(len(rooms.cells) - 1, (R, K), generator=g)
        state = rooms.first_state(start + (start >= goals))  # anywhere but at the goal
        active = torch.ones(R, K, dtype=torch.bool)
        for _ in range(horizon // rollout_length):
            rollout = []
            for _ in range(rollout_length):
                gumbel = -torch.empty(R, K, rooms.num_actions, dtype=torch.float64).exponential_(generator=g).log()
                action = (learner.log_probs(state) + gumbel).argmax(-1)
                next_state, reward, reached = rooms.step(state, action, goals)
                rollout.append((state, action, reward, next_state, reached, active))
                returns[episode] += (reward * active).mean(1)
                state, active = next_state, active & ~reached
            for transition in reversed(rollout):
                learner.learn(*transition)
            learner.distill(torch.stack([step[0] for step in rollout]), torch.stack([step[-1] for step in rollout]))
            if not active.any():
                break
    return returns, learner
