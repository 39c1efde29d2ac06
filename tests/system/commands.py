"""Commands on toy problems, run in this process or in others that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import mtrl.evaluate
import mtrl.train
from mtrl.run.checkpoint.codec import load_state
from mtrl.run.loop import Loop

ROOT = Path(__file__).parents[2]

TINY = (
    "network.trunk.width=16",
    "network.trunk.depth=1",
    "log.every=80",
    "log.tensorboard=false",
    "eval.every=320",
    "eval.episodes_per_task=2",
    "checkpoint.every=160",
)
ON_POLICY = ("data.rollout_length=10", "agent.num_minibatches=2", "agent.num_epochs=1")
AGENTS = {
    "ppo": ("agent=ppo", *ON_POLICY),
    "impala": ("agent=impala", *ON_POLICY),
    "distral": ("agent=distral", *ON_POLICY, "agent.shared_width=16"),
    "two_columns": ("agent=distral", *ON_POLICY, "agent.shared_width=16", "agent.columns=2"),
    "distill": (
        "agent=distill",
        "agent.loss={name: forward_kl}",
        "data.teacher={name: policy}",  # its path: data.teacher.path=...
        "data.batch_size=8",
        "data.samples_per_insert=2",
        "data.capacity=20",
        "data.slots_per_task=2",
    ),
    "sac": (
        "agent=sac",
        "data.batch_size=8",
        "data.learning_starts=5",
        "data.samples_per_insert=2",
        "data.capacity=200",
    ),
}


def tiny(agent: str = "ppo", env: str = "toy_reach", num_envs: int = 8, total_steps: int = 640) -> list[str]:
    """Arguments of a run of a second."""
    return [f"env={env}", f"env.num_envs={num_envs}", *AGENTS[agent], *TINY, f"total_steps={total_steps}"]


def run(*arguments: str, command: Any = mtrl.train) -> int:
    """Exit code of a command, run in this process through the whole entry point."""
    before = sys.argv
    sys.argv = ["mtrl", *arguments]
    try:
        command.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        sys.argv = before
    return 0


def evaluate(*arguments: str) -> int:
    """Exit code of `mtrl.evaluate`."""
    return run(*arguments, command=mtrl.evaluate)


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on standard error of a command that found a mistake of the user's."""
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    return lines[0].removeprefix("error: ")


@contextmanager
def stopped_after(updates: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """A signal reaches this process in the middle of this many training iterations."""
    train, count = Loop._train, 0

    def counting(loop: Loop) -> None:
        nonlocal count
        count += 1
        if count == updates:
            signal.raise_signal(number)
        train(loop)

    Loop._train = counting  # type: ignore[method-assign]
    try:
        yield
    finally:
        Loop._train = train  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------------------------
# Comparing runs
# ---------------------------------------------------------------------------------------------------------------------

CLOCK = ("/run/wall_time", "/run/training_time")
PYTHON_RNG = "/rng/python"  # beartype draws from it, in the process of the tests only


def checkpoint(run_dir: Path) -> Path:
    return (run_dir / "checkpoints" / "last").resolve()


def training_state(run_dir: Path, ignored: Sequence[str]) -> dict[str, Any]:
    """Everything in the last checkpoint but the time it took, flat."""
    folder = checkpoint(run_dir) / "training_state"
    state = {path.name: load_state(path) for path in sorted(folder.iterdir())}
    return {key: value for key, value in flat(state).items() if not key.startswith(tuple(ignored))}


def flat(node: Any, path: str = "") -> dict[str, Any]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {path: node}
    return {key: leaf for name, value in items for key, leaf in flat(value, f"{path}/{name}").items()}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Logged rows without what the clock decides."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def evaluations(run_dir: Path) -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in (run_dir / "eval").glob("*.json")}
    return {name: (data["summary"], data["episodes"]) for name, data in found.items()}


def assert_same_run(one: Path, other: Path, *ignored: str) -> None:
    """Bit for bit: policy, every tensor and number of the training state, metrics, evaluations."""
    weights = [(checkpoint(path) / "policy" / "model.safetensors").read_bytes() for path in (one, other)]
    states = [training_state(path, (*CLOCK, *ignored)) for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == states[1][key].dtype, key
            assert torch.equal(as_bytes(value), as_bytes(states[1][key])), key
        else:
            assert value == states[1][key] or value != value, key
    assert weights[0] == weights[1]
    assert json.dumps(rows(one)) == json.dumps(rows(other))  # as text, in which NaN equals NaN
    assert json.dumps(evaluations(one), sort_keys=True) == json.dumps(evaluations(other), sort_keys=True)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*arguments: str, cwd: Path, module: str = "mtrl.train") -> subprocess.Popen[str]:
    """A command as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forks:
    """Commands in processes that can be killed: forked off one that has imported everything, which saves seconds each.

    Standard output and error of all of them go to `log`.
    """

    _SERVER = """
import json, os, sys
import mtrl.train, mtrl.build, mtrl.envs
import torch._dynamo
mtrl.envs.register_all()
for line in sys.stdin:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 0), os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = ["mtrl", *json.loads(line)]
        mtrl.train.main()
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "forks.log"
        self._server = subprocess.Popen(
            [sys.executable, "-c", self._SERVER, str(self.log)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str) -> int:
        """Starts a command; returns its process id."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(arguments) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Exit code of the command started last; -9 if it was killed."""
        assert self._server.stdout
        return int(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def wait_for(condition: Any, seconds: float = 200.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def descendants(root: int) -> list[int]:
    from mtrl.system.usage import _family

    return _family(root)[1:]


def alive(process: int) -> bool:
    """Whether a process runs (and is no zombie)."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def only_run(folder: Path) -> Path:
    (found,) = folder.glob("runs/*_*")
    return found


def overrides(*parts: str | Sequence[str]) -> list[str]:
    return [word for part in parts for word in ([part] if isinstance(part, str) else part)]


def shared_memory() -> set[str]:
    """Names of shared memory; folders there are another test's."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.is_dir()}
