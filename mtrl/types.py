"""Data classes and protocols shared by environments, data sources, learners and the run.

Letters in shapes: K tasks, B environment slots, T time steps of a rollout, n samples per task, A action size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

T = TypeVar("T")

State = dict[str, Any]
"""Result of `state_dict`: nested dicts and lists of tensors and JSON scalars (nothing that needs pickle)."""

TaskAxes = Mapping[str, tuple[int, ...]]
"""Type of a module's `task_axes`: maps the names of per-task tensors in its `state_dict` to the axes along which the K
tasks lie, in the order of their ids. Such an axis may have several entries per task, next to one another. `init_from`
uses it.
"""

Metrics = dict[str, Tensor]
"""Named device tensors: a scalar `()`, one value per task `(K,)` or per pair of tasks `(K, K)`.

They are read only when a row is logged. Names with a group ("grad/critic_norm") keep it; others get the group "train".
"""


class UserError(Exception):
    """A user's mistake: the command line prints its one-line message and exits with code 2, without a traceback."""


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite in `tasks` (ids). No parameter has been changed by it."""

    def __init__(self, tasks: list[int]) -> None:
        super().__init__(f"loss is not finite in tasks {tasks}")
        self.tasks = tasks


@dataclass(frozen=True)
class EnvSpec:
    """What a learner needs to know about an environment before the first step."""

    task_names: tuple[str, ...]
    """Names of the K tasks, in the order of the task ids."""
    obs_shape: tuple[int, ...]
    """Shape of one observation; tasks with smaller observations are padded with zeros."""
    obs_dtype: torch.dtype
    action_kind: Literal["continuous", "discrete"]
    action_dim: int
    """Size of a continuous action, each component in [-1, 1] (the environment rescales), or number of actions."""
    action_mask: tuple[tuple[bool, ...], ...]
    """(K, action_dim): the components or actions that exist in each task."""
    horizon: int | None
    """Steps after which an episode is truncated, if it is the same number for all."""
    reports_success: tuple[bool, ...]
    """(K,): whether each task reports success; if not, `Step.success` is meaningless."""
    comparable_returns: bool
    """Whether returns are comparable between tasks, so that their mean over tasks is meaningful."""
    num_goals: int = 0
    """Number of fixed variations of each task, or 0 if the goal of an episode is its seed."""
    task_descriptions: tuple[str, ...] | None = None
    history: tuple[int, int] = (0, 0)
    """(H, W): flat observations begin with the last H transitions of W numbers (`mtrl.envs.history`)."""

    @property
    def num_tasks(self) -> int:
        """K."""
        return len(self.task_names)

    @property
    def has_success(self) -> bool:
        """Whether any task reports success."""
        return any(self.reports_success)

    @property
    def silent_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that do not report success."""
        pairs = zip(self.task_names, self.reports_success, strict=True)
        return tuple(name for name, reports in pairs if not reports)


def match_tasks(have: Sequence[str], want: Sequence[str]) -> list[int | None]:
    """For each task in `want`, its id in `have`; None if it is missing.

    Tasks are always identified by their names, never by their positions in a list.
    """
    ids = {name: task for task, name in enumerate(have)}
    return [ids.get(name) for name in want]


@dataclass(frozen=True)
class Step:
    """One step of all B slots. `obs` belongs to the next action; every other field to the transition just made."""

    obs: Shaped[Tensor, "B *obs"]
    """Observation for the next action: after a done, the first of the new episode (same-step autoreset)."""
    reward: Float[Tensor, " B"]
    terminated: Bool[Tensor, " B"]
    """The task ended: the value of the next state is zero."""
    truncated: Bool[Tensor, " B"]
    """The episode was stopped (time limit): values bootstrap from `final_obs`."""
    success: Bool[Tensor, " B"]
    """Success flag of this step."""
    task: Int[Tensor, " B"]
    """Task in which the transition was made."""
    final_obs: Shaped[Tensor, "B *obs"]
    """Observation that the transition led to, in every slot: after a done the old episode's last, else `obs`."""
    life_lost: Bool[Tensor, " B"] | None = None
    """A life was lost: the value of the next state counts as zero, but the episode continues. None without lives."""

    @property
    def continuation(self) -> Float[Tensor, " B"]:
        """0 where the value of the next state counts as zero, which is after `terminated` and `life_lost`; else 1."""
        ends = self.terminated if self.life_lost is None else self.terminated | self.life_lost
        return (~ends).float()

    @property
    def done(self) -> Bool[Tensor, " B"]:
        """Whether the episode ended: terminated or truncated."""
        return self.terminated | self.truncated


@runtime_checkable
class VecEnv(Protocol):
    """B environment slots stepped together, on one device. Each slot runs one task at a time.

    Slots reset themselves (same-step autoreset). Continuous actions are clipped to [-1, 1]; NaN raises `ValueError` on
    a CPU. On an accelerator the caller checks for NaN (`mtrl.finite.check_actions`), because that waits for the device.
    """

    spec: EnvSpec
    num_envs: int
    """B."""
    task: Int[Tensor, " B"]
    """Task that each slot is running."""
    goal: Int[Tensor, " B"]
    """Variation of the task that each slot is running: one of Meta-World's 50 goals; elsewhere the episode's seed, or
    -1 if it continues with the random numbers of the previous episode (Atari)."""

    def reset(self, seed: int | None = None) -> Shaped[Tensor, "B *obs"]:
        """Begins a new episode in every slot; with a seed, restarts the random numbers too."""
        ...

    def step(self, action: Tensor, truncate: Bool[Tensor, " B"] | None = None) -> Step:
        """Steps with actions (B, A) float or (B,) int64. Slots in `truncate` are truncated after it, however short."""
        ...

    def assign(self, task: Int[Tensor, " B"], goal: Int[Tensor, " B"] | None = None) -> None:
        """Sets each slot's task and goal from its next episode on. Goal -1 (None: all) is drawn for each episode."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...

    def close(self) -> None:
        """Stops worker processes. Stepping afterwards is an error."""
        ...


@dataclass(frozen=True)
class Batch:
    """Transitions for off-policy learning, stratified: n samples for each of the K tasks."""

    obs: Shaped[Tensor, "K n *obs"]
    action: Shaped[Tensor, "K n *action"]
    reward: Float[Tensor, "K n"]
    """Of several steps, their discounted sum (`mtrl.data.n_step`); likewise below."""
    continuation: Float[Tensor, "K n"]
    """0 where the value of the next state counts as zero (`Step.continuation`), else 1; of m steps gamma^(m - 1)."""
    next_obs: Shaped[Tensor, "K n *obs"]
    task: Int[Tensor, "K n"]


@dataclass(frozen=True)
class Rollout:
    """Consecutive steps of B slots for on-policy learning, time first."""

    obs: Shaped[Tensor, "T B *obs"]
    action: Shaped[Tensor, "T B *action"]
    log_prob: Float[Tensor, "T B"]
    """Log-probability of `action` under the policy that took it; infinite where no policy chose it."""
    reward: Float[Tensor, "T B"]
    terminated: Bool[Tensor, "T B"]
    truncated: Bool[Tensor, "T B"]
    continuation: Float[Tensor, "T B"]
    """0 where the value of the next state counts as zero (`Step.continuation`), else 1."""
    ends: Int[Tensor, "2 N"]
    """Step and slot of the N steps that end an episode or the rollout: `obs[t + 1]` is not what they led to."""
    end_obs: Shaped[Tensor, "N *obs"]
    """Observation that each of these steps led to (`Step.final_obs`)."""
    task: Int[Tensor, "T B"]
    """Constant within an episode; may change where one ended."""
    core_state: Float[Tensor, "B S"]
    """Recurrent state with which the first action was chosen; S is 0 for policies without memory."""

    @property
    def done(self) -> Bool[Tensor, "T B"]:
        """Whether the episode ended: terminated or truncated."""
        return self.terminated | self.truncated

    @property
    def is_first(self) -> Bool[Tensor, "T B"]:
        """Whether an episode begins with `obs`. False in the first row, for which there is `core_state`."""
        return torch.cat([torch.zeros_like(self.done[:1]), self.done[:-1]])


@dataclass(frozen=True)
class TaskContext:
    """Everything that networks know about the task."""

    task: Int[Tensor, "*batch"]
    embedding: Float[Tensor, "*batch E"]


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluation episode."""

    task: str
    goal: int
    success: bool | None
    """Whether any step was a success; None if the task does not report it."""
    episode_return: float
    length: int
    truncated: bool = False
    """Whether it was ended by the evaluation (`eval.max_episode_steps`), not by the environment."""


@dataclass(frozen=True)
class EvalResult:
    """Evaluation of one policy: every episode, and the protocol in words."""

    protocol: Mapping[str, Any]
    episodes: tuple[EpisodeResult, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores of the benchmark, for example human-normalised ones."""
    comparable_returns: bool = True
    """See `EnvSpec.comparable_returns`."""

    @property
    def has_success(self) -> bool:
        """Whether any task reports success."""
        return any(episode.success is not None for episode in self.episodes)

    @property
    def by_task(self) -> dict[str, list[EpisodeResult]]:
        """The episodes of each task, by its name."""
        episodes: dict[str, list[EpisodeResult]] = {}
        for episode in self.episodes:
            episodes.setdefault(episode.task, []).append(episode)
        return episodes


class EvaluationProtocol:
    """How policies that were trained in an environment are evaluated.

    This default is for environments that define nothing else: evaluation in the same environment, only by the rules of
    every evaluation, and without scores. A suite with its own protocol registers a subclass under the name of its
    environment: `@register("evaluation", "my_suite")`.

    Args:
        settings: Settings of the training environment: its `name` and options.
        seed: Seed of the run.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = dict(settings), seed

    def record_settings(self) -> dict[str, Any]:
        """Settings of the environment of record, in which results are reported."""
        return self.settings

    def words(self) -> dict[str, Any]:
        """Protocol in words, beyond the number of episodes, their length and when success counts."""
        return {}

    def scores(self, result: EvalResult) -> dict[str, float]:
        """Scores of the benchmark: over all tasks by name, for a single task as `<name>/<task>`."""
        return {}


@runtime_checkable
class PhaseTimer(Protocol):
    """Adds up the time spent in named phases: `with timer("env"): ...`."""

    def __call__(self, phase: str) -> AbstractContextManager[None]: ...


class Ranks:
    """The processes of one run ("ranks"), each of which acts in its share of the slots and learns from what it saw.

    This class is one process alone: what it adds up, gathers or tells is its own. `mtrl.parallel.ranks.ProcessGroup` is
    several, which call the same methods in the same order and wait for one another in each. Together they compute what
    one process would with the joint batch, which is all of their samples.
    """

    rank: int = 0
    """Number of this process."""
    size: int = 1
    """Number of processes."""
    local_size: int = 1
    """Number of processes on this machine."""
    launcher: tuple[str, ...] = ("python",)
    """Command that starts them."""

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, the same to the last bit in all of them."""
        return x

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the ranks of several tensors, which are exchanged as one."""
        return list(tensors)

    def each(self, x: Tensor) -> list[Tensor]:
        """The tensor of every rank, in their order. All have the same shape."""
        return [x]

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the first rank, in every rank. All have the same shapes."""
        return list(tensors)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order. It must be possible to pickle it."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any rank."""
        return flag

    def all(self, flag: bool) -> bool:
        """Whether it is true in every rank."""
        return not self.any(not flag)

    def first(self, function: Callable[[], T]) -> T:
        """Calls a function in the first rank only. Its result is returned, or its exception raised, in every rank."""
        return function()

    def joint(self, losses: Float[Tensor, "M K"], task: Int[Tensor, "*samples"]) -> Float[Tensor, "M K"]:
        """Losses of the joint batch, from the means over this rank's samples of each task.

        Their gradient is only that of this rank's samples; the sum over the ranks is that of the joint batch.

        Args:
            losses: M losses of each task, 0 for a task without samples.
            task: Task of each sample.
        """
        return losses

    def sum_gradients(self, parameters: Iterable[nn.Parameter], mean: bool = False) -> None:
        """Replaces `.grad` of parameters by its sum or mean over the ranks, where no gradient counts as zero."""

    def make_alike(self, module: nn.Module) -> None:
        """Gives parameters and buffers the values that they have in the first rank."""

    def share(self, name: str, total: int) -> int:
        """A rank's share of a number that the setting `name` gives for all. Raises `UserError` for a remainder."""
        return total

    def reports(self, error: BaseException) -> bool:
        """Whether it is for this rank to report an error that others may have met, too. Does not wait for them."""
        return True


ONE_PROCESS = Ranks()


@runtime_checkable
class Actor(Protocol):
    """Chooses actions; this is all that evaluation needs."""

    def initial_state(self, num: int) -> Tensor:
        """Recurrent state (num, S) at the beginning of an episode: zeros; S is 0 for an actor without memory."""
        ...

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Returns actions, their log-probabilities (B,), and the state for the next call.

        Actions are deterministic when `explore` is false. Where an episode ends, the caller sets the state to zero.
        """
        ...


@runtime_checkable
class Learner(Actor, Protocol):
    """Learns from the batches of a `DataSource`. Subclasses inherit the methods that have a body."""

    policy: Any
    """The deployable module, a `PolicyNetwork`."""
    networks: nn.ModuleDict
    """All networks, with the policy under "policy": they are saved, and `init_from` can load them."""
    optimizers: Mapping[str, Any]
    """Optimisers of the networks by name (`MultiTaskOptimizer`): saved, and restarted by `resets`."""
    aux_losses: Mapping[str, Any] = MappingProxyType({})
    """Losses that the configuration adds to that of the policy (`AuxLoss`): saved, if there are any."""
    learns_from: type = object
    """Class of the batches."""
    compilable: tuple[str, ...] = ()
    """Names of the functions from networks to losses that `compile=true` compiles."""
    policy_loss: tuple[str, ...] = ()
    """Names of the functions that compute the policy's loss of each task (K,), in the order of their calls: what one
    returns may be an argument of the next, and the last returns the losses, or a tuple that begins with them."""
    joins_ranks: bool = False
    """Whether several of it in different processes learn as one (`Ranks`)."""

    def initial_state(self, num: int) -> Tensor:
        state: Tensor = self.policy.initial_state(num)
        return state

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        acted: tuple[Tensor, Tensor, Tensor] = self.policy.act(obs, task, state, explore)
        return acted

    def update(self, batch: Any, progress: float) -> Metrics:
        """Learns from one batch; `progress` in [0, 1] is the fraction of training done."""
        ...

    def initialised(self, taken: Mapping[str, Tensor]) -> None:
        """Called when `init_from` has set entries of networks: which ones (True), by the names of their state."""
        return

    def diagnostics(self, batch: Any) -> Metrics:
        """Metrics that take too long for every update: computed when a row is logged."""
        return {}

    def state_dict(self) -> State:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state: State = {"networks": self.networks.state_dict(), "optimizers": optimizers}
        if self.aux_losses:
            state["aux_losses"] = {name: loss.state_dict() for name, loss in self.aux_losses.items()}
        return state

    def load_state_dict(self, state: State) -> None:
        self.networks.load_state_dict(state["networks"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, loss in self.aux_losses.items():
            loss.load_state_dict(state["aux_losses"][name])


@runtime_checkable
class DataSource(Protocol):
    """Provides a learner's batches. On-policy, off-policy, asynchronous and offline learning differ only here.

    Subclasses inherit the methods that have a body, which do nothing.
    """

    yields: type = object
    """Class of its batches; `object` if unspecified."""
    batch_shape: tuple[int, ...] | None = None
    """Leading axes of every batch, if they are known in advance: (T, B) for rollouts."""
    teacher: Any = None
    """What its batches are labelled by, if they are (`mtrl.distill.teachers.Teacher`)."""
    joins_ranks: bool = False
    """Whether several of it in different processes, with as many batches each, are one source (`Ranks`)."""
    makes_steps: bool = True
    """Whether it steps environments. If not, training ends by `total_updates`."""

    def connect(self, policy: Any) -> None:
        """Sets the network that will act. Called once, before `collect` and `load_state_dict`."""
        return

    def collect(self, actor: Actor, progress: float) -> int:
        """Lets the actor act and stores the experience; returns the number of environment steps.

        `progress` in [0, 1] is the fraction of training done.
        """
        return 0

    def batches(self) -> Iterable[Any]:
        """Zero or more batches to learn from now, for `Learner.update`."""
        ...

    def statistics(self) -> Metrics:
        """Per-task results (K,) of recently finished episodes, NaN for a task without any; and scalars ().

        The mean of a result over tasks, where it is meaningful, is called `<result>_mean`.
        """
        return {}

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        return None

    def close(self) -> None:
        """Stops its processes. The run closes the environment that the source was given."""
        return
