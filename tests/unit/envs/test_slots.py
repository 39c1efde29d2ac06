"""Processes: failures are told clearly, nothing is left behind, and a state without horizon comes back."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtrl.envs.slots import SlotError, SlotVecEnv
from mtrl.system.process import STOP_SIGNALS, ServingProcess
from mtrl.types import EnvSpec

sys.path.insert(0, str(Path(__file__).parent))  # workers import it by name
from fake_slots import make_slots


def fake_env(what: str = "", num_workers: int = 2, num_envs: int = 4) -> SlotVecEnv:
    spec = EnvSpec(
        task_names=("a", "b"),
        obs_shape=(4,),
        obs_dtype=torch.float32,
        action_kind="continuous",
        action_dim=2,
        action_mask=((True, True), (True, True)),
        horizon=None,
        reports_success=(False, False),
        comparable_returns=False,
    )
    return SlotVecEnv(functools.partial(make_slots, what=what), spec, num_envs, 10, num_workers=num_workers)


def pids(env: SlotVecEnv) -> list[int]:
    return [worker._process.pid for worker in env._workers]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(processes: list[int], seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in processes if alive(pid)]}"
        time.sleep(0.05)


def trigger(env: SlotVecEnv, slot: int = 2) -> None:
    action = torch.zeros(env.num_envs, 2)
    action[slot, 0] = 1.0
    env.step(action)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_exception_names_slot_task_and_cause(num_workers: int) -> None:
    env = fake_env("raise", num_workers)
    env.reset()
    with pytest.raises(SlotError, match=r"step failed in slot 2 \(task 1, goal \d+\): the wheel came off") as caught:
        trigger(env)
    assert "ZeroDivisionError" in str(caught.value)
    assert "fake_slots.py" in str(caught.value)
    with pytest.raises(RuntimeError, match="closed"):
        env.step(torch.zeros(4, 2))


def test_death_of_a_worker() -> None:
    env = fake_env("die")
    env.reset()
    processes = pids(env)
    with pytest.raises(SlotError, match=r"worker 0 \(slots 0 to 2 by 2\) ended with exit code 7"):
        trigger(env)
    wait_until_gone(processes)


def test_killed_worker() -> None:
    env = fake_env()
    env.reset()
    os.kill(pids(env)[1], signal.SIGKILL)
    with pytest.raises(SlotError, match=r"worker 1 .* exit code -9"):
        env.step(torch.zeros(4, 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_slots_that_cannot_be_made(num_workers: int) -> None:
    with pytest.raises((SlotError, OSError), match="no such scene"):
        fake_env("no start", num_workers)


def test_close_ends_workers_even_busy_ones() -> None:
    env = fake_env("hang")
    env.reset()
    processes = pids(env)
    env._workers[0].send("step", *(torch.ones(2, 2).numpy(), torch.zeros(2).numpy(), torch.zeros(2).numpy()))
    env.close()
    wait_until_gone(processes)


def test_forgotten_env_ends_its_workers() -> None:
    env = fake_env()
    processes = pids(env)
    del env
    gc.collect()
    wait_until_gone(processes)


def test_workers_leave_signals_to_their_parent() -> None:
    env = fake_env()
    env.reset()
    for pid, number in itertools.product(pids(env), STOP_SIGNALS):
        os.kill(pid, number)
    env.step(torch.zeros(4, 2))
    env.close()


def test_hanging_workers_are_given_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a stop was asked for. What is saved is the state before the step."""
    env = fake_env("hang", num_workers=4)
    env.reset()
    env.step(torch.zeros(4, 2))
    before, processes = env.state_dict(), pids(env)
    monkeypatch.setattr(ServingProcess, "patience", 0.5)
    began = time.monotonic()
    with pytest.raises(SlotError, match=r"worker 0 \(slots 0 to 0 by 4\) did not answer within 0 seconds of the stop"):
        env.step(torch.ones(4, 2))
    assert time.monotonic() - began < 6  # one after the other would take two seconds each
    assert not any(map(alive, processes))
    after = env.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in ("task", "goal", "actions", "lengths", "obs"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_no_orphans(how: signal.Signals | None) -> None:
    code = (
        "import sys; from test_slots import fake_env; env = fake_env(); env.reset();"
        "print(*[w._process.pid for w in env._workers], flush=True); sys.stdin.readline()"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        assert all(map(alive, processes))
        if how is not None:
            parent.send_signal(how)
        else:
            parent.communicate("go on\n")
    wait_until_gone(processes)


def test_workers_do_not_import_torch() -> None:
    modules = "mtrl.envs.worker, mtrl.envs.metaworld.official, mtrl.envs.gym_slot"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_episodes_without_end_come_back_after_any_length(num_workers: int) -> None:
    env = fake_env(num_workers=num_workers)
    env.reset()
    for t in range(300):  # beyond the room for 256 actions
        step = env.step(torch.full((4, 2), t / 1000))
    state = env.state_dict()
    assert state["actions"].shape == (4, 300, 2)
    expected = env.step(torch.ones(4, 2))
    env.close()
    other = fake_env(num_workers=num_workers)
    other.load_state_dict(state)
    assert torch.equal(other.step(torch.ones(4, 2)).obs, expected.obs)
    assert step.obs[0, 2] == 300
    other.close()


def test_warns_when_the_replay_leads_elsewhere() -> None:
    env = fake_env("random", num_workers=0)
    env.reset()
    trigger(env)
    state = env.state_dict()
    with pytest.warns(UserWarning, match="not deterministic"):
        env.load_state_dict(state)


def test_state_saved_before_the_first_reset() -> None:
    env, other = fake_env(num_workers=0), fake_env(num_workers=0)
    other.reset(5)
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.reset(), other.reset())


def test_state_of_another_size() -> None:
    with pytest.raises(ValueError, match="has 4 slots, this environment 8"):
        fake_env(num_workers=0, num_envs=8).load_state_dict(fake_env(num_workers=0).state_dict())


@pytest.mark.parametrize("num_workers", [0, 3])
def test_render_shows_the_slot(num_workers: int) -> None:
    env = fake_env(num_workers=num_workers)
    env.assign(env.task, torch.tensor([3, 1, 4, 2]))
    env.reset()
    assert [int(env.render(slot)[0, 0, 0]) for slot in range(4)] == [3, 1, 4, 2]
    env.close()


def test_negative_workers() -> None:
    with pytest.raises(ValueError, match="num_workers must not be negative"):
        fake_env(num_workers=-1)
