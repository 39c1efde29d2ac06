"""`python -m mtrl.evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mtrl
from tests.system.commands import ON_POLICY, TINY, evaluate, run, the_error, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests may write `eval.json` into it."""
    path = tmp_path_factory.mktemp("evaluate") / "run"
    assert run(*tiny(), f"run_dir={path}", "eval.episodes_per_task=5") == 0
    return path


def test_equals_the_final_evaluation_of_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(f"run={finished}") == 0
    found = json.loads((finished / "eval.json").read_text())
    trained = json.loads((finished / "eval" / "000000000640.json").read_text())
    for key in ("protocol", "summary", "episodes"):
        assert found[key] == trained[key], key
    assert found["policy"] == str(finished / "checkpoints" / "000000000640" / "policy")
    assert found["protocol"]["episodes per task"] == 5
    out = capsys.readouterr().out
    for task, values in found["summary"]["tasks"].items():
        assert f"\n{task}  " in f"\n{out}"
        assert f"{values['success_rate']:.2f}" in out


def test_processes_that_share_the_episodes(finished: Path, tmp_path: Path) -> None:
    """Unequal shares of goals, joined: the file of one process."""
    assert evaluate(f"run={finished}", f"out={tmp_path / 'one'}") == 0
    assert evaluate(f"run={finished}", f"out={tmp_path / 'two'}", "actors=2") == 0
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("one", "two"))
    returns = [[columns.pop("return") for columns in found["episodes"].values()] for found in (one, two)]
    assert one["episodes"] == two["episodes"]
    for expected, found in zip(*returns, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)  # batches of other sizes are rounded differently


def test_of_one_checkpoint_and_elsewhere(finished: Path, tmp_path: Path) -> None:
    step = "000000000480"
    assert evaluate(f"run={finished}/checkpoints/{step}", f"out={tmp_path}/new", "episodes_per_task=3") == 0
    found = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert step in found["policy"]
    assert all(len(columns["goal"]) == 3 for columns in found["episodes"].values())
    assert evaluate(f"run={finished}/checkpoints/last", f"out={tmp_path}") == 0


def test_other_settings_of_the_environment(finished: Path, tmp_path: Path) -> None:
    assert evaluate(f"run={finished}", "env.horizon=7", f"out={tmp_path}") == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert {length for columns in found["episodes"].values() for length in columns["length"]} == {7}


def test_episodes_that_end_at_success(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(*tiny(), f"run_dir={run_dir}", "eval.episodes_per_task=5", "eval.stop_at_success=true") == 0
    assert evaluate(f"run={run_dir}") == 0
    short = json.loads((run_dir / "eval.json").read_text())
    assert short["protocol"]["episodes end"] == "at the first success, which returns are up to"
    assert short["episodes"] == json.loads((run_dir / "eval" / "000000000640.json").read_text())["episodes"]
    assert evaluate(f"run={run_dir}", "stop_at_success=false") == 0
    whole = json.loads((run_dir / "eval.json").read_text())
    for task, columns in whole["episodes"].items():
        assert columns["success"] == short["episodes"][task]["success"]
        assert all(map(int.__ge__, columns["length"], short["episodes"][task]["length"]))


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate() == evaluate("--help") == 0
    assert "episodes_per_task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run=nowhere"], "No policy in nowhere: expected a run folder"),
        (["run=/etc/hostname"], "found a file"),
        (["rum=x"], "Unknown option of evaluate: 'rum'. Did you mean 'run'? Valid: run, policy, video"),
        (["video=true"], "evaluate needs a value for: run"),
        (["run={run}", "video=abc"], "video must be true or false, not 'abc'"),
        (["run={run}", "episodes_per_task=0"], "episodes_per_task must be positive"),
        (["run={run}", "policy={run}"], "evaluate needs a value for: run, or policy instead of it"),
        (["teacher=true"], "evaluate needs a value for: run, or policy instead of it, or a teacher and its env"),
        (["teacher=scripted"], "A teacher alone needs the name of an environment: teacher=scripted env=mt10"),
        (["run={run}", "teacher=true"], "config.yaml has none: name it, teacher=..."),
        (["run={run}", "teacher=scriptd"], "Unknown teacher: 'scriptd'. Did you mean 'scripted'? Valid: policy"),
        (["run={run}", "teacher=scripted"], "Unknown task of the teacher 'scripted': 'reach-0'"),
        (["run={run}", "actors=6"], "actors=6 share 5 episodes per task: at most one for each of them."),
        (["run={run}", "actors=2", "transport=rey"], "Unknown transport 'rey'. Did you mean 'ray'? Valid: local, ray."),
        (["run={run}", "transport=ray"], "transport=ray connects to actors: choose their number with actors=..."),
        (["run={run}", "env=mt11"], "Unknown env 'mt11'. Did you mean 'mt1'?"),
        (["run={run}", "env.foo=1"], "Unknown option of env 'toy_reach': 'foo'"),
        (["run={run}", "env.num_tasks=5"], "The policy was not trained in reach-4 and cannot act there"),
        (["run={run}", "env.name=toy_grid"], "The policy does not fit the environment: obs_shape is (2,) here, (25,)"),
        (["run={run}", "device=gpu"], "device=gpu cannot be used"),
        (["run={run}", "out=/etc/hostname/x"], "Cannot write to /etc/hostname/x: Not a directory"),
        (["run={run}", "video=true", "out={tmp}"], "toy_reach cannot be filmed"),
        (["run={run}/checkpoints/last/policy", "out={tmp}", "run"], "Cannot read the command line"),
    ],
)
def test_errors(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert evaluate(*(argument.format(run=finished, tmp=tmp_path) for argument in arguments)) == 2
    assert expected in the_error(capsys)


def test_a_policy_alone_is_not_enough(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "policy"
    copy.mkdir()
    for path in (finished / "checkpoints" / "last" / "policy").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert mtrl.load_policy(copy).spec.num_tasks == 4
    assert evaluate(f"run={copy}") == 2
    assert "No config.yaml in" in the_error(capsys)


def test_a_teacher_beside_its_student(
    finished: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher is the policy of `finished`: the same episodes as its own evaluation, in three ways."""
    student = (*tiny("distill", total_steps=80), "eval.every=0", "eval.episodes_per_task=5")
    assert run(*student, f"data.teacher.path={finished}", f"run_dir={run_dir}") == 0
    assert evaluate(f"run={finished}", f"out={tmp_path / 'own'}") == 0
    own = json.loads((tmp_path / "own" / "eval.json").read_text())
    capsys.readouterr()
    assert evaluate(f"run={run_dir}", "teacher=true") == 0
    beside = capsys.readouterr().out.splitlines()
    found = {name: json.loads((run_dir / f"eval{name}.json").read_text()) for name in ("", "_teacher")}
    for key in ("protocol", "summary", "episodes"):
        assert found["_teacher"][key] == own[key], key
    assert found["_teacher"]["policy"] == f"the policy in {finished}"
    first = next(i for i, line in enumerate(beside) if line.split() == ["success", "student", "teacher"])
    rates = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in beside[first + 1 : first + 6]}
    pair = [found[name]["summary"] for name in ("", "_teacher")]
    assert rates["mean"] == pytest.approx([one["success_rate"] for one in pair], abs=5e-4)
    for task in pair[0]["tasks"]:
        assert rates[task] == pytest.approx([one["tasks"][task]["success_rate"] for one in pair], abs=5e-4)
    alone = ("env=toy_reach", f"teacher={finished}", "episodes_per_task=5", f"out={tmp_path / 'alone'}")
    assert evaluate(*alone) == 0
    assert json.loads((tmp_path / "alone" / "eval.json").read_text())["episodes"] == own["episodes"]


@pytest.mark.slow
def test_video(run_dir: Path) -> None:
    pytest.importorskip("imageio")
    small = ["env=mt1", "env.num_envs=2", "env.horizon=20", *ON_POLICY, *TINY, "total_steps=40"]
    assert run(*small, f"run_dir={run_dir}") == 0
    assert evaluate(f"run={run_dir}", "video=true") == 0
    (video,) = (run_dir / "videos").iterdir()
    assert video.name == "reach-v3.mp4"
    assert video.stat().st_size > 1000
