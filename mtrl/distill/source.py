"""DAgger's aggregated dataset: observations of the student and of the teacher, labelled by the teacher."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mtrl.checks import not_negative
from mtrl.data.experience import Collector, EpisodeStatistics, RandomActor, ReplaySource, Samples
from mtrl.data.replay import Replay
from mtrl.distill.batch import Labelled
from mtrl.distill.episodes import AllEpisodes, SuccessfulEpisodes
from mtrl.distill.losses import label_size, teacher_action
from mtrl.distill.schedules import Schedule, Value, as_schedule
from mtrl.distill.teachers import Teacher
from mtrl.registry import build, register
from mtrl.types import Actor, DataSource, EnvSpec, PhaseTimer, State, UserError, VecEnv


class DemonstrationActor:
    """Acts as the teacher in some slots and as the student in the others, with noise.

    Args:
        demonstrated: The teacher's actions for the observations of the next call.
        teaching: Slots in which the teacher acts.
        noise: Noise of each slot (B,): see `Dagger`.
        random: Draws random discrete actions.
    """

    def __init__(
        self, student: Actor, demonstrated: Tensor, teaching: Bool[Tensor, " B"], noise: Tensor, random: RandomActor
    ) -> None:
        self.student, self.demonstrated, self.teaching, self.noise = student, demonstrated, teaching, noise
        self.random = random
        self.initial_state = student.initial_state

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`. There is always noise, whatever `explore` is."""
        action, log_prob, state = self.student.act(obs, task, state, explore=False)
        rows = (-1, *[1] * (action.ndim - 1))
        action = torch.where(self.teaching.reshape(rows), self.demonstrated.to(action.dtype), action)
        if self.random.spec.action_kind == "continuous":
            mask = self.random.mask.to(task.device)[task]
            action = action + self.noise.reshape(rows) * torch.randn_like(action) * mask
        else:
            random, *_ = self.random.act(obs, task, state, explore)
            action = torch.where(torch.rand_like(self.noise) < self.noise, random, action)
        return action, torch.full_like(log_prob, torch.nan), state


class Dagger(ReplaySource):
    """All observations, labelled by the teacher, in a dataset: a replay with the columns "obs" and "label".

    The student acts, so that the observations are those that it will encounter. In some episodes the teacher acts, so
    that the student sees from the beginning where it should get to. Ross et al. (2011) mix by steps instead of
    episodes, and learn from the whole dataset at the end of each iteration; here learning is continuous.

    The teacher sees every episode from its beginning, whoever acts: a teacher with memory remembers the observations.

    Args:
        dataset: For it and the arguments after it see `ReplaySource`.
        teacher_share: Probability that the teacher acts in an episode.
        teacher_noise: Standard deviation of the noise that is added to each component of the teacher's actions; where
            actions are discrete, the probability of a random one.
        student_noise: The same for the student's actions.
        episodes: Which of them enter the dataset.
    """

    yields = Labelled
    stored_as = "dataset"

    def __init__(
        self,
        collector: Collector,
        teacher: Teacher,
        dataset: Replay,
        batch_size: int,
        samples_per_insert: float,
        learning_starts: int,
        teacher_share: Schedule,
        teacher_noise: float,
        student_noise: float,
        episodes: AllEpisodes,
    ) -> None:
        super().__init__(collector, dataset, batch_size, samples_per_insert, learning_starts)
        not_negative(teacher_noise=teacher_noise, student_noise=student_noise)
        self.teacher, self.teacher_share = teacher, teacher_share
        self.teacher_noise, self.student_noise = teacher_noise, student_noise
        self.episodes = episodes
        self._random = RandomActor(collector.env.spec)
        self._mask = self._random.mask.to(collector.device)
        self._begins = torch.ones(collector.env.num_envs, dtype=torch.bool, device=collector.device)
        self._teaching = torch.zeros_like(self._begins)
        self._teacher_state = torch.zeros(collector.env.num_envs, teacher.state_size, device=collector.device)

    def _step(self, actor: Actor, progress: float) -> Samples:
        collector = self.collector
        obs, task = collector.obs, collector.task
        with collector.timer("teacher"):
            label, teacher_state = self.teacher.label(obs, task, self._teacher_state)
        share = self.teacher_share(progress).to(task.device).expand(self.replay.num_tasks)
        draw = torch.rand(len(task), device=task.device) < share[task]
        self._teaching = torch.where(self._begins, draw, self._teaching)
        noise = torch.where(self._teaching, self.teacher_noise, self.student_noise)
        demonstrated = teacher_action(self.teacher.kind, label, self._mask[task])
        mixed = DemonstrationActor(actor, demonstrated, self._teaching, noise, self._random)
        action, _ = collector.act(mixed)
        step = collector.step(action)
        self._begins = step.done.to(task.device)
        self._teacher_state = teacher_state.masked_fill(self._begins[:, None], 0)
        return self.episodes.pass_on(task, {"obs": obs, "label": label}, step)

    def _batch(self, samples: dict[str, Tensor]) -> Labelled:
        return Labelled(**samples, kind=self.teacher.kind)

    def state_dict(self) -> State:
        return {
            **super().state_dict(),
            **self.episodes.state_dict(),
            "teacher_share": self.teacher_share.state_dict(),
            "begins": self._begins,
            "teaching": self._teaching,
            "teacher_state": self._teacher_state,
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.episodes.load_state_dict(state)
        self.teacher_share.load_state_dict(state["teacher_share"])
        device = self.collector.device
        self._begins, self._teaching = state["begins"].to(device), state["teaching"].to(device)
        if not state["teacher_state"].isfinite().all():
            raise ValueError("teacher_state: expected finite numbers, found NaN or infinity")
        self._teacher_state = state["teacher_state"].to(device)


@register("data", "dagger")
def dagger(
    env: VecEnv,
    episodes: EpisodeStatistics,
    device: str,
    timer: PhaseTimer,
    actors: int,
    teacher: dict[str, Any],
    teacher_share: Value = 0.0,
    teacher_noise: float = 0.0,
    student_noise: float = 0.0,
    batch_size: int = 128,
    samples_per_insert: float = 16,
    capacity: int = 50_000,
    learning_starts: int = 1,
    slots_per_task: int = 1,
    max_episode_steps: int | None = None,
    only_successful: bool = False,
) -> DataSource:
    """Observations of the student and of its teacher, labelled by the teacher.

    Ross et al., "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning" (2011).

    Use it with `agent=distill`, whose preset chooses it.

    Args:
        teacher: Config node of a `teacher`.
        teacher_share: Probability that the teacher acts in an episode: a number, or a `schedule`.
        teacher_noise: Standard deviation of the noise that is added to the teacher's actions; where actions are
            discrete, the probability of a random one.
        student_noise: The same for the student's actions.
        batch_size: Samples per task in a batch.
        samples_per_insert: Samples learned from per sample collected.
        capacity: Samples per task; the oldest are overwritten.
        learning_starts: Samples per task before the first update.
        slots_per_task: Slots per task, if the environment has no `num_envs`.
        max_episode_steps: Steps after which episodes of training are truncated; evaluations are not affected.
        only_successful: Whether the samples of an episode only enter the dataset when it ends, and if it succeeded.
            Learning begins when this has happened in every task.

    Raises:
        UserError: There are actors, the teacher does not suit the environment, or `only_successful` is for tasks that
            report no success, for episodes without a limit, or for longer ones than the dataset holds.
    """
    if actors:
        raise UserError("A teacher labels in the learner's process: use actors=0.")
    spec = env.spec
    made: Teacher = build("teacher", teacher, spec=spec, device=device)
    share = as_schedule(teacher_share, spec, episodes)
    columns = {"obs": (spec.obs_shape, spec.obs_dtype), "label": ((label_size(made.kind, spec),), torch.float32)}
    collector = Collector(env, episodes, device, timer, max_episode_steps=max_episode_steps)
    chosen = AllEpisodes()
    if only_successful:
        check_success(spec, collector.longest, capacity)
        chosen = SuccessfulEpisodes(env.num_envs, collector.longest, columns, device)
    return Dagger(
        collector,
        made,
        Replay(spec.num_tasks, capacity, columns, device),
        batch_size,
        samples_per_insert,
        learning_starts,
        share,
        float(teacher_noise),
        float(student_noise),
        chosen,
    )


def check_success(spec: EnvSpec, longest: int, capacity: int) -> None:
    """Raises `UserError` if successful episodes of at most `longest` steps cannot be told or held."""
    if spec.silent_tasks:
        raise UserError(
            f"only_successful=true needs success, which {', '.join(spec.silent_tasks)} does not report: use "
            "only_successful=false."
        )
    if not longest:
        raise UserError(
            "only_successful=true holds whole episodes back, which have no limit here: set data.max_episode_steps."
        )
    if longest > capacity:
        raise UserError(f"capacity={capacity} is less than an episode of {longest} steps, which is added as a whole.")
