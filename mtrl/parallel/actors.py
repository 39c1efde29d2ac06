"""On-policy data from actors that run in parallel with the learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtrl.checks import positive
from mtrl.data.experience import EpisodeStatistics, concatenate
from mtrl.nn.networks import PolicyNetwork
from mtrl.parallel.actor import Recipe, broadcast_tree
from mtrl.parallel.transport import ActorError, Death, Delivery, Transport
from mtrl.types import Actor, DataSource, Metrics, PhaseTimer, Rollout, State, VecEnv

MOST_DEATHS = 3
"""Number of deaths of an actor in a row, without a rollout in between, that raises `ActorError`."""


class AsyncOnPolicy(DataSource):
    """Rollouts of T steps, each used once, from actors that act while the learner learns.

    Espeholt et al., "IMPALA" (2018). A batch is as many rollouts as there are actors, in order of arrival.

    Weights are published before the batch of each update is gathered. Each actor fills one rollout while the learner
    learns, and takes the newest weights for the next, so that rollouts are one update old if actors keep pace. (Room
    for another rollout would only make them older.) `policy_lag` counts these updates.

    The state of actors is not saved: in a resumed run all begin new episodes, with other random numbers.

    Args:
        count: Number of actors.
        num_envs: Total number of slots of all actors.
        make_env: Makes the environment of one actor; a module-level function, or a partial of one.
        transport: A transport that has no actors yet.
        timer: Times how long the learner waits.
        options: Options of each actor's `Collector`.
        seed: The actors' seeds are derived from it.
        report: Called with a line about each actor that died.
        rollout_length: T.
    """

    yields = Rollout

    def __init__(
        self,
        count: int,
        num_envs: int,
        make_env: Callable[[], VecEnv],
        episodes: EpisodeStatistics,
        transport: Transport,
        timer: PhaseTimer,
        options: Mapping[str, Any],
        seed: int,
        report: Callable[[str], None],
        rollout_length: int,
    ) -> None:
        positive(count=count, rollout_length=rollout_length)
        self.count, self.make_env, self.episodes = count, make_env, episodes
        self.transport, self.timer, self.options = transport, timer, options
        self.seed, self.report = seed, report
        self.rollout_length, self.batch_shape = rollout_length, (rollout_length, num_envs)
        self.restarts = 0
        self._started = 0  # over all sessions of the run
        self._running = False
        self._deaths = [0] * count  # in a row
        self._rollouts: list[Rollout] = []
        self._lags: list[tuple[int, int]] = []  # actor and lag of each rollout since the last statistics

    def connect(self, policy: PolicyNetwork) -> None:
        """Sets the policy whose weights are published."""
        self.policy = policy
        discount = self.episodes.discount  # known once the learner is built
        self.recipe = Recipe(self.make_env, policy.description, self.rollout_length, self.options, discount, self.seed)

    def collect(self, actor: Actor, progress: float = 0.0) -> int:
        """Publishes the weights and gathers the next batch from the actors; `actor` is not used."""
        self.transport.publish(broadcast_tree(self.policy, self.episodes.sampler.probabilities()))
        if not self._running:  # only now, as a state may have been loaded
            self._running = True
            for i in range(self.count):
                self._start(i)
        gathered: list[Rollout] = []
        with self.timer("wait"):
            while len(gathered) < self.count:
                for event in self.transport.receive(self.count - len(gathered)):
                    if isinstance(event, Death):
                        self._replace(event)
                    else:
                        gathered.append(self._accept(event))
        self._rollouts = [concatenate(gathered)]
        return self._rollouts[0].task.numel()

    def _start(self, actor: int) -> None:
        seed = int(np.random.SeedSequence([self.recipe.seed, self._started]).generate_state(1)[0])
        self._started += 1
        self.transport.start(actor, replace(self.recipe, seed=seed))

    def _accept(self, delivery: Delivery) -> Rollout:
        self._deaths[delivery.actor] = 0
        self._lags.append((delivery.actor, self.transport.version - delivery.version))
        for task, results in delivery.ended:
            values = {name: torch.tensor(column, dtype=torch.float64) for name, column in results.items()}
            self.episodes.add(torch.tensor(task), values)
        return delivery.rollout

    def _replace(self, death: Death) -> None:
        self._deaths[death.actor] += 1
        if self._deaths[death.actor] == MOST_DEATHS:
            raise ActorError(f"{death.description}, {MOST_DEATHS} times in a row without a rollout.")
        self._start(death.actor)
        self.restarts += 1
        self.report(f"WARNING: {death.description}. It was started again (restarts so far: {self.restarts}).")

    def batches(self) -> Iterator[Rollout]:
        while self._rollouts:
            yield self._rollouts.pop()

    def statistics(self) -> Metrics:
        """Statistics of episodes, and lags of the rollouts since the last call: mean, maximum, mean of each actor."""
        lags, self._lags = self._lags, []
        of_all = torch.tensor([lag for _, lag in lags] or [torch.nan]).double()
        found = {"policy_lag": of_all.mean(), "policy_lag_max": of_all.max()}
        for actor in sorted({actor for actor, _ in lags}):
            own = torch.tensor([lag for who, lag in lags if who == actor]).double()
            found[f"policy_lag/actor-{actor}"] = own.mean()
        return {**self.episodes.statistics(), **found, "actor_restarts": torch.tensor(self.restarts)}

    def close(self) -> None:
        self.transport.close()

    def state_dict(self) -> State:
        return {"episodes": self.episodes.state_dict(), "started": self._started, "restarts": self.restarts}

    def load_state_dict(self, state: State) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self._started, self.restarts = state["started"], state["restarts"]
