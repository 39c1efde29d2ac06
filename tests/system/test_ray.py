"""`transport=ray`: actors in a Ray cluster of two nodes on this machine. Takes minutes, and needs the extra `ray`.

Ray listens on the machine's network address. To keep it on the loopback interface, and to end it whatever happens:
unshare --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up; pytest -m slow tests/system/test_ray.py'
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtrl.parallel.ray_actors import RayActors
from mtrl.sweep.jobs import read_jobs
from tests.system.commands import ON_POLICY, TINY, alive, environment, rows, run, start, tiny, wait_for
from tests.unit.parallel.actor_envs import make_counting
from tests.unit.parallel.test_actors import Run, check_back_pressure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]
ADDRESS = "127.0.0.1:6399"
RUN = ("env=toy_reach", "env.num_envs=12", "agent=impala", *ON_POLICY, *TINY, "eval.every=0", "transport=ray")


def ray(*arguments: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments, "--disable-usage-stats"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def processes(words: str) -> set[int]:
    """Processes with these words in their titles."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in title and alive(int(path.name)):
            found.add(int(path.name))
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The head, with one core, and a node with three, which a test kills."""
    before = processes("/ray/")
    folder = tmp_path_factory.mktemp("r")
    limits = ["--object-store-memory=80000000"]
    head = [f"--port={ADDRESS.partition(':')[2]}", "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder}"]
    ray("start", "--head", "--node-ip-address=127.0.0.1", *head, *limits)
    ray("start", f"--address={ADDRESS}", "--num-cpus=3", *limits)
    yield
    for process in processes("/ray/") - before:
        os.kill(process, signal.SIGKILL)


def test_a_slow_learner_bounds_what_waits(cluster: None) -> None:
    transport = RayActors("cpu", 2)
    try:
        rollouts = transport.running.values()
        check_back_pressure(
            Run(make_counting, 2, transport),
            lambda: len(transport._ray.wait([r.rollout for r in rollouts], num_returns=2, timeout=1)[0]) == 2,
        )
    finally:
        transport.close()
    wait_for(lambda: not processes("ray::RayActor"))


def test_an_evaluation(cluster: None, tmp_path: Path) -> None:
    """The same episodes as in one process, although one of the three is killed."""
    assert run(*tiny(), f"run_dir={tmp_path / 'run'}") == 0
    episodes = []
    for name, transport in (("one", ()), ("ray", ("actors=3", "transport=ray"))):
        arguments = (f"run={tmp_path / 'run'}", "episodes_per_task=5", f"out={tmp_path / name}", *transport)
        evaluation = start(*arguments, cwd=tmp_path, module="mtrl.evaluate")
        if transport:
            wait_for(lambda: processes("ray::messages"))
            os.kill(min(processes("ray::messages")), signal.SIGKILL)
        out, err = evaluation.communicate(timeout=400)
        assert evaluation.returncode == 0, err
        assert out.count("other episodes begin again.") == len(transport[:1])
        episodes.append(json.loads((tmp_path / name / "eval.json").read_text())["episodes"])
    one, shared = episodes
    for task, columns in one.items():
        assert shared[task]["success"] == columns["success"]
        assert shared[task]["return"] == pytest.approx(columns["return"], rel=1e-5)
    wait_for(lambda: not processes("ray::messages"))


def test_a_sweep(cluster: None, tmp_path: Path) -> None:
    """Its jobs go on in other processes if theirs are killed, save themselves when it is stopped, and are restarted."""
    few = (
        "env=toy_reach",
        "env.num_envs=8",
        *TINY,
        "log.every=4000",
        "eval.every=0",
        "total_steps=150000",
        "checkpoint.every=4000",
    )
    sweep = start("-m", *few, "seed=1,2,3", "hydra/launcher=ray", "sweep_dir=mine", cwd=tmp_path)
    runs = [tmp_path / "mine" / f"00{number}_seed={number + 1}" for number in range(3)]
    wait_for(lambda: all((run / "checkpoints" / "last").exists() for run in runs))
    (job,) = processes("run_dir=mine/000_seed=1 ")
    parent = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (parent, job):  # as when their machine is lost
        os.kill(process, signal.SIGKILL)
    log = runs[0].with_name("000_seed=1.log")
    wait_for(lambda: "training" in log.read_text().partition("Resuming")[2])
    sweep.send_signal(signal.SIGTERM)
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 143, out + err
    assert [job.exit_code for job in read_jobs(tmp_path / "mine")] == [143, 143, 143], out
    sweep = start("restart", "mine", cwd=tmp_path, module="mtrl.sweep")
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, err
    assert "3 done." in out
    sweep = start("restart", "mine", cwd=tmp_path, module="mtrl.sweep")
    assert "0 jobs to run in mine." in sweep.communicate(timeout=400)[0]
    assert sweep.returncode == 0


def test_a_job_that_no_machine_can_run(cluster: None, tmp_path: Path) -> None:
    settings = ("seed=1,2", "hydra/launcher=ray", "hydra.launcher.num_cpus=9")
    sweep = start("-m", "env=toy_reach", *settings, cwd=tmp_path)
    _, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 2
    assert "error: Each job needs {'CPU': 9, 'GPU': 0}, but no machine of the Ray cluster has as many." in err


def test_actors_and_a_node_die(cluster: None, tmp_path: Path) -> None:
    """Training goes on, and nothing of it is left at the end."""
    endless = ("actors=3", "total_steps=100000000", "log.every=4000", "run_dir=run")
    learner = start(*RUN, *endless, cwd=tmp_path)
    wait_for(lambda: len(processes("ray::RayActor")) == 3)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last").exists())
    os.kill(min(processes("ray::RayActor")), signal.SIGKILL)
    wait_for(lambda: len(processes("ray::RayActor")) == 3)
    node = max(processes("/raylet/raylet "))  # the last one that was started
    os.kill(node, signal.SIGKILL)
    # Each was replaced once, not again and again on the lost node: it takes Ray some time to notice.
    wait_for(lambda: [row for row in rows(tmp_path / "run") if row["train/actor_restarts"] >= 2])
    before = rows(tmp_path / "run")[-1]["step"]
    wait_for(lambda: rows(tmp_path / "run")[-1]["step"] > before)
    learner.send_signal(signal.SIGTERM)  # for which Ray has a handler of its own
    out, err = learner.communicate(timeout=400)
    assert learner.returncode == 143, err
    assert 2 <= out.count("was started again") <= 4, out
    wait_for(lambda: not processes("ray::RayActor"))


def test_a_killed_learner_leaves_no_actor(cluster: None, tmp_path: Path) -> None:
    learner = start(*RUN, "actors=1", "total_steps=1000000", "run_dir=run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last").exists())
    assert processes("ray::RayActor")
    learner.kill()
    learner.communicate()
    wait_for(lambda: not processes("ray::RayActor"))


def test_too_few_cores(cluster: None, tmp_path: Path) -> None:
    learner = start(*RUN, "env.num_envs=48", "actors=12", cwd=tmp_path)
    _, err = learner.communicate(timeout=200)
    assert learner.returncode == 2
    assert "error: actors=12 need a core each, but the Ray cluster has " in err
