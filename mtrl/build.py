"""Builds data sources and learners from config nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mtrl.agents.sac
import mtrl.agents.vtrace_actor_critic  # these two register learners
import mtrl.distill  # noqa: F401  # registers teachers, losses and schedules
from mtrl.agents.acceleration import compile_losses, set_precision
from mtrl.agents.components import Components
from mtrl.agents.lookahead import Lookahead
from mtrl.agents.resets import Resets
from mtrl.data.experience import Collector, EpisodeStatistics, JointEpisodes, OffPolicy, OnPolicy
from mtrl.data.n_step import NStep
from mtrl.data.replay import Replay, transition_columns
from mtrl.parallel.actors import AsyncOnPolicy
from mtrl.parallel.ray_actors import RayActors  # noqa: F401  # registers a transport
from mtrl.registry import build, register
from mtrl.types import ONE_PROCESS, DataSource, EnvSpec, Learner, PhaseTimer, Ranks, UserError, VecEnv

Node = Mapping[str, Any]


def build_episodes(task_sampling: Node, spec: EnvSpec, num_slots: int, ranks: Ranks = ONE_PROCESS) -> EpisodeStatistics:
    """Builds the task sampler and the `EpisodeStatistics` that notify it.

    Args:
        num_slots: Slots of all `ranks`.
    """
    runtime = {"num_tasks": spec.num_tasks, "num_slots": num_slots, "silent_tasks": spec.silent_tasks}
    sampler = build("task_sampling", task_sampling, **runtime)
    return EpisodeStatistics(spec, sampler) if ranks.size == 1 else JointEpisodes(spec, sampler, ranks)


def build_learner(
    node: Node,
    components: Components,
    yields: type = object,
    precision: str = "float32",
    resets: int = 0,
    lookahead: bool = False,
) -> Learner:
    """Builds the learner that `agent=...` names.

    Args:
        yields: Class of the batches that it will learn from; `object` if unknown.
        precision: Precision of torsos and trunks.
        resets: Number of times that its networks are reset.
        lookahead: Whether its diagnostics say what a step on each task does to the others.

    Raises:
        UserError: The node is not valid, the learner does not learn from `yields`, or an auxiliary loss does not
            suit it.
    """
    learner: Learner = build("agent", node, c=components)
    if yields is not object and not issubclass(yields, learner.learns_from):
        expected, given = learner.learns_from.__name__, yields.__name__
        raise UserError(f"agent={node['name']} learns from {expected}, but this data source yields {given}: see data=.")
    if components.ranks.size > 1 and not learner.joins_ranks:
        raise UserError(f"agent={node['name']} learns in one process: start it without torchrun.")
    components.ranks.make_alike(learner.networks)
    for loss in learner.aux_losses.values():
        loss.check(learner.policy)
    set_precision(learner.networks, precision)
    if components.compile:
        compile_losses(learner)
    if lookahead:
        learner = Lookahead(learner)
    return Resets(learner, resets, components.episodes.sampler) if resets else learner


@register("data", "rollouts")
def on_policy(
    env: VecEnv,
    make_env: Callable[[], VecEnv],
    episodes: EpisodeStatistics,
    device: str,
    timer: PhaseTimer,
    seed: int,
    report: Callable[[str], None],
    actors: int,
    transport: str,
    rollout_length: int = 20,
    slots_per_task: int = 16,
    exploring_start_fraction: float = 0.0,
    max_episode_steps: int | None = None,
) -> DataSource:
    """Rollouts of the policy, each learned from once, collected by the learner's process or in parallel (`actors`).

    Use it with `agent=ppo`, `impala` and `distral`, whose presets choose it.

    Args:
        env: The environment to step; with actors, an example of those that they make.
        transport: Registered name of what connects the learner to actors.
        rollout_length: Steps of every slot between updates.
        slots_per_task: Slots per task, if the environment has no `num_envs`.
        exploring_start_fraction: Episodes begin with one random action, repeated for up to this fraction of their
            length.
        max_episode_steps: Steps after which episodes of training are truncated; evaluations are not affected.
    """
    options: dict[str, Any] = {
        "exploring_start_fraction": float(exploring_start_fraction),
        "max_episode_steps": max_episode_steps,
    }
    if not actors:
        return OnPolicy(Collector(env, episodes, device, timer, **options), rollout_length)
    num_envs = actors * env.num_envs
    env.close()  # only made for its spec, and so that errors in its settings are raised here
    connection = build("transport", {"name": transport}, device=device, actors=actors)
    return AsyncOnPolicy(actors, num_envs, make_env, episodes, connection, timer, options, seed, report, rollout_length)


@register("data", "replay")
def off_policy(
    env: VecEnv,
    episodes: EpisodeStatistics,
    device: str,
    timer: PhaseTimer,
    actors: int,
    gamma: float | None,
    n_step: int = 1,
    batch_size: int = 128,
    samples_per_insert: float = 128,
    capacity: int = 100_000,
    learning_starts: int = 4000,
    slots_per_task: int = 1,
    exploring_start_fraction: float = 0.0,
    max_episode_steps: int | None = None,
) -> DataSource:
    """Batches from a replay of all collected transitions, stratified by task.

    Use it with `agent=sac`, whose preset chooses it.

    Args:
        n_step: Steps of rewards in a target before the value of an observation, fewer if the episode ends.
        batch_size: Samples per task in a batch, of which each rank has its share; likewise below.
        samples_per_insert: Samples learned from per collected transition.
        capacity: Transitions per task.
        learning_starts: Transitions per task with random actions before the first update.
        slots_per_task: Slots per task, if the environment has no `num_envs`.
        exploring_start_fraction: Episodes begin with one random action, repeated for up to this fraction of their
            length.
        max_episode_steps: Steps after which episodes of training are truncated; evaluations are not affected.
    """
    if actors:
        raise UserError("This agent learns from a replay, which actors do not fill: use actors=0, or agent=impala.")
    if n_step > 1 and gamma is None:
        raise UserError("data.n_step needs the learner's discount factor, agent.gamma, which this agent does not have.")
    collector = Collector(env, episodes, device, timer, float(exploring_start_fraction), max_episode_steps)
    ranks = episodes.ranks
    capacity, learning_starts = -(-capacity // ranks.size), -(-learning_starts // ranks.size)  # rounded up
    replay = Replay(env.spec.num_tasks, capacity, transition_columns(env.spec), device)
    batch_size = ranks.share("data.batch_size", batch_size)
    joins = NStep(n_step, 1.0 if gamma is None else gamma)
    return OffPolicy(collector, replay, joins, batch_size, samples_per_insert, learning_starts)
