"""Which tasks belong together, from trained policies.

python -m mtrl.relate policies=runs/mt10                          # its tasks, by what it does in them: relate/ there
python -m mtrl.relate policies=mt10 out=relations                 # a policy that comes with the package
python -m mtrl.relate policies=mt10 measures=[cka,routing] groups=2
python -m mtrl.relate policies=runs/mt10 transfer=runs/pairs      # and what short runs say: python -m mtrl.relate.runs
python -m mtrl.relate policies=[runs/reach,runs/push,runs/hammer] out=relations    # a policy for each task
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtrl.envs
import mtrl.relate.measures  # registers relations
from mtrl.checks import positive
from mtrl.config import parse_with_env, run_or_exit, split_paths, stored_entry
from mtrl.files import json_text, replacing, write_atomic
from mtrl.origin import origin
from mtrl.policy import Policy, check_device, find_policy, load_policy
from mtrl.registry import build, construct, lookup, names, parameters, unknown
from mtrl.relate.agreement import agreement
from mtrl.relate.grouping import GROUPINGS, structure_p_value, total
from mtrl.relate.measures import Relation
from mtrl.relate.pairs import matrix_of
from mtrl.relate.probe import Probe, Recorder
from mtrl.relate.report import agreement_lines, csv_text, draw, draw_map, matrix_lines, named, setting
from mtrl.relate.scaling import Map, task_map
from mtrl.report.figures import check_matplotlib
from mtrl.run.console import NO_RESULTS, Progress
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.system.cores import available_cores
from mtrl.types import UserError

MEASURES = ("cka", "rsa", "attribution", "embedding")


def relate(
    policies: str | Sequence[str],
    measures: Sequence[str] = MEASURES,
    groups: int = 3,
    grouping: str = "best",
    observations: int = 400,
    episodes_per_task: int = 2,
    seed: int = 0,
    device: str = "cpu",
    out: str | None = None,
    transfer: str | None = None,
    env: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares tasks by what policies do in them. Prints matrices, agreement and groups, and writes them.

    Args:
        policies: Anything that `mtrl.load_policy` takes: one policy of several tasks, or several of different tasks.
        measures: Names of relations.
        groups: Number of groups, at most.
        grouping: How they are found: a name in `GROUPINGS`.
        observations: Number of observations that are looked at in each task: of all tasks together.
        episodes_per_task: Episodes of each task from which these are drawn.
        seed: Of what is drawn.
        out: Folder to write to; by default `relate` in the run's folder. Of a policy outside of a run, nothing is
            written without it.
        transfer: Folder of `mtrl.relate.runs`, whose forward transfer is compared with the measures.
        env: Changes to the settings of the environment.
    """
    positive(groups=groups, observations=observations, episodes_per_task=episodes_per_task)
    for name in measures:
        lookup("relation", name)
    if grouping not in GROUPINGS:
        raise UserError(unknown("grouping", grouping, list(GROUPINGS)))
    check_device(device)
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))  # torch ignores CPU quotas
    folders = [find_policy(path) for path in ([policies] if isinstance(policies, str) else policies)]
    runs = [origin(folder, env or {}).run for folder in folders]
    target = Path(out) if out else runs[0] / "relate" if len(runs) == 1 and runs[0] else None
    if target is not None:
        check_matplotlib()
    probe = _probe([load_policy(folder, device) for folder in folders], folders, env or {}, observations,
                   episodes_per_task, seed, device, runs[0] if len(runs) == 1 else None)  # fmt: skip
    relations: dict[str, Relation] = {name: build("relation", {"name": name}, probe=probe) for name in measures}
    if transfer is not None:
        relations["transfer"] = Relation(torch.from_numpy(_transfer(Path(transfer), probe.tasks)))
    matrices = {name: relation.matrix.numpy() for name, relation in relations.items()}
    result: dict[str, Any] = {"policies": [str(folder) for folder in folders], "tasks": list(probe.tasks)}
    result["grouping"] = grouping
    result |= {"observations": len(probe.task), "seed": seed, "relations": {}}
    maps = {name: task_map(matrix) for name, matrix in matrices.items()}
    for name, matrix in matrices.items():
        partition = GROUPINGS[grouping](matrix, groups)
        p_value = structure_p_value(matrix, groups, seed=seed)
        best = named(probe.tasks, partition)
        result["relations"][name] = {
            "matrix": matrix.tolist(),
            "layers": {layer: values.tolist() for layer, values in relations[name].layers.items()},
            "groups": best,
            "value": total(matrix, partition),
            "p_value": p_value,
            "map": maps[name].positions.tolist(),
            "map_share": maps[name].share,
        }
        print("\n".join(["", f"{name}:", *matrix_lines(probe.tasks, matrix)]))
        if layers := relations[name].layers:
            means = ", ".join(f"{layer} {_mean_of_pairs(values.numpy()):.2f}" for layer, values in layers.items())
            print(f"mean by layer: {means}")
        if len(relations[name].halves) == 2:
            one, other = (half.numpy() for half in relations[name].halves)
            found = agreement(one, other, seed=seed)
            result["relations"][name]["halves"] = found._asdict()
            print(*agreement_lines({("one half of the log", "the other"): found}))
        verdict = "no chance" if p_value <= 0.05 else "could be chance"
        print(f"{grouping} groups, p = {p_value:.3f} ({verdict}): {setting(best)}")
    pairs = list(itertools.combinations(matrices, 2))
    agreements = {(a, b): agreement(matrices[a], matrices[b], seed=seed) for a, b in pairs}
    result["agreement"] = [{"of": list(both), **value._asdict()} for both, value in agreements.items()]
    if agreements:
        print("\n".join(["", "agreement (rank correlation, 95% interval over tasks):", *agreement_lines(agreements)]))
    if target is not None:
        _write(target, result, probe.tasks, matrices, maps)
    return result


def _transfer(folder: Path, tasks: Sequence[str]) -> np.ndarray:
    """Forward transfer between all pairs. Raises `UserError` if a run is missing."""
    matrix = matrix_of(folder, tasks)
    if missing := int(np.isnan(matrix).sum()):
        raise UserError(
            f"transfer={folder}: {missing} of {len(tasks) * (len(tasks) - 1)} pairs of these tasks have no finished "
            "run, or no run from scratch: python -m mtrl.relate.runs goes on with them."
        )
    return matrix


def _mean_of_pairs(matrix: Any) -> float:
    K = len(matrix)
    return float((matrix.sum() - matrix.trace()) / (K * (K - 1)))


def _probe(
    policies: Sequence[Policy],
    folders: Sequence[Path],
    env: Mapping[str, Any],
    observations: int,
    episodes_per_task: int,
    seed: int,
    device: str,
    run: Path | None,
) -> Probe:
    """Lets each policy act in its environment. Raises `UserError` if they do not fit together."""
    tasks = [name for policy in policies for name in policy.tasks]
    if twice := sorted({name for name in tasks if tasks.count(name) > 1}):
        raise UserError(f"policies: each task needs one policy, but {', '.join(twice)} is in several.")
    if len(tasks) < 3:
        raise UserError(f"Relations need at least three tasks, found {', '.join(tasks)}.")
    shapes = {policy.spec.obs_shape for policy in policies}
    if len(shapes) > 1:
        raise UserError(f"policies: observations must have one shape, found {', '.join(map(str, sorted(shapes)))}.")
    number = max(observations // len(tasks), 2)
    kept: dict[str, list[torch.Tensor]] = {}
    for policy, folder in zip(policies, folders, strict=True):
        kept |= _record(policy, folder, env, number, episodes_per_task, seed, device)
    tasks = [name for name in tasks if name in kept]
    if len(tasks) < 3:
        names = ", ".join(tasks) or "none"
        raise UserError(f"Relations need at least three tasks, found {names} in the environment.")
    owner = {name: policy for policy in policies for name in policy.tasks}
    counts = torch.tensor([len(kept[name]) for name in tasks], device=device)
    return Probe(
        tuple(tasks),
        tuple(owner[name].network for name in tasks),
        tuple(owner[name].tasks.index(name) for name in tasks),
        torch.cat([torch.stack(kept[name]) for name in tasks]),
        torch.arange(len(tasks), device=device).repeat_interleave(counts),
        run,
    )


def _record(
    policy: Policy, folder: Path, env: Mapping[str, Any], number: int, episodes_per_task: int, seed: int, device: str
) -> dict[str, list[torch.Tensor]]:
    """Observations of each task that the policy was trained in and its environment has, with a progress bar."""
    made_by = origin(folder, env)
    run_seed = stored_entry(made_by.config, "seed", int, made_by.stored)
    protocol = mtrl.envs.evaluation_protocol(made_by.env(env), run_seed)
    steps = made_by.max_episode_steps
    evaluator = Evaluator(protocol, mtrl.envs.make, run_seed, episodes_per_task, steps, device)
    began = time.perf_counter()
    try:
        spec = evaluator.env.spec
        known = [task for task, name in enumerate(spec.task_names) if name in policy.tasks]
        recorder = Recorder(policy.for_env(spec).actor, known, number, seed)
        with Progress() as progress:

            def report(done: int, total: int) -> None:
                rate = done / (time.perf_counter() - began)
                progress.update(done, total, rate, NO_RESULTS, {}, "observing", unit="episodes")

            evaluator(recorder, report)
    finally:
        evaluator.close()
    return {spec.task_names[task]: recorder.kept[task] for task in known}


def _write(
    folder: Path,
    result: Mapping[str, Any],
    tasks: Sequence[str],
    matrices: Mapping[str, np.ndarray],
    maps: Mapping[str, Map],
) -> None:
    """`relate.json`, `relate.csv`, and two figures of each relation. Raises `UserError`."""
    try:
        write_atomic(folder / "relate.json", json_text(result, indent=1) + "\n")
        with replacing(folder / "relate.csv") as temporary:
            temporary.write_text(csv_text(tasks, matrices), encoding="utf-8")
        paths = [draw(folder / f"{name}.svg", name, tasks, matrix) for name, matrix in matrices.items()]
        for name, found in maps.items():
            paths.append(draw_map(folder / f"{name}_map.svg", name, tasks, found, result["relations"][name]["groups"]))
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    print("\n".join(map(str, ["", folder / "relate.json", folder / "relate.csv", *paths])))


def main() -> None:
    """Command line: `key=value` arguments of `relate`, and `env.key=value` for the environment."""
    run_or_exit(_main, sys.argv[1:])


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        keys = ", ".join([*parameters(relate), "env.*"])
        print(f"{__doc__}\nMeasures: {', '.join(names('relation'))}\nKeys: {keys}")
        return 0
    is_list = any(argument.startswith("policies=[") for argument in arguments)
    settings, paths = split_paths(arguments, ("out", "transfer") if is_list else ("policies", "out", "transfer"))
    keywords, changes = parse_with_env(settings)
    construct("relate", relate, {**keywords, **paths, "env": changes})
    return 0


if __name__ == "__main__":
    main()
