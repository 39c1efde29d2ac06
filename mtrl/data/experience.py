"""Experience: how data reaches a learner. On-policy and off-policy differ here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtrl import per_task
from mtrl.checks import not_negative, positive
from mtrl.data.replay import Replay
from mtrl.data.returns import ReturnTracker
from mtrl.data.task_sampling import TaskSampler, allocate
from mtrl.finite import check_first, check_step
from mtrl.types import Actor, Batch, DataSource, EnvSpec, Metrics, PhaseTimer, Rollout, State, Step, VecEnv


class EpisodeStatistics:
    """Results of finished episodes: told to the task sampler as they end, and summed up for the log.

    Attributes:
        listeners: Called with each `statistics`.
        episode_listeners: Called with the arguments of each `add`.
        discount: Of the returns that listeners are told of: the learner's.
    """

    def __init__(self, spec: EnvSpec, sampler: TaskSampler) -> None:
        self.spec, self.sampler, self.discount = spec, sampler, 0.99
        self.listeners: list[Callable[[Metrics], None]] = []
        self.episode_listeners: list[Callable[[Tensor, Metrics], None]] = [sampler.update]
        self._silent = ~torch.tensor(spec.reports_success)
        self._finished = self._no_results()

    def _no_results(self) -> Float[Tensor, "4 K"]:
        """Sums over episodes: number, return, success, length."""
        return torch.zeros(4, self.spec.num_tasks, dtype=torch.float64)

    def add(self, task: Int[Tensor, " E"], results: Metrics) -> None:
        """Takes in E episodes that ended together.

        Args:
            task: Of each.
            results: Of each "return", "success" (0 or 1), "length", and "largest_return" (`ReturnTracker`).
        """
        number = torch.ones(len(task), dtype=torch.float64)
        columns = torch.stack([number, results["return"], results["success"], results["length"]])
        self._finished.index_add_(1, task, columns)
        for listener in self.episode_listeners:
            listener(task, results)

    def statistics(self) -> Metrics:
        """Results of the episodes finished since the last call, shares of the tasks, and means over tasks.

        A task without any is NaN, and one that reports no success in `success_rate`, which is left out if none does.
        Returns that are not comparable have no mean.
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
        self._finished = state["finished"].to("cpu", copy=True)  # it is changed in place


class Collector:
    """Steps an environment, adds up the results of its episodes, and gives slots their next tasks.

    Where all episodes have the same length, the first of each slot is cut short, so that the slots of a task end theirs
    at different times. Otherwise a rollout shorter than an episode would hold the same part of it in every slot.

    Args:
        device: Where observations go and actions come from.
        timer: Told what is inference and what is simulation.
        exploring_start_fraction: An episode begins with one random action, repeated a random number of times, from 0
            to this fraction of the horizon: a policy that always takes the same path may never find a better one
            (exploring starts, Sutton and Barto, chapter 5). These steps have an infinite log-probability, as no policy
            chose their action.

    Raises:
        ValueError: `exploring_start_fraction` is no share.
    """

    def __init__(
        self,
        env: VecEnv,
        episodes: EpisodeStatistics,
        device: torch.device | str,
        timer: PhaseTimer,
        exploring_start_fraction: float = 0.0,
    ) -> None:
        if not 0 <= exploring_start_fraction <= 1:
            raise ValueError(
                f"exploring_start_fraction must be a share of an episode, from 0 to 1, not {exploring_start_fraction}."
            )
        self.env, self.episodes, self.device, self.timer = env, episodes, torch.device(device), timer
        self.obs = env.reset().to(self.device)
        self.task = env.task.to(self.device)
        check_first(self.obs, self.task, env.spec)
        self.core_state = torch.zeros(env.num_envs, 0, device=self.device)
        """Recurrent state of the actor: its initial one, set before the first step, if the actor has memory."""
        self._next_state = self.core_state
        self._episode_return = torch.zeros(env.num_envs)
        self._succeeded = torch.zeros(env.num_envs, dtype=torch.bool)
        self._length = torch.zeros(env.num_envs)
        self._returns = ReturnTracker(env.num_envs)
        self._until_cut = first_lengths(self.task.cpu(), env.spec)
        self._random = RandomActor(env.spec)
        self._longest_start = int(exploring_start_fraction * (env.spec.horizon or 0))
        self._start_action, *_ = self._random.act(self.obs, self.task, self.core_state, explore=True)
        self._start_length = torch.randint(self._longest_start + 1, (env.num_envs,))
        self._assign()

    def _assign(self) -> None:
        """Chooses the tasks of the episodes that begin next."""
        self.env.assign(allocate(self.episodes.sampler.probabilities(), self.env.task))

    def act(self, actor: Actor) -> tuple[Tensor, Tensor]:
        """Exploring actions for the current observations, and their log-probabilities."""
        with self.timer("inference"):
            action, log_prob, self._next_state = actor.act(self.obs, self.task, self.core_state, explore=True)
            starting = (self._length < self._start_length).to(self.device)
            rows = starting.reshape(-1, *[1] * (action.ndim - 1))
            return torch.where(rows, self._start_action, action), log_prob.masked_fill(starting, torch.inf)

    def step(self, action: Tensor) -> Step:
        """Steps every slot. Afterwards `obs`, `task` and `state` are what to act on next."""
        with self.timer("env"):
            step = self.env.step(action, truncate=self._until_cut == 1)
        check_step(step, self._length + 1, self.env.spec)
        # Only now: where the environment fails, everything is still as it was before the step.
        self.core_state = self._next_state
        self._until_cut -= 1
        self._episode_return += step.reward.cpu()
        self._succeeded |= step.success.cpu()
        self._length += 1
        self._returns.add(step.reward.cpu())
        done = step.done.cpu()
        if done.any():
            running = {"return": self._episode_return, "success": self._succeeded, "length": self._length}
            results = {name: values[done].double() for name, values in running.items()}
            results["largest_return"] = self._returns.end(done, step.terminated.cpu(), self.episodes.discount)
            self.episodes.add(step.task.cpu()[done], results)
            for values in running.values():
                values[done] = 0
            check_first(step.obs, self.env.task, self.env.spec)
            self._assign()
        self.obs = step.obs.to(self.device)
        self.task = self.env.task.to(self.device)
        if done.any():
            self.core_state = self.core_state.masked_fill(done.to(self.device)[:, None], 0)
            self._begin(done)
        return step

    def _begin(self, slots: Bool[Tensor, " B"]) -> None:
        """Draws how the episodes that have just begun in some slots begin."""
        action, *_ = self._random.act(self.obs, self.task, self.core_state, explore=True)
        length = torch.randint(self._longest_start + 1, slots.shape)
        self._start_action[slots], self._start_length[slots] = action[slots], length[slots]

    def state_dict(self) -> State:
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
        """Raises `ValueError` for what an environment cannot have shown."""
        self.env.load_state_dict(state["env"])
        self.episodes.load_state_dict(state)
        self.obs, self.core_state = (state[name].to(self.device) for name in ("obs", "core_state"))
        if not (self.obs.isfinite().all() and self.core_state.isfinite().all()):
            raise ValueError("collector: expected finite observations and states, found NaN or infinity")
        self.task = self.env.task.to(self.device)
        # Copied, as they are changed in place.
        names = ("episode_return", "succeeded", "length", "until_cut", "start_length")
        for name in names:
            setattr(self, f"_{name}", state[name].to("cpu", copy=True))
        self._start_action = state["start_action"].to(self.device, copy=True)
        self._returns.load_state_dict(state["returns"])


def first_lengths(task: Int[Tensor, " B"], spec: EnvSpec) -> Int[Tensor, " B"]:
    """Length of each slot's first episode: over the n slots of a task, 1/n, 2/n, ... of the horizon; 0 without one."""
    nth = 1 + per_task.rank(task, spec.num_tasks)
    return -(-(spec.horizon or 0) * nth // per_task.count(task, spec.num_tasks)[task])  # rounded up


class OnPolicy(DataSource):
    """Rollouts of T steps of every slot, each used once.

    Args:
        rollout_length: T.
    """

    yields = Rollout

    def __init__(self, collector: Collector, rollout_length: int) -> None:
        positive(rollout_length=rollout_length)
        self.collector, self.rollout_length = collector, rollout_length
        self.batch_shape = (rollout_length, collector.env.num_envs)
        self._rollouts: list[Rollout] = []

    def connect(self, policy: Actor) -> None:
        self.collector.core_state = policy.initial_state(self.collector.env.num_envs)

    def collect(self, actor: Actor) -> int:
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
                "next_obs": step.final_obs,
                "task": task,
            }
            for key, tensor in row.items():
                columns.setdefault(key, []).append(tensor.to(collector.device))
        self._rollouts = [
            Rollout(**{key: torch.stack(tensors) for key, tensors in columns.items()}, core_state=core_state)
        ]
        return self.rollout_length * collector.env.num_envs

    def batches(self) -> Iterator[Rollout]:
        while self._rollouts:
            yield self._rollouts.pop()

    def statistics(self) -> Metrics:
        return self.collector.episodes.statistics()

    def state_dict(self) -> State:
        return {"collector": self.collector.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state["collector"])


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of T steps side by side, as one of all their slots."""

    def join(name: str) -> Tensor:
        slots = 0 if name == "core_state" else 1
        return torch.cat([getattr(rollout, name) for rollout in rollouts], dim=slots)

    return Rollout(**{name: join(name) for name in vars(rollouts[0])})


class OffPolicy(DataSource):
    """One vector step at a time into a replay; as many stratified batches as the replay ratio allows.

    Args:
        batch_size: n, samples per task in a batch.
        samples_per_insert: Samples learned from for each transition collected (the name is Reverb's). The single update
            of the published MT-SAC with 128 samples per task, after a step of every task, is 128, for any number of
            tasks.
        learning_starts: Transitions of every task collected with random actions before learning begins.
    """

    yields = Batch

    def __init__(
        self, collector: Collector, replay: Replay, batch_size: int, samples_per_insert: float, learning_starts: int
    ) -> None:
        positive(batch_size=batch_size, samples_per_insert=samples_per_insert)
        not_negative(learning_starts=learning_starts)
        if replay.capacity < max(learning_starts, collector.env.num_envs):
            raise ValueError(f"capacity={replay.capacity} is less than the learning_starts or the number of slots.")
        self.collector, self.replay = collector, replay
        self.batch_size, self.samples_per_insert, self.learning_starts = batch_size, samples_per_insert, learning_starts
        self._random = RandomActor(collector.env.spec)
        self._owed = 0.0

    @property
    def _warm(self) -> bool:
        return int(self.replay.added.min()) >= max(self.learning_starts, 1)

    def collect(self, actor: Actor) -> int:
        collector, obs = self.collector, self.collector.obs
        action, _ = collector.act(actor if self._warm else self._random)
        step = collector.step(action)
        self.replay.add(obs, action, step.reward, step.continuation, step.final_obs, step.task)
        if self._warm:
            self._owed += collector.env.num_envs * self.samples_per_insert
        return collector.env.num_envs

    def batches(self) -> Iterator[Batch]:
        cost = self.batch_size * self.replay.num_tasks
        while self._owed >= cost:
            self._owed -= cost
            yield self.replay.sample(self.batch_size)

    def statistics(self) -> Metrics:
        return self.collector.episodes.statistics()

    def state_dict(self) -> State:
        return {"collector": self.collector.state_dict(), "replay": self.replay.state_dict(), "owed": self._owed}

    def load_state_dict(self, state: State) -> None:
        self.collector.load_state_dict(state["collector"])
        self.replay.load_state_dict(state["replay"])
        self._owed = state["owed"]


class RandomActor:
    """Uniform actions, among those that each task has."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.mask = torch.tensor(spec.action_mask)

    def initial_state(self, num: int) -> Tensor:
        return torch.zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Random actions whatever `explore` says; log-probabilities are not defined and given as NaN."""
        mask = self.mask.to(task.device)[task].float()
        if self.spec.action_kind == "continuous":
            action = (2 * torch.rand_like(mask) - 1) * mask
        else:
            action = torch.multinomial(mask, 1).squeeze(-1)
        return action, torch.full(task.shape, torch.nan, device=task.device), state
