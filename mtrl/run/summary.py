"""What a run prints when it ends."""

from __future__ import annotations

from mtrl.run.console import duration
from mtrl.run.loop import Loop
from mtrl.system.usage import peak_memory_bytes


def print_summary(loop: Loop, steps: int) -> None:
    """Prints wall time, time and rate of each phase over this session's `steps`, and peak memory of live processes."""
    state, seconds = loop.state, loop.timer.seconds
    rate = state.env_steps / state.training_time if state.training_time else 0.0
    done = f"{state.env_steps:,} steps, {state.updates:,} updates in {duration(state.wall_time)}"
    print(f"{done} ({rate:,.0f} steps/s training)")
    for phase in ("env", "inference", "teacher", "wait", "update", "evaluation", "checkpoint", "other"):
        if phase in seconds:
            has_rate = phase in ("env", "inference", "teacher", "update")
            per_second = f"  {steps / seconds[phase]:,.0f} steps/s" if has_rate else ""
            print(f"  {phase:<10} {duration(seconds[phase]):>7}{per_second}")
    print(f"Peak memory {peak_memory_bytes() / 2**30:.2f} GiB (all processes). Run folder: {loop.run_dir}")
