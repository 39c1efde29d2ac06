"""Evaluate a trained policy.

python -m mtrl.evaluate run=runs/...                            # the official protocol: per-task table, eval.json
python -m mtrl.evaluate run=runs/... video=true                 # and a film of every task
python -m mtrl.evaluate run=runs/... env.split=test             # another setting of its environment
python -m mtrl.evaluate run=runs/... teacher=true              # its teacher, too: eval_teacher.json, beside the student
python -m mtrl.evaluate env=mt10 teacher=scripted              # a teacher alone, by its name or by the path of a policy
python -m mtrl.evaluate run=runs/... actors=8                   # in eight processes; transport=ray: on a Ray cluster
python -m mtrl.evaluate policy=mt10                             # a policy that comes with the package, beside its card
python -m mtrl.evaluate policy=folder env=mt10                  # a policy folder that does not say its environment
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mtrl.distill  # registers teachers
import mtrl.envs
from mtrl.checks import not_negative
from mtrl.config import parse_with_env, run_or_exit, split_paths, stored_entry
from mtrl.distill.teachers import Teacher, TeacherActor, teacher_actor
from mtrl.origin import OFFICIAL, Origin, origin
from mtrl.parallel.evaluation import shared_episodes
from mtrl.policy import check_device, find_policy, load_actor, load_policy
from mtrl.registry import build, construct, names, parameters, unknown
from mtrl.run.console import NO_RESULTS, Progress
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.run.evaluation.report import show, side_by_side, write_eval
from mtrl.run.evaluation.video import VIDEOS, record_videos
from mtrl.system.cores import available_cores
from mtrl.types import Actor, EnvSpec, EvalResult, UserError
from mtrl.zoo.card import CARD, compared, read_card


def evaluate_policy(
    run: str | None = None,
    policy: str | None = None,
    video: bool = False,
    episodes_per_task: int | None = None,
    max_episode_steps: int | None = None,
    stop_at_success: bool | None = None,
    device: str = "cpu",
    out: str | None = None,
    env: dict[str, Any] | None = None,
    teacher: bool | str = False,
    actors: int = 0,
    transport: str = "local",
) -> EvalResult:
    """Evaluates a policy, prints the table, compares it with the policy's card, and writes `eval.json`.

    Args:
        run: Run folder (its newest intact checkpoint is evaluated) or a checkpoint in it.
        policy: In its place, anything that `mtrl.load_policy` takes.
        video: Whether to record a video of one episode of each task.
        episodes_per_task: By default the setting of the run that made the policy.
        max_episode_steps: By default the setting of that run.
        stop_at_success: Whether episodes end at their first success; by default the setting of that run.
        out: Output folder; by default the run's. Of a policy outside of a run, nothing is written without it.
        env: Changes to the settings of that run's environment.
        teacher: Also evaluates a teacher, and writes `eval_teacher.json`: that of the run (true), a registered name, or
            anything that `mtrl.load_policy` takes. Without a run and a policy, it is evaluated in their place.
        actors: Processes that share the episodes, with a thread each; 0: this one, with all cores.
        transport: Where actors run: local, or ray for the machines of a Ray cluster.
    """
    evaluated = [str(path) for path in (run, policy) if path is not None]
    if len(evaluated) != 1 and (evaluated or not isinstance(teacher, str)):
        raise UserError("evaluate needs a value for: run, or policy instead of it, or a teacher and its env.")
    folder = find_policy(evaluated[0]) if evaluated else None
    made_by = _origin(folder, env or {})
    config, stored, run_dir = made_by
    teachers = _teachers(teacher, config, stored)
    node, seed = made_by.env(env or {}), stored_entry(config, "seed", int, stored)
    as_it_was = not env and max_episode_steps is None
    if episodes_per_task is None:
        episodes_per_task = stored_entry(config, "eval.episodes_per_task", int, stored)
    if max_episode_steps is None:
        max_episode_steps = made_by.max_episode_steps
    if stop_at_success is None:
        stop_at_success = made_by.stop_at_success
    target = Path(out) if out else run_dir
    if video and target is None:
        raise UserError("video=true needs a folder for the videos of a policy outside of a run: out=...")
    check_device(device)
    not_negative(actors=actors)
    if actors and device != "cpu":
        raise UserError(f"actors={actors} act on the CPU: leave out device={device}.")
    if transport != "local" and not actors:
        raise UserError(f"transport={transport} connects to actors: choose their number with actors=...")
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))  # torch ignores CPU quotas
    protocol = mtrl.envs.evaluation_protocol(node, seed)
    evaluator = Evaluator(protocol, mtrl.envs.make, seed, episodes_per_task, max_episode_steps, device, stop_at_success)
    if actors:
        evaluator = evaluator.share(slots_per_task=1)  # this process only needs to know its tasks
    try:
        spec = evaluator.env.spec
        subjects = [] if folder is None else [_student(folder, spec, device)]
        subjects += [_teacher(one, spec, device) for one in teachers]
        results = {subject.name: _result(subject, evaluator, actors, transport) for subject in subjects}
        (first, result), *others = zip(subjects, results.values(), strict=True)
        if target is not None:
            write_eval(target / "eval.json", result, policy=first.source)
            for subject, other in others:
                write_eval(target / f"eval_{subject.name}.json", other, policy=subject.source)
        show(result)
        if others:
            print("\n".join(side_by_side(results)))
        if stored.name == CARD and as_it_was:
            print(compared(result, read_card(stored.parent)))
        if video and target is not None:
            film(first.actor, evaluator, target / VIDEOS)
    except OSError as error:
        raise UserError(f"Cannot write to {target}: {error.strerror or error}.") from error
    finally:
        evaluator.close()
    return result


class Subject(NamedTuple):
    """What is evaluated."""

    name: str
    """Its column where several are compared."""
    source: str
    actor: Actor
    make_actor: Callable[[EnvSpec], Actor]
    """Makes it in another process, on the CPU."""
    words: dict[str, Any]
    """What the protocol says of it."""


def _student(folder: Path, spec: EnvSpec, device: str) -> Subject:
    loaded = load_policy(folder, device)
    adapted = loaded.for_env(spec)
    new = ", ".join(name for name in adapted.tasks if name not in loaded.tasks)
    make_actor = partial(load_actor, folder.resolve())
    return Subject("student", str(folder), adapted.actor, make_actor, {"not trained in": new} if new else {})


def _teacher(node: Mapping[str, Any], spec: EnvSpec, device: str) -> Subject:
    made: Teacher = build("teacher", node, spec=spec, device=device)
    make_actor = partial(teacher_actor, node)
    return Subject("teacher", made.description, TeacherActor(made, spec, device), make_actor, {})


def _teachers(teacher: bool | str, config: Mapping[str, Any], stored: Path) -> list[Mapping[str, Any]]:
    """Config node of the teacher to evaluate, or none. Raises `UserError` if the run has none, or more than one."""
    if isinstance(teacher, str):
        if teacher in names("teacher"):
            return [{"name": teacher}]
        try:
            return [{"name": "policy", "path": str(find_policy(teacher).resolve())}]
        except UserError as error:
            raise UserError(f"{unknown('teacher:', teacher, names('teacher'))} {error}") from error
    learned_from = [config.get("data") or {}, *(config.get("aux_losses") or {}).values()]
    nodes = [node["teacher"] for node in learned_from if isinstance(node, Mapping) and "teacher" in node]
    if teacher and len(nodes) != 1:
        found = ", ".join(map(str, nodes)) or "none"
        raise UserError(f"teacher=true needs a run with one teacher, but {stored} has {found}: name it, teacher=...")
    return nodes if teacher else []


def _result(subject: Subject, evaluator: Evaluator, actors: int, transport: str) -> EvalResult:
    """Evaluates, with a progress bar."""
    began = time.perf_counter()
    with Progress() as progress:

        def report(done: int, total: int) -> None:
            rate = done / (time.perf_counter() - began)
            progress.update(done, total, rate, NO_RESULTS, {}, f"{subject.name} evaluation", unit="episodes")

        if actors:
            ended = shared_episodes(evaluator, subject.make_actor, actors, transport, progress.print)
        else:
            ended = evaluator.episodes(subject.actor, evaluator.jobs)
        result = evaluator.joined(ended, report)
    return replace(result, protocol={**result.protocol, **subject.words})


def _origin(folder: Path | None, env: Mapping[str, Any]) -> Origin:
    """The origin of a policy, or of a teacher alone, which needs the name of an environment."""
    if folder is not None:
        return origin(folder, env)
    if "name" not in env:
        raise UserError("A teacher alone needs the name of an environment: teacher=scripted env=mt10")
    return Origin(OFFICIAL, Path(), None)


def film(actor: Actor, evaluator: Evaluator, folder: Path) -> None:
    """Records a video of goal 0 of every task."""
    try:
        env: Any = mtrl.envs.make(**evaluator.settings, seed=evaluator.seed, num_envs=None, render=True)
    except UserError as error:
        raise UserError(f"{evaluator.settings['name']} cannot be filmed: {error}") from error
    began = time.perf_counter()
    try:
        longest = evaluator.max_episode_steps(env.spec)
        with Progress() as progress:

            def report(done: int, total: int) -> None:
                rate = done / (time.perf_counter() - began)
                progress.update(done, total, rate, NO_RESULTS, {}, "filming", unit="images")

            seed = evaluator.seed
            paths = record_videos(actor, env, env.render, folder, seed=seed, progress=report, max_episode_steps=longest)
        for path in paths:
            print(path)
    finally:
        env.close()


def main() -> None:
    """Command line: `key=value` arguments of `evaluate_policy`, and `env.key=value` for the environment."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        keys = ", ".join([*parameters(evaluate_policy), "env.*"])
        print(f"{__doc__}\nKeys: {keys}")
        return 0
    settings, paths = split_paths(arguments, ("run", "policy", "out"))
    keywords, changes = parse_with_env(settings)
    construct("evaluate", evaluate_policy, {**keywords, **paths, "env": changes})
    return 0


if __name__ == "__main__":
    main()
