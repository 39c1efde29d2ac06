"""On an accelerator, the host waits a fixed number of times in a rollout and in an update, and never in a step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrl.build  # registers the learners
import mtrl.envs
from mtrl.agents.components import Components
from mtrl.build import build_learner
from mtrl.config import GROUPS, composed
from mtrl.data.experience import UNSETTLED, Collector, EpisodeStatistics, OffPolicy, OnPolicy, RandomActor
from mtrl.data.n_step import NStep
from mtrl.data.replay import Replay, transition_columns
from mtrl.data.task_sampling.uniform import Uniform
from mtrl.types import UserError
from tests.counting_device import counting
from tests.helpers import no_timer

SLOTS = 8
WAITS_OF_AN_UPDATE = 2


def make_env(device: str, name: str = "toy_reach", **options: Any) -> Any:
    return mtrl.envs.make(name, num_envs=SLOTS, num_tasks=4, seed=0, device=device, **options)


def make_collector(env: Any, discount: float | None = None, start: float = 0.1) -> Collector:
    episodes = EpisodeStatistics(env.spec, Uniform(env.spec.num_tasks))
    episodes.discount = discount
    return Collector(env, episodes, env.task.device, no_timer, start)


def make_learner(env: Any, episodes: EpisodeStatistics, *overrides: str) -> Any:
    config = composed(["env=toy_reach", *overrides], "train")
    slots = {slot: config[slot] for slot in GROUPS if slot not in ("env", "agent", "data", "task_sampling")}
    components = Components(**slots, spec=env.spec, episodes=episodes, device=str(env.task.device))
    return build_learner(config["agent"], components)


class Still:
    """The same action always."""

    def __init__(self, action: Tensor) -> None:
        self.action = action

    def initial_state(self, num: int) -> Tensor:
        return self.action.new_zeros(num, 0)

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self.action, torch.zeros(len(task), device=task.device), state


@pytest.mark.parametrize("env", ["toy_reach", "counting"])
@pytest.mark.parametrize("discount", [None, 0.9])
def test_a_step_does_not_wait(env: str, discount: float | None) -> None:
    """A rollout does at its end: for whether all is finite, results, tasks of slots, and where episodes ended."""
    with counting() as device:
        collector = make_collector(make_env("meta", env), discount)
        actor = RandomActor(collector.env.spec)
        device.take()
        for _ in range(UNSETTLED - 1):
            collector.step(collector.act(actor)[0])
        assert device.take() == 0, device.waits
        collector.step(collector.act(actor)[0])
        assert device.take() == 3
        source = OnPolicy(collector, rollout_length=60)
        source.collect(actor)
        assert device.take() == 4
        collector.settle()
        assert device.take() == 0  # there is nothing left


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (4, 4)])
def test_waits_of_an_update(epochs: int, minibatches: int) -> None:
    with counting() as device:
        env = make_env("meta")
        collector = make_collector(env)
        options = (f"agent.num_epochs={epochs}", f"agent.num_minibatches={minibatches}")
        learner = make_learner(env, collector.episodes, "agent=ppo", *options)
        source = OnPolicy(collector, rollout_length=30)
        source.connect(learner)
        for _ in range(2):
            source.collect(learner)
            (rollout,) = source.batches()
            device.take()
            learner.update(rollout, 0.5)
            assert device.waits.total() == WAITS_OF_AN_UPDATE, device.waits


@pytest.mark.parametrize("discount", [None, 0.9])
def test_results_are_those_of_a_cpu(discount: float | None) -> None:
    """And what is collected, though the results of steps come late. Episodes of slot i have 5 + i % 3 steps."""
    heard: dict[str, list[Any]] = {"cpu": [], "meta": []}
    collected: dict[str, list[Tensor]] = {}
    with counting():
        for device, said in heard.items():
            env = make_env(device, "counting", stagger=2, num_goals=1)  # goals would be drawn at other times
            collector = make_collector(env, discount, start=0.0)
            collector.episodes.episode_listeners.append(
                lambda task, results, said=said: said.extend(
                    zip(task.tolist(), *(results[name].tolist() for name in sorted(results)), strict=True)
                )
            )
            source = OnPolicy(collector, rollout_length=2 * UNSETTLED + 7)
            source.collect(Still(torch.zeros(SLOTS, 2, device=device)))
            (rollout,) = source.batches()
            collected[device] = [tensor.cpu() for tensor in vars(rollout).values()]
            said += [value.nan_to_num(-1).tolist() for value in source.statistics().values()]
    assert heard["cpu"] == heard["meta"]
    assert len(heard["cpu"]) > 100
    assert all(map(torch.equal, collected["cpu"], collected["meta"]))


def test_a_sick_environment_is_named_before_anything_is_learned() -> None:
    """With the task, the slot and the step, though that was long ago."""
    with counting():
        env = make_env("meta", horizon=30)
        source = OnPolicy(make_collector(env), rollout_length=20)
        actor = Still(torch.zeros(SLOTS, 2, device="meta"))
        source.collect(actor)
        list(source.batches())
        env.variables["position"] = env.variables["position"].masked_fill(
            torch.arange(SLOTS, device="meta")[:, None] == 5, math.nan
        )
        with pytest.raises(UserError, match=r"task 'reach-2' gave nan as the reward, in step \d+ of an .*\(slot 5\)"):
            source.collect(actor)
        assert not list(source.batches())


def test_an_action_that_is_nan_is_found_when_steps_are_settled() -> None:
    with counting():
        action = torch.zeros(SLOTS, 2)
        action[3, 1] = math.nan
        source = OnPolicy(make_collector(make_env("meta")), rollout_length=5)
        with pytest.raises(ValueError, match=r"NaN in the actions of slots \[3\]"):
            source.collect(Still(action.to("meta")))


def test_a_sum_beyond_the_range_of_floats_is_no_fault() -> None:
    with counting():
        env = make_env("meta", horizon=30)
        env._reward_scale = torch.full((4,), 1e38, device="meta")
        OnPolicy(make_collector(env), rollout_length=5).collect(Still(torch.zeros(SLOTS, 2, device="meta")))


def test_the_replay_waits_rarely_to_see_whether_it_has_enough() -> None:
    """And a batch is only drawn from steps that have been looked at."""
    with counting() as device:
        collector = make_collector(make_env("meta"))
        spec = collector.env.spec
        replay = Replay(spec.num_tasks, 1000, transition_columns(spec), "meta")
        source = OffPolicy(collector, replay, NStep(1, 0.9), batch_size=4, samples_per_insert=2.0, learning_starts=120)
        actor, looks = RandomActor(collector.env.spec), 0
        device.take()
        for step in range(1, 60):
            source.collect(actor)
            looks += device.take()
            assert replay.has(120) == (2 * step >= 120)
            device.take()
        assert looks <= 15
        source.collect(actor)
        assert device.take() <= 1 + 3  # what is settled before batches are drawn
        assert len(list(source.batches())) == 1
        assert device.take() == 0
