"""Data sources that collect experience. On-policy and off-policy learning differ only here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mtrl import per_task
from mtrl.checks import not_negative, positive
from mtrl.data.n_step import NStep
from mtrl.data.replay import Replay
from mtrl.data.returns import ReturnTracker
from mtrl.data.task_sampling import TaskSampler, allocate
from mtrl.finite import check_actions, check_first, check_step, invalid_actions
from mtrl.types import (
    ONE_PROCESS,
    Actor,
    Batch,
    DataSource,
    EnvSpec,
    Metrics,
    PhaseTimer,
    Ranks,
    Rollout,
    State,
    Step,
    VecEnv,
)


class EpisodeStatistics:
    """Passes the results of finished episodes to the task sampler, and accumulates them for the log.

    Attributes:
        listeners: Functions that are called with the results in each call of `statistics`.
        episode_listeners: Functions that are called with the arguments of each `add`.
        discount: Discount of the `largest_return` that listeners receive; None if none of them needs it.
    """

    ranks: Ranks = ONE_PROCESS
    """Whose episodes are counted."""

    def __init__(self, spec: EnvSpec, sampler: TaskSampler) -> None:
        self.spec, self.sampler = spec, sampler
        self.discount: float | None = None
        self.listeners: list[Callable[[Metrics], None]] = []
        self.episode_listeners: list[Callable[[Tensor, Metrics], None]] = [sampler.update]
        self._silent = ~torch.tensor(spec.reports_success)
        self._finished = self._no_results()

    def _no_results(self) -> Float[Tensor, "4 K"]:
        """Sums over no episodes: number, return, success, length."""
        return torch.zeros(4, self.spec.num_tasks, dtype=torch.float64)

    def add(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        """Adds E episodes, in the order in which they ended.

        Args:
            task: Task of each episode.
            results: "return", "success" (0 or 1) and "length" of each episode, and with a `discount` also its
                "largest_return" (`ReturnTracker`).
        """
        number = torch.ones(len(task), dtype=torch.float64)
        columns = torch.stack([number, results["return"], results["success"], results["length"]])
        self._finished.index_add_(1, task, columns)
        for listener in self.episode_listeners:
            listener(task, results)

    def exchange(self) -> None:
        """Adds the episodes of other ranks. Called after each `collect` of a data source."""

    def statistics(self) -> Metrics:
        """Results of the episodes finished since the last call, shares of the tasks, and means over tasks.

        Results of a task without episodes are NaN, and so is the `success_rate` of a task that does not report success;
        it is left out if no task does. Returns that are not comparable between tasks have no mean.
        """
        episodes, *sums = self._finished
        self._finished = self._no_results()
        statistics = dict(zip(("return", "success_rate", "episode_length"), (s / episodes for s in sums), strict=True))
        statistics["success_rate"][self._silent] = torch.nan
        if not self.spec.has_success:
            del statistics["success_rate"]
        for listener in self.listeners:
            listener(statistics)
        statistics["task_share"] = self.sampler.probabilities()
        averaged = [name for name in statistics if name != "return" or self.spec.comparable_returns]
        return statistics | {f"{name}_mean": statistics[name].nanmean() for name in averaged}

    def state_dict(self) -> State:
        return {"sampler": self.sampler.state_dict(), "finished": self._finished}

    def load_state_dict(self, state: State) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self._finished = state["finished"].to("cpu", copy=True)  # modified in place


class JointEpisodes(EpisodeStatistics):
    """Statistics of the episodes of several ranks, the same in all of them.

    Every rank counts all episodes, in the order of the ranks, when they are exchanged. So a task sampler learns of
    those that ended during a rollout after it, where with one process it does at once.
    """

    def __init__(self, spec: EnvSpec, sampler: TaskSampler, ranks: Ranks) -> None:
        super().__init__(spec, sampler)
        self.ranks = ranks
        self._ended: list[tuple[list[int], dict[str, list[float]]]] = []

    def add(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        self._ended.append((task.tolist(), {name: values.tolist() for name, values in results.items()}))

    def exchange(self) -> None:
        if self.ranks.any(bool(self._ended)):
            ended, self._ended = self._ended, []
            for of_rank in self.ranks.gather(ended):
                for task, results in of_rank:
                    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in results.items()}
                    super().add(torch.tensor(task), columns)

    def state_dict(self) -> State:
        return {**super().state_dict(), "ended": self._ended}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._ended = [(task, results) for task, results in state["ended"]]


UNSETTLED = 64
"""Maximum number of steps whose results stay on an accelerator before they are settled."""


class Taken(NamedTuple):
    """A step that is not settled yet, with the sums over each slot's episode up to and including it."""

    action: Tensor
    step: Step
    episode_return: Float[Tensor, " B"]
    succeeded: Bool[Tensor, " B"]
    length: Float[Tensor, " B"]
    next_task: Int[Tensor, " B"]
    """Task of `step.obs`."""

    def check(self, spec: EnvSpec) -> None:
        """Raises `UserError` for observations and rewards that are not finite."""
        check_step(self.step, self.length, spec)
        if self.step.done.any():
            check_first(self.step.obs, self.next_task, spec)

    def is_sound(self, spec: EnvSpec) -> Bool[Tensor, ""]:
        """False if `check` or `check_actions` may raise. Does not wait for the device."""
        numbers = (self.step.reward, self.step.final_obs, self.step.obs)
        sums = torch.stack([x.sum() for x in numbers if x.is_floating_point()])
        action = self.action.to(sums.device)
        return sums.isfinite().all() & ~invalid_actions(action, spec, self.step.task).any()


class Collector:
    """Steps an environment, accumulates the results of its episodes, and assigns tasks to slots.

    If the environment is on an accelerator, steps do not wait for it. Their results stay there until they are settled:
    after `UNSETTLED` steps, and whenever they are needed. Only then are episodes counted, slots assigned other tasks,
    and values that are not finite detected.

    If all episodes have the same length, the first one of each slot is truncated early, so that the slots of a task end
    theirs at different times. Otherwise a rollout shorter than an episode would contain the same part of it in every
    slot.

    Args:
        device: Device of the actor's inputs and outputs.
        timer: Times inference and simulation.
        max_episode_steps: Episodes are truncated after so many steps; None: only where the environment ends them.
        exploring_start_fraction: An episode begins with one random action, repeated a random number of times, from 0
            to this fraction of its longest length: a policy that always takes the same path may never find a better one
            (exploring starts, Sutton and Barto, chapter 5). The log-probability of these steps is infinite, because no
            policy chose their action.

    Raises:
        ValueError: `exploring_start_fraction` is not in [0, 1], or `max_episode_steps` is not positive.
    """

    def __init__(
        self,
        env: VecEnv,
        episodes: EpisodeStatistics,
        device: torch.device | str,
        timer: PhaseTimer,
        exploring_start_fraction: float = 0.0,
        max_episode_steps: int | None = None,
    ) -> None:
        if not 0 <= exploring_start_fraction <= 1:
            raise ValueError(
                f"exploring_start_fraction must be a share of an episode, from 0 to 1, not {exploring_start_fraction}."
            )
        self.env, self.episodes, self.device, self.timer = env, episodes, torch.device(device), timer
        first, there = env.reset(), env.task.device
        check_first(first, env.task, env.spec)
        self.obs, self.task = first.to(self.device), env.task.to(self.device)
        self.core_state = torch.zeros(env.num_envs, 0, device=self.device)
        """Recurrent state of the actor. For an actor with memory, set it to the initial state before the first step."""
        self._next_state = self.core_state
        self._on_host = there.type == "cpu"
        self._unsettled: list[Taken] = []
        self._episode_return = torch.zeros(env.num_envs, device=there)
        self._succeeded = torch.zeros(env.num_envs, dtype=torch.bool, device=there)
        self._length = torch.zeros(env.num_envs, device=there)
        self._returns = ReturnTracker(env.num_envs)
        if max_episode_steps is not None:
            positive(max_episode_steps=max_episode_steps)
        limits = [limit for limit in (env.spec.horizon, max_episode_steps) if limit is not None]
        self.longest = longest = min(limits, default=0)
        """Steps of the longest episode; 0 without a limit."""
        self._limit = max_episode_steps or 0
        self._until_cut = first_lengths(env.task, env.spec.num_tasks, longest)
        """Steps until each slot is truncated; below 1: it is not."""
        self._random = RandomActor(env.spec)
        self._longest_start = int(exploring_start_fraction * longest)
        self._start_action, *_ = self._random.act(self.obs, self.task, self.core_state, explore=True)
        self._start_length = torch.randint(self._longest_start + 1, (env.num_envs,), device=there)
        self._assign()

    def _assign(self) -> None:
        """Chooses the tasks of the next episodes."""
        self.env.assign(allocate(self.episodes.sampler.probabilities(), self.env.task.cpu()))

    def act(self, actor: Actor) -> tuple[Tensor, Tensor]:
        """Exploring actions for the current observations, and their log-probabilities."""
        with self.timer("inference"):
            action, log_prob, self._next_state = actor.act(self.obs, self.task, self.core_state, explore=True)
            starting = (self._length < self._start_length).to(self.device)
            rows = starting.reshape(-1, *[1] * (action.ndim - 1))
            return torch.where(rows, self._start_action, action), log_prob.masked_fill(starting, torch.inf)

    def step(self, action: Tensor) -> Step:
        """Steps every slot, and updates `obs`, `task` and `core_state` for the next action."""
        with self.timer("env"):
            step = self.env.step(action, truncate=self._until_cut == 1)
        # Only now, so that nothing has changed if the environment raises.
        self.core_state = self._next_state
        self._until_cut = self._until_cut - 1
        self._episode_return = self._episode_return + step.reward
        self._succeeded = self._succeeded | step.success
        self._length = self._length + 1
        sums = (self._episode_return, self._succeeded, self._length)
        self._unsettled.append(Taken(action, step, *sums, self.env.task))
        if self._on_host or len(self._unsettled) == UNSETTLED:
            self.settle()
        self.obs = step.obs.to(self.device)
        self.task = self.env.task.to(self.device)
        done = step.done
        # Nothing changes if no episode ended. On an accelerator, testing for that would wait for it.
        if not self._on_host or done.any():
            self._episode_return, self._succeeded, self._length = (x.masked_fill(done, 0) for x in sums)
            self.core_state = self.core_state.masked_fill(done.to(self.device)[:, None], 0)
            self._until_cut = self._until_cut.masked_fill(done, self._limit)
            self._begin(done)
        return step

    def _begin(self, slots: Bool[Tensor, " B"]) -> None:
        """Draws the exploring starts of the episodes that have just begun in `slots`."""
        action, *_ = self._random.act(self.obs, self.task, self.core_state, explore=True)
        rows = slots.to(self.device).reshape(-1, *[1] * (action.ndim - 1))
        self._start_action = torch.where(rows, action, self._start_action)
        length = torch.randint(self._longest_start + 1, slots.shape, device=slots.device)
        self._start_length = torch.where(slots, length, self._start_length)

    def settle(self) -> None:
        """Checks the steps since the last call, counts their finished episodes, and assigns tasks to the slots.

        Raises:
            UserError: An observation or a reward is NaN or infinite.
            ValueError: On an accelerator, where environments do not check actions: one is NaN, or does not exist.
        """
        taken, self._unsettled = self._unsettled, []
        if not taken:
            return
        self._check(taken)
        gamma = self.episodes.discount
        if self._on_host and not taken[0].step.done.any():
            if gamma is not None:
                self._returns.add(taken[0].step.reward)
            return
        columns = (
            [one.step.done for one in taken],
            [one.step.terminated for one in taken],
            [one.step.task for one in taken],
            [one.step.reward for one in taken],
            [one.episode_return for one in taken],
            [one.succeeded for one in taken],
            [one.length for one in taken],
        )
        table = torch.stack([torch.stack(column).double() for column in columns]).cpu()  # one copy, one wait
        done, terminated, task, reward, *sums = table
        done = done.bool()
        results = {name: values[done] for name, values in zip(("return", "success", "length"), sums, strict=True)}
        if gamma is not None:
            results["largest_return"] = self._largest_returns(reward, done, terminated.bool(), gamma)
        if done.any():
            self.episodes.add(task.long()[done], results)
            self._assign()

    def _check(self, taken: Sequence[Taken]) -> None:
        spec = self.env.spec
        if self._on_host:
            for one in taken:
                one.check(spec)
        elif not torch.stack([one.is_sound(spec) for one in taken]).all():
            for one in taken:
                check_actions(one.action, spec, one.step.task)
                one.check(spec)

    def _largest_returns(
        self, reward: Float[Tensor, "T B"], done: Bool[Tensor, "T B"], terminated: Bool[Tensor, "T B"], gamma: float
    ) -> Float[Tensor, " E"]:
        largest = [torch.zeros(0, dtype=torch.float64)]
        for t in range(len(reward)):
            self._returns.add(reward[t])
            if done[t].any():
                largest.append(self._returns.end(done[t], terminated[t], gamma))
        return torch.cat(largest)

    def statistics(self) -> Metrics:
        """See `EpisodeStatistics`."""
        self.settle()
        return self.episodes.statistics()

    def state_dict(self) -> State:
        self.settle()
        return {
            "env": self.env.state_dict(),
            **self.episodes.state_dict(),
            "obs": self.obs,
            "task": self.task,
            "core_state": self.core_state,
            "episode_return": self._episode_return,
            "succeeded": self._succeeded,
            "length": self._length,
            "returns": self._returns.state_dict(),
            "until_cut": self._until_cut,
            "start_action": self._start_action,
            "start_length": self._start_length,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises `ValueError` for observations or recurrent states that are not finite."""
        self.env.load_state_dict(state["env"])
        self.episodes.load_state_dict(state)
        self.obs, self.core_state = (state[name].to(self.device) for name in ("obs", "core_state"))
        if not (self.obs.isfinite().all() and self.core_state.isfinite().all()):
            raise ValueError("collector: expected finite observations and states, found NaN or infinity")
        self.task = self.env.task.to(self.device)
        self._unsettled = []
        for name in ("episode_return", "succeeded", "length", "until_cut", "start_length"):
            setattr(self, f"_{name}", state[name].to(self.env.task.device))
        self._start_action = state["start_action"].to(self.device)
        self._returns.load_state_dict(state["returns"])


def first_lengths(task: Int[Tensor, " B"], num_tasks: int, longest: int) -> Int[Tensor, " B"]:
    """Length of each slot's first episode: 1/n, 2/n, ... of the longest in a task's n slots."""
    nth = 1 + per_task.rank(task, num_tasks)
    return -(-longest * nth // per_task.count(task, num_tasks)[task])  # rounded up


class OnPolicy(DataSource):
    """Rollouts of T steps of every slot, each used once.

    Args:
        rollout_length: T.
    """

    yields = Rollout
    joins_ranks = True

    def __init__(self, collector: Collector, rollout_length: int) -> None:
        positive(rollout_length=rollout_length)
        self.collector, self.rollout_length = collector, rollout_length
        self.batch_shape = (rollout_length, collector.env.num_envs)
        self._rollouts: list[Rollout] = []

    def connect(self, policy: Actor) -> None:
        self.collector.core_state = policy.initial_state(self.collector.env.num_envs)

    def collect(self, actor: Actor, progress: float = 0.0) -> int:
        columns: dict[str, list[Tensor]] = {}
        collector = self.collector
        core_state = collector.core_state
        for _ in range(self.rollout_length):
            obs, task = collector.obs, collector.task
            action, log_prob = collector.act(actor)
            step = collector.step(action)
            row = {
                "obs": obs,
                "action": action,
                "log_prob": log_prob,
                "reward": step.reward,
                "terminated": step.terminated,
                "truncated": step.truncated,
                "continuation": step.continuation,
                "final_obs": step.final_obs,
                "task": task,
            }
            for key, tensor in row.items():
                columns.setdefault(key, []).append(tensor)
        collector.settle()
        collector.episodes.exchange()
        stacked = {key: torch.stack(tensors) for key, tensors in columns.items()}
        ends, end_obs = ending(stacked["terminated"] | stacked["truncated"], stacked.pop("final_obs"))
        stacked |= {"ends": ends, "end_obs": end_obs, "core_state": core_state}
        self._rollouts = [Rollout(**{key: tensor.to(collector.device) for key, tensor in stacked.items()})]
        return self.rollout_length * collector.env.num_envs

    def batches(self) -> Iterator[Rollout]:
        while self._rollouts:
            yield self._rollouts.pop()

    def statistics(self) -> Metrics:
        return self.collector.statistics()

    def state_dict(self) -> State:
        return {"collector": self.collector.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state["collector"])


def ending(
    done: Bool[Tensor, "T B"], next_obs: Shaped[Tensor, "T B *obs"]
) -> tuple[Int[Tensor, "2 N"], Shaped[Tensor, "N *obs"]]:
    """`Rollout.ends` and `Rollout.end_obs`: the steps that end an episode or the rollout, in order of time and slot.

    Args:
        next_obs: The observation that each step led to.
    """
    last = done.clone()
    last[-1] = True
    step, slot = last.nonzero(as_tuple=True)
    return torch.stack([step, slot]), next_obs[step, slot]


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """Concatenates rollouts of T steps along their slots."""
    widths = [rollout.task.shape[1] for rollout in rollouts]
    moved = [
        replace(rollout, ends=rollout.ends + rollout.ends.new_tensor([[0], [sum(widths[:i])]]))
        for i, rollout in enumerate(rollouts)
    ]

    def join(name: str) -> Tensor:
        along = 0 if name in ("core_state", "end_obs") else 1
        return torch.cat([getattr(rollout, name) for rollout in moved], dim=along)

    return Rollout(**{name: join(name) for name in vars(rollouts[0])})


Samples = list[tuple[Int[Tensor, " N"], dict[str, Tensor]]]
"""Samples for a replay, in parts of N: their tasks and their columns (N, ...)."""


class ReplaySource(DataSource):
    """Base of the sources that fill a `Replay`, one vector step at a time, and yield stratified batches of it.

    A subclass says what a step adds (`_step`) and what is yielded (`_batch`). It yields as many batches as
    `samples_per_insert` allows, from when every task has `learning_starts` samples.

    Args:
        batch_size: n, samples per task in a batch.
        samples_per_insert: Samples learned from per sample added (the name is Reverb's). The published MT-SAC makes one
            update of 128 samples per task after a step of every task: this is 128, for any number of tasks.
        learning_starts: Samples per task before learning begins; at least 1.

    Raises:
        ValueError: The capacity is less than `learning_starts` or the number of slots.
    """

    stored_as: ClassVar[str] = "replay"
    """Name of the replay in the state."""

    def __init__(
        self, collector: Collector, replay: Replay, batch_size: int, samples_per_insert: float, learning_starts: int
    ) -> None:
        positive(batch_size=batch_size, samples_per_insert=samples_per_insert)
        not_negative(learning_starts=learning_starts)
        if replay.capacity < max(learning_starts, collector.env.num_envs):
            raise ValueError(
                f"capacity={replay.capacity} is less than learning_starts={learning_starts} or the number of slots, "
                f"{collector.env.num_envs}."
            )
        self.collector, self.replay = collector, replay
        self.batch_size, self.samples_per_insert, self.learning_starts = batch_size, samples_per_insert, learning_starts
        self._cost = batch_size * replay.num_tasks
        self._owed = 0.0
        self._warm = False

    def _step(self, actor: Actor, progress: float) -> Samples:
        """Steps every slot of the environment. Returns the samples to add."""
        raise NotImplementedError

    def _batch(self, samples: dict[str, Tensor]) -> Any:
        """The batch of stratified samples, which are "task" and the columns of the replay, (K, n, ...)."""
        raise NotImplementedError

    def _is_warm(self) -> bool:
        if not self._warm:
            self._warm = self.collector.episodes.ranks.all(self.replay.has(max(self.learning_starts, 1)))
        return self._warm

    def collect(self, actor: Actor, progress: float = 0.0) -> int:
        added = 0
        for task, columns in self._step(actor, progress):
            self.replay.add(task, columns)
            added += len(task)
        if self._is_warm():
            self._owed += added * self.samples_per_insert
        if self._owed >= self._cost:
            self.collector.settle()  # never learn from steps that have not been checked
        self.collector.episodes.exchange()
        return self.collector.env.num_envs

    def batches(self) -> Iterator[Any]:
        while self._owed >= self._cost:
            self._owed -= self._cost
            yield self._batch(self.replay.sample(self.batch_size))

    def statistics(self) -> Metrics:
        return self.collector.statistics()

    def state_dict(self) -> State:
        return {
            "collector": self.collector.state_dict(),
            self.stored_as: self.replay.state_dict(),
            "owed": self._owed,
        }

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state["collector"])
        self.replay.load_state_dict(state[self.stored_as])
        self._owed, self._warm = state["owed"], False


class OffPolicy(ReplaySource):
    """Transitions, with random actions until learning begins. For the other arguments see `ReplaySource`.

    Args:
        n_step: Joins steps to transitions.
    """

    yields = Batch
    joins_ranks = True

    def __init__(
        self,
        collector: Collector,
        replay: Replay,
        n_step: NStep,
        batch_size: int,
        samples_per_insert: float,
        learning_starts: int,
    ) -> None:
        super().__init__(collector, replay, batch_size, samples_per_insert, learning_starts)
        self.n_step = n_step
        self._random = RandomActor(collector.env.spec)

    def _step(self, actor: Actor, progress: float) -> Samples:
        obs = self.collector.obs
        action, _ = self.collector.act(actor if self._is_warm() else self._random)
        step = self.collector.step(action)
        row = {
            "task": step.task,
            "obs": obs,
            "action": action,
            "reward": step.reward,
            "continuation": step.continuation,
            "next_obs": step.final_obs,
            "done": step.done,
        }
        joined = self.n_step.add(row)
        return [(joined["task"], joined)] if joined else []

    def _batch(self, samples: dict[str, Tensor]) -> Batch:
        return Batch(**samples)

    def state_dict(self) -> State:
        return super().state_dict() | {"n_step": self.n_step.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.n_step.load_state_dict(state["n_step"])


class RandomActor:
    """Acts uniformly at random, among the actions of each task."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.mask = torch.tensor(spec.action_mask)

    def initial_state(self, num: int) -> Tensor:
        return torch.zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Random actions, whatever `explore` is. Log-probabilities are undefined and returned as NaN."""
        mask = self.mask.to(task.device)[task].float()
        if self.spec.action_kind == "continuous":
            action = (2 * torch.rand_like(mask) - 1) * mask
        else:
            action = torch.multinomial(mask, 1).squeeze(-1)
        return action, torch.full(task.shape, torch.nan, device=task.device), state
