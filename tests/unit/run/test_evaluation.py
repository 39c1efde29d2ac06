import importlib.util
import io
import json
import math
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest

from mtrl.run.evaluation.episodes import all_jobs, joined, run_episodes
from mtrl.run.evaluation.report import headline, plain_table, show, to_json, write_eval
from mtrl.run.evaluation.statistics import bootstrap_interval, metrics, summary, wilson_interval
from mtrl.run.evaluation.video import record_videos
from mtrl.types import EnvSpec, EpisodeResult, EvalResult, Step, UserError

PROTOCOL = {"env": "scripted", "goals": 4}


class ScriptedEnv:
    """Episodes with known outcome. Task k with goal g lasts 2 + k + g steps and rewards 1 + k + g / 8 each.

    It succeeds, if k + g is even, in its second step only. Episodes with a goal that the env has drawn claim success in
    every step with a reward of 1000, which must not be counted.
    """

    def __init__(self, num_envs, num_tasks=3, disobey=False, disobey_later=False):
        names = tuple(f"task/{k}" for k in range(num_tasks))
        self.spec = EnvSpec(
            names, (3,), torch.float32, "continuous", 1, ((True,),) * num_tasks, None, (True,) * num_tasks, True
        )
        self.num_envs, self.disobey, self.disobey_later = num_envs, disobey, disobey_later
        self.task = self.goal = self.next_task = self.next_goal = torch.zeros(num_envs, dtype=torch.int64)
        self.episodes_begun = 0

    def assign(self, task, goal=None):
        # Without a goal it draws one that nobody may look at.
        goal = torch.full_like(task, -1) if goal is None else goal
        self.next_task, self.next_goal = task.clone(), torch.where(goal < 0, 1000, goal)

    def reset(self, seed=None):
        self.task, self.goal = self.next_task.clone(), self.next_goal.clone()
        if self.disobey:
            self.goal[0] += 1
        self.time = torch.zeros_like(self.task)
        self.episodes_begun += self.num_envs
        return self.observe()

    def observe(self):
        return torch.stack([self.task, self.goal, self.time], 1).float()

    def step(self, action, truncate=None):
        assert torch.equal(action[:, 0], self.observe().sum(1)), "the action belongs to another observation"
        self.time = self.time + 1
        lucky = ((self.task + self.goal) % 2 == 0) & (self.time == 2)
        drawn = self.goal == 1000
        reward = torch.where(drawn, 1000.0, 1.0 + self.task + self.goal / 8)
        ended = self.time == 2 + self.task + self.goal
        done = ended if truncate is None else ended | truncate
        task, final_obs = self.task, self.observe()
        # Alternates, so that both kinds of end are seen.
        terminated = ended & (self.goal % 2 == 0)
        self.task, self.goal = torch.where(done, self.next_task, task), torch.where(done, self.next_goal, self.goal)
        if self.disobey_later:
            self.goal = self.goal + done
        self.time = torch.where(done, 0, self.time)
        self.episodes_begun += int(done.sum())
        return Step(self.observe(), reward, terminated, done & ~terminated, lucky | drawn, task, final_obs)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def close(self):
        pass


class EchoActor:
    """Acts with the sum of the observation; refuses to explore."""

    def initial_state(self, num):
        return torch.zeros(num, 1)

    def act(self, obs, task, state, explore):
        assert not explore
        assert torch.equal(task, obs[:, 0].long())
        return obs.sum(1, keepdim=True), torch.zeros(len(obs)), state


def evaluate(actor, env, episodes_per_task, num_goals, protocol, progress=lambda done, total: None, **limits):
    jobs = all_jobs(env.spec, episodes_per_task, num_goals)
    return joined(run_episodes(actor, env, jobs, **limits), jobs, env.spec, protocol, progress)


def expected(task, goal):
    length = 2 + task + goal
    return EpisodeResult(f"task/{task}", goal, (task + goal) % 2 == 0, length * (1 + task + goal / 8), length)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 12, 20])
@pytest.mark.parametrize(
    ("episodes_per_task", "num_goals", "goals"),
    [(4, 4, [0, 1, 2, 3]), (3, 50, [0, 1, 2]), (5, 2, [0, 1, 0, 1, 0]), (3, 0, [0, 1, 2])],
    ids=["each goal once", "fewer", "more, cycling", "goal = episode seed"],
)
def test_every_episode_as_scripted(num_envs, episodes_per_task, num_goals, goals):
    env = ScriptedEnv(num_envs)
    result = evaluate(EchoActor(), env, episodes_per_task, num_goals, PROTOCOL)
    assert result.episodes == tuple(expected(task, goal) for task in range(3) for goal in goals)
    assert result.protocol == PROTOCOL
    # No slot waits for another: only those that have run all of theirs begin episodes that do not count.
    longest = 2 + 2 + max(goals)
    assert env.episodes_begun <= 3 * len(goals) + num_envs * (1 + longest // 2)


def test_progress_counts_up_to_all_episodes():
    calls = []
    evaluate(EchoActor(), ScriptedEnv(5), 4, 4, PROTOCOL, lambda done, total: calls.append((done, total)))
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert len(done) > len(set(done)), "also in steps in which no episode ends"
    assert done[-1] == 12
    assert {total for _, total in calls} == {12}


@pytest.mark.parametrize("num_envs", [1, 5, 20])
def test_long_episodes_are_truncated(num_envs):
    """Those of more than 4 steps: 2 + task + goal. One of exactly 4 is not."""
    full = [expected(task, goal) for task in range(3) for goal in range(4)]
    result = evaluate(EchoActor(), ScriptedEnv(num_envs), 4, 4, PROTOCOL, max_episode_steps=4)
    for episode, whole in zip(result.episodes, full, strict=True):
        assert episode.length == min(whole.length, 4)
        assert episode.truncated == (whole.length > 4)
        assert episode.episode_return == pytest.approx(whole.episode_return * episode.length / whole.length)
        assert episode.success == whole.success  # it comes in the second step
    # Goals 0 to 3 of tasks 0, 1 and 2: one, two and three of them are longer.
    assert [task["truncated"] for task in summary(result)["tasks"].values()] == [1, 2, 3]
    assert "truncated episodes: task/0 1 of 4; task/1 2 of 4; task/2 3 of 4\n" in plain_table(result)
    check_stored(to_json(result), result)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 20])
def test_episodes_may_end_at_success(num_envs):
    """Which comes in the second step: the same successes, less of the rest."""
    full = [expected(task, goal) for task in range(3) for goal in range(4)]
    result = evaluate(EchoActor(), ScriptedEnv(num_envs), 4, 4, PROTOCOL, stop_at_success=True)
    for episode, whole in zip(result.episodes, full, strict=True):
        assert (episode.task, episode.goal, episode.success) == (whole.task, whole.goal, whole.success)
        assert episode.length == (2 if whole.success else whole.length)
        assert episode.episode_return == pytest.approx(whole.episode_return * episode.length / whole.length)
        assert not episode.truncated


def test_progress_can_end_it_at_any_step():
    """Also while no episode ends."""
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate(EchoActor(), ScriptedEnv(1), 4, 4, PROTOCOL, stop)
    assert calls == [0, 1]


def test_an_env_that_runs_another_goal_is_noticed():
    with pytest.raises(RuntimeError, match=r"assigned .* but runs"):
        evaluate(EchoActor(), ScriptedEnv(3, disobey=True), 4, 4, PROTOCOL)


def test_an_env_that_later_runs_another_goal_is_noticed():
    with pytest.raises(RuntimeError, match=r"assigned .* but runs"):
        evaluate(EchoActor(), ScriptedEnv(3, disobey_later=True), 4, 4, PROTOCOL)


def test_no_gradients_are_kept():
    class Learning(EchoActor):
        def act(self, obs, task, state, explore):
            action, log_prob, state = super().act(obs, task, state, explore)
            assert not (action * torch.ones(1, requires_grad=True)).requires_grad
            return action, log_prob, state

    evaluate(Learning(), ScriptedEnv(3), 1, 4, PROTOCOL)


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (700, 2500)]
)
def test_wilson_against_scipy(successes, n, confidence):
    reference = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_by_hand():
    # z = 1.96: centre (45 + 1.9208) / 53.8416 = 0.8715; half 1.96 / 53.8416 * sqrt(45 * 5 / 50 + 0.9604) = 0.0851
    assert wilson_interval(45, 50) == pytest.approx((0.7864, 0.9565), abs=2e-4)
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


def test_bootstrap():
    values = np.random.default_rng(0).normal(0.7, 0.1, size=40)
    low, high = bootstrap_interval(values)
    # The normal approximation: mean +- 1.96 standard errors.
    half = 1.96 * values.std() / math.sqrt(40)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert bootstrap_interval(values) == (low, high)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_bootstrap_of_few_seeds():
    assert bootstrap_interval([0.4, 0.6]) == (0.4, 0.6)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert all(map(math.isnan, bootstrap_interval([0.5])))
    with pytest.raises(ValueError, match=r"\(S,\)"):
        bootstrap_interval([])


def check_stored(data, expected):
    """A file has all that there is to an evaluation."""
    data = json.loads(json.dumps(data))
    assert (data["protocol"], data["scores"]) == (expected.protocol, expected.scores)
    assert data["has_success"] == any(episode.success is not None for episode in expected.episodes)
    assert data["comparable_returns"] == expected.comparable_returns
    assert data["summary"] == summary(expected)
    columns = ("goal", "success", "return", "length", "truncated")
    stored = tuple(
        EpisodeResult(task, *values)
        for task, of_task in data["episodes"].items()
        for values in zip(*(of_task[name] for name in columns), strict=True)
    )
    assert stored == expected.episodes


def result():
    return evaluate(EchoActor(), ScriptedEnv(4), 3, 4, PROTOCOL)


def test_summary_by_hand():
    found = summary(result())
    # Successes where task + goal is even: goals {0, 2}, {1}, {0, 2} of 3.
    assert [task["success_rate"] for task in found["tasks"].values()] == [2 / 3, 1 / 3, 2 / 3]
    assert found["success_rate"] == pytest.approx(5 / 9)
    # Returns of task 0: 2 * 1, 3 * 1.125, 4 * 1.25.
    assert found["tasks"]["task/0"]["mean_return"] == (2 + 3.375 + 5) / 3
    assert found["tasks"]["task/2"]["mean_length"] == 5
    assert found["tasks"]["task/1"]["interval"] == list(wilson_interval(1, 3))
    assert found["tasks"]["task/1"]["episodes"] == 3


def test_the_mean_is_over_tasks_and_not_over_episodes():
    episodes = [EpisodeResult("a", 0, True, 0.0, 1), *[EpisodeResult("b", goal, False, 0.0, 1) for goal in range(9)]]
    assert summary(EvalResult({}, tuple(episodes)))["success_rate"] == 0.5
    assert summary(EvalResult({}, tuple(episodes[::-1])))["success_rate"] == 0.5


def test_metric_names():
    found = metrics(result())
    assert found["eval/success_rate"] == pytest.approx(5 / 9)
    assert found["eval/success_rate/task/0"] == 2 / 3
    assert set(found) == {
        f"eval/{kind}{task}" for kind in ("success_rate", "return") for task in ("", "/task/0", "/task/1", "/task/2")
    }


def test_scores_of_the_benchmark():
    scored = replace(result(), scores={"iqm": 0.5, "normalised/task/0": 0.25})
    assert metrics(scored) == {"eval/iqm": 0.5, "eval/normalised/task/0": 0.25} | metrics(result())
    assert plain_table(scored).splitlines()[5:] == ["iqm: 0.500", "env: scripted; goals: 4"]
    check_stored(to_json(scored), scored)


def test_without_success():
    """Where the environment reports none, nothing speaks of it."""
    env = ScriptedEnv(4)
    env.spec = replace(env.spec, reports_success=(False,) * 3)
    returns = evaluate(EchoActor(), env, 3, 4, PROTOCOL)
    assert set(metrics(returns)) == {f"eval/return{task}" for task in ("", "/task/0", "/task/1", "/task/2")}
    assert "success_rate" not in json.dumps(summary(returns))
    lines = plain_table(returns).splitlines()
    assert lines[0].split() == ["task", "return", "length", "episodes"]
    assert lines[1].split() == ["task/0", "3.5", "3", "3"]
    assert lines[4].split() == ["mean", "9.2"]
    check_stored(to_json(returns), returns)


def test_where_one_task_reports_no_success():
    """Its success is nowhere, and the mean is over the others: (2/3 + 2/3) / 2."""
    env = ScriptedEnv(4)
    env.spec = replace(env.spec, reports_success=(True, False, True))
    mixed = evaluate(EchoActor(), env, 3, 4, PROTOCOL)
    assert [episode.success for episode in mixed.episodes] == [True, False, True, None, None, None, True, False, True]
    assert summary(mixed)["success_rate"] == pytest.approx(2 / 3)
    assert set(metrics(result())) - set(metrics(mixed)) == {"eval/success_rate/task/1"}
    lines = [line.split() for line in plain_table(mixed).splitlines()]
    assert lines[2] == ["task/1", "--", "8.6", "4", "3"]
    assert lines[4] == ["mean", "0.667", "9.2"]
    data = json.loads(json.dumps(to_json(mixed)))
    assert data["episodes"]["task/1"]["success"] == [None, None, None]
    check_stored(data, mixed)
    assert headline(mixed) == "success 0.667, return 9.2"


def test_returns_that_are_not_comparable_have_no_mean():
    env = ScriptedEnv(4)
    env.spec = replace(env.spec, comparable_returns=False)
    apart = evaluate(EchoActor(), env, 3, 4, PROTOCOL)
    assert set(summary(result())) - set(summary(apart)) == {"mean_return"}
    assert set(metrics(result())) - set(metrics(apart)) == {"eval/return"}
    assert plain_table(apart).splitlines()[4].split() == ["mean", "0.556"]
    assert headline(apart) == "success 0.556"
    check_stored(to_json(apart), apart)


def test_without_success_and_without_a_mean():
    """Not a row of means, and in a line what there is."""
    env = ScriptedEnv(4)
    env.spec = replace(env.spec, reports_success=(False,) * 3, comparable_returns=False)
    games = evaluate(EchoActor(), env, 3, 4, PROTOCOL)
    assert set(summary(games)) == {"tasks"}
    assert [line.split()[0] for line in plain_table(games).splitlines()] == [
        "task",
        "task/0",
        "task/1",
        "task/2",
        "env:",
    ]
    # Returns by hand: 10.375 / 3, 25.75 / 3, 47.125 / 3.
    assert headline(games) == "returns task/0 3.5, task/1 8.6, task/2 15.7"
    assert headline(replace(games, scores={"iqm": 0.5, "normalised/task/0": 0.25})) == "iqm: 0.500"
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    show(games, console)
    assert "mean" not in console.file.getvalue()


# --- files and tables -----------------------------------------------------------------------------------------------


def test_json(tmp_path):
    path = tmp_path / "eval" / "100.json"
    write_eval(path, result(), step=100)
    data = json.loads(path.read_text())
    assert data["step"] == 100
    assert data["summary"]["success_rate"] == pytest.approx(5 / 9)
    check_stored(data, result())
    assert [entry.name for entry in path.parent.iterdir()] == ["100.json"]


def test_json_has_no_nan(tmp_path):
    """As `JSON.parse` and others take it."""
    broken = [EpisodeResult("a", 0, False, value, 3) for value in (1.0, math.nan, math.inf)]
    write_eval(tmp_path / "eval.json", EvalResult({"horizon": 3}, tuple(broken), {"score": math.nan}), wall_s=math.inf)
    data = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    assert data["wall_s"] is data["scores"]["score"] is data["summary"]["mean_return"] is None
    assert data["episodes"]["a"]["return"] == [1, None, None]


def test_plain_table():
    lines = plain_table(result()).splitlines()
    assert lines[0].split() == ["task", "success", "95%", "interval", "return", "length", "episodes"]
    assert lines[1].split() == ["task/0", "0.67", "0.21", "to", "0.94", "3.5", "3", "3"]
    # Returns of the tasks: 10.375 / 3, 25.75 / 3, 47.125 / 3; their mean is 83.25 / 9 = 9.25.
    assert lines[4].split() == ["mean", "0.556", "9.2"]
    assert lines[5] == "env: scripted; goals: 4"


@pytest.mark.parametrize("terminal", [True, False])
def test_show_suits_the_console(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    show(result(), console)
    text = console.file.getvalue()
    assert ("\x1b[" in text) == ("━" in text or "─" in text) == terminal
    assert all(word in text for word in ("task/2", "0.556", "scripted"))


# --- environments that are ill ---------------------------------------------------------------------------------------


class IllEnv(ScriptedEnv):
    """In the episode of slot 1, which lasts three steps, the observation or the reward of one step is NaN."""

    def __init__(self, what, when):
        super().__init__(3)
        self.what, self.when = what, when

    def reset(self, seed=None):
        obs = super().reset(seed)
        if self.when == 0:
            obs[1, 2] = torch.nan
        return obs

    def step(self, action, truncate=None):
        now = self.time[1] + 1
        step = super().step(action, truncate)
        if now == self.when:
            (step.reward if self.what == "reward" else step.final_obs[:, 2])[1] = torch.nan
        return step


@pytest.mark.parametrize(
    ("what", "when", "found"),
    [
        ("observation", 0, "nan as the observation at [2], in step 0"),
        ("observation", 2, "nan as the observation at [2], in step 2"),
        ("reward", 3, "nan as the reward, in step 3"),
    ],
)
def test_environment_that_is_not_finite(what, when, found):
    message = f"The environment of task 'task/1' gave {found} of an episode (slot 1): observations and rewards must be"
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(EchoActor(), IllEnv(what, when), 1, 4, {})


# --- video ----------------------------------------------------------------------------------------------------------


def image(env):
    def render(slot):
        assert env.goal[slot] != 1000, "the next episode was filmed"
        return np.full((33, 48, 3), 40 * int(env.time[slot]) + int(env.task[slot]), dtype=np.uint8)

    return render


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_one_film_per_task(tmp_path, monkeypatch, suffix):
    imageio = pytest.importorskip("imageio.v3")
    if suffix == ".gif":
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    else:
        pytest.importorskip("imageio_ffmpeg")
    env = ScriptedEnv(2)
    paths = record_videos(EchoActor(), env, image(env), tmp_path / "videos", goal=1)
    assert [path.name for path in paths] == [f"task_{task}{suffix}" for task in range(3)]
    for task, path in enumerate(paths):
        # One image before each step.
        frames = imageio.imread(path)
        assert len(frames) == expected(task, 1).length
        assert frames[..., 0].mean((1, 2)) == pytest.approx([40 * t + task for t in range(len(frames))], abs=6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_progress_of_films(tmp_path):
    """Tasks last 2, 3 and 4 steps; two slots film tasks 0 and 1, then 2. Each film has room for 5 images."""
    pytest.importorskip("imageio.v3")
    env, seen = ScriptedEnv(2), []
    env.spec = replace(env.spec, horizon=5)
    record_videos(EchoActor(), env, image(env), tmp_path, progress=lambda *numbers: seen.append(numbers))
    # Step 1: 1 + 1. Step 2 ends task 0, whose 5 are done: 5 + 2. Step 3 ends task 1: 10. Then task 2: 1, 2, 3, all.
    assert seen == [(done, 15) for done in (2, 7, 10, 11, 12, 13, 15)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_films_of_episodes_without_end(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    paths = record_videos(EchoActor(), env := ScriptedEnv(3), image(env), tmp_path, goal=90, max_episode_steps=3)
    assert [len(imageio.imread(path)) for path in paths] == [3, 3, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_films_of_tasks_with_like_names(tmp_path):
    pytest.importorskip("imageio.v3")
    env = ScriptedEnv(3)
    env.spec = replace(env.spec, task_names=("a/b", "a_b", "c"))
    paths = record_videos(EchoActor(), env, image(env), tmp_path)
    assert [path.stem for path in paths] == ["a_b-0", "a_b-1", "c"]
    assert sorted(paths) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_films_appear_whole_or_not_at_all(tmp_path, error):
    pytest.importorskip("imageio.v3")
    before = tmp_path / f"task_1{'.mp4' if importlib.util.find_spec('imageio_ffmpeg') else '.gif'}"
    before.write_text("an earlier film")
    env, images = ScriptedEnv(3), iter(range(5))

    def render(slot):
        if next(images) == 4:
            raise error
        return image(env)(slot)

    with pytest.raises(error):
        record_videos(EchoActor(), env, render, tmp_path)
    assert list(tmp_path.iterdir()) == [before]
    assert before.read_text() == "an earlier film"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_films_that_ffmpeg_could_not_write(tmp_path, monkeypatch):
    """It says so in its last words only, to which imageio does not listen."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    full = tmp_path / "ffmpeg"
    full.write_text(
        f"""#!/bin/sh
case "$*" in
    *"-i - "*) for last; do :; done; head -c 4000 > "$last"; cat > {os.devnull}; exit 1 ;;
    *) exec {ffmpeg} "$@" ;;
esac
"""
    )
    full.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(full))
    env = ScriptedEnv(3)
    with pytest.raises(UserError, match=r"Could not write videos to .*/videos: [^\n]*$"):
        record_videos(EchoActor(), env, image(env), tmp_path / "videos")
    assert list((tmp_path / "videos").iterdir()) == []


def test_missing_imageio_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio", None)
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    env = ScriptedEnv(2)
    with pytest.raises(UserError, match=r'A video needs imageio: pip install -c constraints.txt -e "\.\[video\]"'):
        record_videos(EchoActor(), env, image(env), tmp_path)
