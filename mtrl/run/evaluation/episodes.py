"""Runs evaluation episodes: every task on each of its goals, with deterministic actions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.checks import positive
from mtrl.finite import check_actions, check_first, check_step
from mtrl.types import Actor, EpisodeResult, EvalResult, VecEnv


@torch.no_grad()
def evaluate(
    actor: Actor,
    env: VecEnv,
    episodes_per_task: int,
    num_goals: int,
    protocol: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
    max_episode_steps: float = math.inf,
) -> EvalResult:
    """Runs `episodes_per_task` deterministic episodes of every task.

    Episode i of a task runs goal i of the task's `num_goals` fixed goals (cycling beyond them). The B slots work
    through the episodes in rounds: each slot runs one episode and waits for the others.

    Args:
        actor: Acts on the env's observations and tasks.
        env: Any vectorised env; its slots are reassigned.
        episodes_per_task: At least 1.
        num_goals: Number of goals of each task; 0 if the goal is the episode's seed, which is i then.
        protocol: Description of what the numbers mean, stored with them.
        progress: Called after every step with the numbers of finished and of all episodes. An exception from it ends
            the evaluation.
        seed: Seed of the env in the first round; each following round adds 1.
        max_episode_steps: Longer episodes are truncated.

    Returns:
        Episodes ordered by task, and by the order in which they ran.

    Raises:
        RuntimeError: The env ran another task or goal than the assigned one.
    """
    positive(episodes_per_task=episodes_per_task)
    names = env.spec.task_names
    # Goal by goal: with as many slots as tasks, each slot then keeps its task.
    jobs = [(task, i % num_goals if num_goals else i) for i in range(episodes_per_task) for task in range(len(names))]
    episodes: list[list[EpisodeResult]] = [[] for _ in names]
    for index, start in enumerate(range(0, len(jobs), env.num_envs)):
        batch = jobs[start : start + env.num_envs]

        def finished(count: int, before: int = start) -> None:
            progress(before + count, len(jobs))

        outcomes = _run_round(actor, env, batch, seed + index, finished, max_episode_steps)
        for (task, goal), (succeeded, episode_return, length, truncated) in zip(batch, outcomes, strict=True):
            success = succeeded if env.spec.reports_success[task] else None
            episodes[task].append(EpisodeResult(names[task], goal, success, episode_return, length, truncated))
    every = tuple(itertools.chain.from_iterable(episodes))
    return EvalResult(dict(protocol), every, comparable_returns=env.spec.comparable_returns)


def begin(env: VecEnv, jobs: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """Starts one (task, goal) per slot, checks that the env runs them, and returns the first observations."""
    # Surplus slots repeat the last job; their results are ignored.
    padded = [*jobs, *[jobs[-1]] * (env.num_envs - len(jobs))]
    task, goal = torch.tensor(padded, device=env.task.device).unbind(1)
    env.assign(task, goal)
    obs = env.reset(seed)
    if not (torch.equal(env.task, task) and torch.equal(env.goal, goal)):
        raise RuntimeError(
            f"The env was assigned tasks {task.tolist()} with goals {goal.tolist()}, "
            f"but runs {env.task.tolist()} with {env.goal.tolist()}."
        )
    check_first(obs, task, env.spec)
    env.assign(task)  # any goal for episodes that start while a slot waits: Atari takes long to begin a given goal
    return obs


def _run_round(
    actor: Actor,
    env: VecEnv,
    jobs: Sequence[tuple[int, int]],
    seed: int,
    finished: Callable[[int], None],
    max_episode_steps: float,
) -> list[tuple[bool, float, int, bool]]:
    """Runs one episode per job on the first slots; returns success at any step, return, length and truncation."""
    B, n = env.num_envs, len(jobs)
    obs, state = begin(env, jobs, seed), actor.initial_state(B)
    device = env.task.device
    running = torch.arange(B, device=device) < n
    success = torch.zeros_like(running)
    returns = torch.zeros(B, dtype=torch.float64, device=device)
    length = torch.zeros(B, dtype=torch.int64, device=device)
    truncated = torch.zeros_like(running)
    remaining = n
    while remaining:
        action, _, state = actor.act(obs, env.task, state, explore=False)
        step = env.step(action)
        check_actions(action, env.spec, step.task)  # which an environment on an accelerator leaves to us
        check_step(step, length + 1, env.spec)
        success |= step.success & running
        returns += torch.where(running, step.reward, 0.0)
        length += running
        running = running & ~step.done
        truncated |= running & (length >= max_episode_steps)
        running = running & ~truncated
        obs, state = step.obs, state.masked_fill(step.done[:, None], 0)
        remaining = int(running.sum())
        finished(n - remaining)
    return list(zip(success.tolist(), returns.tolist(), length.tolist(), truncated.tolist(), strict=True))[:n]
