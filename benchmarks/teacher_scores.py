"""Success of Meta-World's scripted policies by the official protocol, beside that of students.

    python benchmarks/teacher_scores.py mt10 [results/mt10_distill/seed1.json ...]

Writes results/teachers_<env>.json (once: a stored result is not measured again) and prints a table of the tasks in
which the teacher or a student fails an episode.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mtrl.envs
from mtrl.distill.scripted import Scripted
from mtrl.distill.teachers import TeacherActor
from mtrl.run.evaluation.evaluator import Evaluator
from mtrl.run.evaluation.report import headline, write_eval

RESULTS = Path(__file__).parents[1] / "results"
SEED = 1
"""Of the goals, as in the runs of the students."""


def measure(env: str) -> Path:
    """The stored evaluation of the teachers, which is made if it is not there."""
    file = RESULTS / f"teachers_{env}.json"
    if not file.is_file():
        protocol = mtrl.envs.evaluation_protocol({"name": env}, SEED)
        evaluator = Evaluator(protocol, mtrl.envs.make, SEED, episodes_per_task=50, max_episode_steps=500)
        try:
            spec = evaluator.env.spec
            result = evaluator(TeacherActor(Scripted(spec), spec))
        finally:
            evaluator.close()
        print(f"{env}: {headline(result)}")
        write_eval(file, result, policy="metaworld.policies")
    return file


def rates(file: Path) -> dict[str, float]:
    """Success rate of each task in a stored evaluation, or in the last one of a stored run."""
    content = json.loads(file.read_text())
    evaluation = content["evaluations"][-1] if "evaluations" in content else content
    return {name: task["success_rate"] for name, task in evaluation["summary"]["tasks"].items()}


def main() -> None:
    env, *students = sys.argv[1:]
    columns = {"teacher": rates(measure(env)), **{Path(file).stem: rates(Path(file)) for file in students}}
    print(f"| task | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for task in columns["teacher"]:
        row = [column[task] for column in columns.values()]
        if min(row) < 1:
            print(f"| {task} | {' | '.join(f'{rate:.2f}' for rate in row)} |")
    means = [sum(column.values()) / len(column) for column in columns.values()]
    print(f"| mean of {len(columns['teacher'])} | {' | '.join(f'{mean:.3f}' for mean in means)} |")


if __name__ == "__main__":
    main()
