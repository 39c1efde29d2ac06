"""Runs evaluation episodes: every task on each of its goals, with deterministic actions."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mtrl.checks import positive
from mtrl.finite import check_actions, check_first, check_step
from mtrl.types import Actor, EnvSpec, EpisodeResult, EvalResult, VecEnv

Job = tuple[int, int]
"""Task and goal of an episode."""
Ended = dict[int, EpisodeResult]
"""Episodes that have ended, by the places of their jobs in a list."""


def all_jobs(spec: EnvSpec, episodes_per_task: int, num_goals: int) -> list[Job]:
    """The jobs of an evaluation: episode i of a task runs goal i of its fixed goals (cycling beyond them).

    Args:
        episodes_per_task: At least 1.
        num_goals: Number of goals of each task; 0 if the goal is the episode's seed, which is i then.

    Returns:
        Goal by goal: with as many slots as tasks, each slot keeps its task.
    """
    positive(episodes_per_task=episodes_per_task)
    tasks = range(spec.num_tasks)
    return [(task, i % num_goals if num_goals else i) for i in range(episodes_per_task) for task in tasks]


def joined(
    ended: Iterable[Ended],
    jobs: Sequence[Job],
    spec: EnvSpec,
    protocol: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvalResult:
    """The result of `all_jobs`, whoever runs them.

    Args:
        ended: The episodes of all jobs, in any order.
        protocol: Description of what the numbers mean, stored with them.
        progress: Called with the numbers of finished and of all episodes, also when none has ended. An exception from
            it ends the evaluation.

    Returns:
        Episodes ordered by task, and by goal.
    """
    found: Ended = {}
    for episodes in ended:
        found |= episodes
        progress(len(found), len(jobs))
    K = spec.num_tasks
    in_order = tuple(found[index] for task in range(K) for index in range(task, len(jobs), K))
    return EvalResult(dict(protocol), in_order, comparable_returns=spec.comparable_returns)


def run_episodes(
    actor: Actor,
    env: VecEnv,
    jobs: Sequence[Job],
    seed: int = 0,
    max_episode_steps: float = math.inf,
    stop_at_success: bool = False,
) -> Iterator[Ended]:
    """Runs a deterministic episode for each job.

    No slot waits for another: one whose episode is over begins the next of its task, or of the task with the most that
    have not begun.

    Args:
        actor: Acts on the env's observations and tasks.
        env: Any vectorised env; its slots are reassigned.
        seed: Seed of the env.
        max_episode_steps: Longer episodes are truncated.
        stop_at_success: Whether an episode ends at its first success. Success rates are the same, in less time;
            returns and lengths are those up to there.

    Yields:
        After every step of all slots, the episodes that have ended in it.

    Raises:
        RuntimeError: The env ran another task or goal than the assigned one.
    """
    names, B, device = env.spec.task_names, env.num_envs, env.task.device
    queue = _Queue(jobs, B)
    left = len(jobs)
    obs, state = begin(env, jobs[:B], seed), actor.initial_state(B)
    running = torch.arange(B, device=device) < len(jobs)
    cut = torch.zeros_like(running)
    success, length = torch.zeros_like(running), torch.zeros_like(env.task)
    returns = torch.zeros(B, dtype=torch.float64, device=device)
    env.assign(*queue.plan(env.task, running))
    while left:
        ended: Ended = {}
        with torch.no_grad():  # here, as a generator's caller computes between its steps
            action, _, state = actor.act(obs, env.task, state, explore=False)
        step = env.step(action, truncate=cut)
        check_actions(action, env.spec, step.task)  # which an environment on an accelerator leaves to us
        check_step(step, length + 1, env.spec)
        success |= step.success & running
        returns += torch.where(running, step.reward, 0.0)
        length += running
        won = success if stop_at_success else torch.zeros_like(success)
        truncated = ~step.done & ~won & (length >= max_episode_steps)
        over = running & (step.done | won | truncated)
        for slot in over.nonzero().flatten().tolist():
            index = queue.job[slot]
            task, goal = jobs[index]
            outcome = bool(success[slot]) if env.spec.reports_success[task] else None
            ended[index] = EpisodeResult(
                names[task], goal, outcome, float(returns[slot]), int(length[slot]), bool(truncated[slot])
            )
        running, begun = running & ~over, step.done
        if begun.any():
            expected, counts = queue.begin(begun)
            running |= counts
            success, returns, length = (x.masked_fill(begun, 0) for x in (success, returns, length))
            _check_assigned(env, expected, counts)
            check_first(step.obs, env.task, env.spec)
        if (over | begun).any():
            env.assign(*queue.plan(env.task, running))
            # An episode that is over while the environment goes on with it makes room for the slot's next one.
            cut = ~running & queue.has_next(device)
        obs, state = step.obs, state.masked_fill(begun[:, None], 0)
        left -= len(ended)
        yield ended


class _Queue:
    """Which episode each of B slots runs, and which one follows. The first B of the `jobs` have begun.

    A slot without one goes on with any goal of its task, until all others have finished.
    """

    def __init__(self, jobs: Sequence[tuple[int, int]], B: int) -> None:
        self.jobs = jobs
        self.job = list(range(B))
        """The job of each slot; surplus slots have none."""
        self._next: list[int | None] = [None] * B
        self._waiting: dict[int, deque[int]] = defaultdict(deque)
        for index in range(B, len(jobs)):
            self._waiting[jobs[index][0]].append(index)

    def plan(self, task: Int[Tensor, " B"], running: Bool[Tensor, " B"]) -> Int[Tensor, "2 B"]:
        """The next task and goal of each slot, given its task and whether its episode counts and still goes on."""
        following = []
        for slot, (task_id, busy) in enumerate(zip(task.tolist(), running.tolist(), strict=True)):
            if self._next[slot] is None:
                self._next[slot] = self._take(task_id, busy)
            index = self._next[slot]
            following.append((task_id, ANY) if index is None else self.jobs[index])
        return torch.tensor(following, device=task.device).T

    def _take(self, task: int, busy: bool) -> int | None:
        """The next job of a task. If there is none, a slot that is not busy takes on another task."""
        if not self._waiting[task] and not busy:
            task = max(self._waiting, key=lambda other: len(self._waiting[other]))
        return self._waiting[task].popleft() if self._waiting[task] else None

    def has_next(self, device: torch.device) -> Bool[Tensor, " B"]:
        return torch.tensor([index is not None for index in self._next], device=device)

    def begin(self, slots: Bool[Tensor, " B"]) -> tuple[Int[Tensor, "B 2"], Bool[Tensor, " B"]]:
        """`slots` have gone on to what followed. Returns the job of every slot, and which of `slots` have begun one."""
        counts = slots & self.has_next(slots.device)
        for slot in counts.nonzero().flatten().tolist():
            following = self._next[slot]
            assert following is not None
            self.job[slot], self._next[slot] = following, None
        last = len(self.jobs) - 1
        return torch.tensor([self.jobs[min(index, last)] for index in self.job], device=slots.device), counts


ANY = -1
"""A goal that the environment draws."""


def begin(env: VecEnv, jobs: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """Starts one (task, goal) per slot, checks that the env runs them, and returns the first observations."""
    # Surplus slots repeat the last job; their results are ignored.
    padded = [*jobs, *[jobs[-1]] * (env.num_envs - len(jobs))]
    assigned = torch.tensor(padded, device=env.task.device)
    env.assign(*assigned.unbind(1))
    obs = env.reset(seed)
    _check_assigned(env, assigned, torch.ones_like(env.task, dtype=torch.bool))
    check_first(obs, env.task, env.spec)
    env.assign(env.task)  # any goal for episodes that start while a slot waits: Atari takes long to begin a given goal
    return obs


def _check_assigned(env: VecEnv, assigned: Int[Tensor, "B 2"], slots: Bool[Tensor, " B"]) -> None:
    """Raises `RuntimeError` unless `slots` run the task and goal that they were assigned."""
    runs = torch.stack([env.task, env.goal], 1)
    if not torch.equal(runs[slots], assigned[slots]):
        raise RuntimeError(
            f"The env was assigned (task, goal) {assigned[slots].tolist()}, but runs {runs[slots].tolist()}."
        )
