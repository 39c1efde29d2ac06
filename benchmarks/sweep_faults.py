"""Sweeps whose jobs fail in the middle, begun two at a time: whether the record of each job says what happened to it.

    python benchmarks/sweep_faults.py                       # 30 sweeps of three jobs
    python benchmarks/sweep_faults.py --pairs 2

Each job is drawn at random: its environment raises, its process is killed, its files can grow no more (a full disk), or
nothing happens. Both sweeps of a pair begin in the same second. Afterwards each is restarted. Prints a table, and ends
with exit code 1 if a job is not what it must be: done, or failed, with the cause (of a full disk the exit code alone,
as the log cannot grow either).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mtrl.sweep.jobs import Job, read_jobs

ROOT = Path(__file__).resolve().parents[1]
JOBS = 3
MUST_SAY = {"Sound": "", "Broken": "the wheel came off", "Killed": "killed by signal 9", "Full": "exit code 2"}
"""What befalls a job (environments in tests/system/broken_env.py), and what is said of it."""
SMALL = "env=gym env.num_envs=2 env.num_workers=0 env.reports_success=false agent=ppo data.rollout_length=10 "
SMALL += "agent.num_minibatches=1 agent.num_epochs=1 network.trunk.width=8 total_steps=160 eval.episodes_per_task=1 "
SMALL += "eval.every=0 log.tensorboard=false log.every=40 checkpoint.every=40"


def begin(faults: list[str], folder: Path) -> subprocess.Popen[str]:
    ids = ",".join(f"[tests.system.broken_env:{fault}-v0]" for fault in faults)
    command = [sys.executable, "-m", "mtrl.train", "-m", *SMALL.split(), f"env.ids={ids}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def restarted(sweep: Path) -> int:
    """Exit code of a restart."""
    command = [sys.executable, "-m", "mtrl.sweep", "restart", str(sweep.relative_to(sweep.parents[1]))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=sweep.parents[1], env=environment, capture_output=True, check=False).returncode


def is_right(job: Job, fault: str) -> bool:
    """Whether its record says what happened."""
    if fault == "Sound":
        return job.state == "done" and (job.run_dir / "checkpoints" / "last").exists()
    return job.state == "failed" and MUST_SAY[fault] in job.reason()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    draw, jobs_of, right = random.Random(0), Counter[str](), Counter[str]()
    folders = wrong_codes = 0
    pairs = parser.parse_args().pairs
    for _ in range(pairs):
        drawn = [[draw.choice(list(MUST_SAY)) for _ in range(JOBS)] for _ in range(2)]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            running = [begin(faults, folder) for faults in drawn]
            outputs = [sweep.communicate()[0] for sweep in running]
            sweeps = [folder / re.search(r"runs/\S+_sweep\S*", output)[0].rstrip(".:") for output in outputs]  # type: ignore[index]
            folders += len(set(sweeps))
            for faults, sweep, process in zip(drawn, sweeps, running, strict=True):
                jobs = read_jobs(sweep)
                for job, fault in zip(jobs, faults, strict=True):
                    jobs_of[fault] += 1
                    right[fault] += is_right(job, fault)
                sound = set(faults) == {"Sound"}
                done_before = [job.state == "done" for job in jobs]
                wrong_codes += (process.returncode == 0) != sound
                wrong_codes += (restarted(sweep) == 0) != sound  # an environment that fails does so again
                wrong_codes += any(
                    before and job.state != "done" for before, job in zip(done_before, read_jobs(sweep), strict=True)
                )
    print("| what happened | jobs | recorded as such |\n| --- | --- | --- |")
    for fault in MUST_SAY:
        print(f"| {fault} | {jobs_of[fault]} | {right[fault]} |")
    print(
        f"\n{2 * pairs} sweeps in {folders} folders; exit codes of sweeps and restarts that are wrong: {wrong_codes}."
    )
    sys.exit(bool(wrong_codes or folders < 2 * pairs or right != jobs_of))


if __name__ == "__main__":
    main()
