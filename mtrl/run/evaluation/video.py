"""Videos of a policy."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mtrl.registry import missing_extra
from mtrl.run.evaluation.episodes import begin
from mtrl.types import Actor, UserError, VecEnv

VIDEOS = "videos"
"""Folder of the videos in that of a run."""


@torch.no_grad()
def record_videos(
    actor: Actor,
    env: VecEnv,
    render: Callable[[int], np.ndarray],
    folder: Path,
    goal: int = 0,
    fps: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_episode_steps: float = 10_000,
) -> list[Path]:
    """Records one deterministic episode of every task: `<folder>/<task>.mp4`, or `.gif` if ffmpeg is missing.

    A video appears once it is complete; an interruption leaves existing videos as they are.

    Args:
        actor: Acts on the env's observations and tasks.
        env: Any vectorised env; its slots are reassigned.
        render: Returns the image (height, width, 3) uint8 of a slot.
        folder: Made if missing.
        goal: Which goal to record.
        fps: Images per second; one image is taken per step.
        seed: Seed of the env.
        progress: Called after every step with the numbers of finished and of all images. Images that are not needed
            because an episode ended early count as finished.
        max_episode_steps: Maximal length of a video.

    Returns:
        The files, in the order of the tasks.

    Raises:
        UserError: imageio is not installed, or the folder cannot be written.
    """
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise missing_extra("A video", "imageio", "video") from error
    suffix = _video_suffix()
    options: dict[str, Any] = {"fps": fps, "macro_block_size": 2} if suffix == ".mp4" else {"duration": 1000 / fps}
    names = [stem + suffix for stem in file_stems(env.spec.task_names)]
    longest = int(min(max_episode_steps, env.spec.horizon or max_episode_steps))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".tmp-", dir=folder) as unfinished:
            for start in range(0, len(names), env.num_envs):
                jobs = [(task, goal) for task in range(start, min(start + env.num_envs, len(names)))]
                files = [Path(unfinished, names[task]) for task, _ in jobs]

                def filmed(images: int, before: int = start) -> None:
                    progress(before * longest + images, len(names) * longest)

                with ExitStack() as opened:
                    writers = [opened.enter_context(imageio.get_writer(file, mode="I", **options)) for file in files]
                    _film(actor, env, jobs, seed, render, writers, filmed, longest)
                for file in files:
                    imageio.get_reader(file).close()  # fails if ffmpeg could not write it, which goes unreported
                    file.replace(folder / file.name)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"Could not write videos to {folder}: {reason}") from error
    return [folder / name for name in names]


def file_stems(task_names: Sequence[str]) -> list[str]:
    """Distinct file names for the tasks, in characters that every file system accepts."""
    stems = [re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in task_names]
    return [stem if stems.count(stem) == 1 else f"{stem}-{task}" for task, stem in enumerate(stems)]


def _film(
    actor: Actor,
    env: VecEnv,
    jobs: Sequence[tuple[int, int]],
    seed: int,
    render: Callable[[int], np.ndarray],
    writers: Sequence[Any],
    filmed: Callable[[int], None],
    longest: int,
) -> None:
    filming = set(range(len(jobs)))
    obs, state = begin(env, jobs, seed), actor.initial_state(env.num_envs)
    for t in range(longest):
        # Before the step: after a done, the slot already shows its next episode.
        for slot in filming:
            writers[slot].append_data(render(slot))
        action, _, state = actor.act(obs, env.task, state, explore=False)
        step = env.step(action)
        filming = {slot for slot in filming if not step.done[slot]}
        filmed(len(filming) * (t + 1) + (len(jobs) - len(filming)) * longest)
        if not filming:
            break
        obs = step.obs


def _video_suffix() -> str:
    try:
        importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return ".gif"
    return ".mp4"
