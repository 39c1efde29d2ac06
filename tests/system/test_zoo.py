"""From a run to a policy that is found by its name, through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mtrl
import mtrl.zoo.__main__ as command
from mtrl.zoo import collection
from tests.system.commands import evaluate, run, the_error, tiny


def zoo(*arguments: str) -> int:
    return run(*arguments, command=command)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, of which the collection has the policy `toy`."""
    path = tmp_path_factory.mktemp("zoo")
    assert run(*tiny(), f"run_dir={path / 'run'}") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "FOLDER", path / "policies")
        assert zoo("card", f"run={path / 'run'}", "name=toy") == 0
        yield path / "run"


def test_loads_by_name(finished: Path) -> None:
    obs = torch.randn(3, 2)
    assert torch.equal(mtrl.load_policy("toy").act(obs, 1), mtrl.load_policy(finished).act(obs, 1))


def test_card_says_what_was_measured_and_how_it_was_made(finished: Path) -> None:
    card = json.loads((collection.FOLDER / "toy" / "card.json").read_text())
    evaluation = json.loads((finished / "eval" / "000000000640.json").read_text())
    assert card["protocol"] == evaluation["protocol"]
    assert card["measured"]["success_rate"] == evaluation["summary"]["success_rate"]
    for task, values in evaluation["summary"]["tasks"].items():
        assert card["measured"]["tasks"][task].items() >= values.items()
        assert card["measured"]["tasks"][task]["successes"] == sum(evaluation["episodes"][task]["success"])
    assert (card["env_steps"], card["updates"], card["seed"], card["resumed"]) == (640, 8, 1, 0)
    assert card["command"] == f"python -m mtrl.train {' '.join(tiny())}"
    assert str(finished) not in (collection.FOLDER / "toy" / "card.json").read_text()
    assert [point["official"] for point in card["curve"] if "official" in point][-1] == card["measured"]["success_rate"]
    assert card["curve"][-1]["step"] == 640
    assert card["environment"]["torch"] == torch.__version__


def test_listed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo() == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "environment", "tasks", "parameters", "KB", "measured"]
    assert line.split()[:5] == ["toy", "toy_reach", "4", "256", "3"]
    assert "Success" in line


def test_measured_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((collection.FOLDER / "toy").iterdir())
    assert evaluate("policy=toy") == 0
    out = capsys.readouterr().out
    assert "\nreach-3 " in out
    assert out.splitlines()[-1].startswith("Agrees with its card within the intervals. Success ")
    assert sorted((collection.FOLDER / "toy").iterdir()) == before, "nothing is written into the package"
    assert evaluate("policy=toy", f"out={tmp_path}") == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    trained = json.loads((finished / "eval" / "000000000640.json").read_text())
    assert [found[key] for key in ("protocol", "episodes")] == [trained[key] for key in ("protocol", "episodes")]
    capsys.readouterr()
    assert evaluate("policy=toy", "env.horizon=7") == 0
    assert "card" not in capsys.readouterr().out, "what was changed is not compared"


def test_a_policy_that_does_not_say_its_environment(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(finished / "checkpoints" / "last" / "policy", policy)
    assert evaluate(f"policy={policy}") == 2
    assert "Name the environment of another policy: policy=... env=mt10" in the_error(capsys)
    assert evaluate(f"policy={policy}", "env=toy_reach", "env.horizon=9", "episodes_per_task=3") == 0
    assert "episodes per task: 3" in capsys.readouterr().out
    assert sorted(path.name for path in policy.iterdir()) == ["config.json", "model.safetensors"]


def test_a_run_starts_from_it_and_learns_from_it(finished: Path, tmp_path: Path) -> None:
    short = [*tiny(total_steps=80), "eval.episodes_per_task=1"]
    assert run(*short, "init_from=toy", f"run_dir={tmp_path / 'a'}") == 0
    taught = ["distill=kickstart", "aux_losses.teacher.teacher.path=toy"]
    assert run(*short, *taught, f"run_dir={tmp_path / 'b'}") == 0


def test_made_elsewhere(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo("card", f"run={finished}", "name=other", f"out={tmp_path / 'other'}") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "other")
    assert 'mtrl.load_policy("other")' in (tmp_path / "other" / "README.md").read_text()
    assert evaluate(f"policy={tmp_path / 'other'}") == 0
    assert collection.shipped_names() == ["toy"]


def test_of_a_resumed_run(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    assert run(f"resume={copy}", "total_steps=800") == 0
    assert zoo("card", f"run={copy}", "name=x", f"out={tmp_path / 'x'}") == 0
    card = json.loads((tmp_path / "x" / "card.json").read_text())
    assert (card["env_steps"], card["resumed"]) == (800, 1)
    assert card["command"] == f"python -m mtrl.train {' '.join(tiny())}"
    assert card["config"]["total_steps"] == 800


def test_the_last_checkpoint_must_have_been_evaluated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    (copy / "eval" / "000000000640.json").unlink()
    assert zoo("card", f"run={copy}", "name=x", f"out={tmp_path / 'x'}") == 2
    assert f"The last checkpoint of {copy} is of step 640, which was not evaluated" in the_error(capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["crad"], "Unknown command 'crad'. Did you mean 'card'? Valid: list, card, push."),
        (["card"], "card needs a value for: run, name."),
        (["card", "run=nowhere", "name=x"], "No run in nowhere: expected a run folder (with checkpoints/)."),
        (["card", "run=toy", "name=x"], "No run in toy"),
        (["card", "run={run}", "name=../x"], "name must consist of small letters"),
        (["card", "run={run}", "name=x", "out={run}"], "is not empty, and not the folder of a policy with a card"),
        (["card", "run={run}", "name=x", "to=y"], "Unknown option of card: 'to'"),
    ],
)
def test_errors(finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert zoo(*(argument.format(run=finished) for argument in arguments)) == 2
    assert expected in the_error(capsys)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo("--help") == zoo("card", "--help") == 0
    assert "policy=mt10" in capsys.readouterr().out


def test_nothing_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collection, "FOLDER", tmp_path / "none")
    assert zoo() == 0
    assert capsys.readouterr().out == "No policies come with this version.\n"
    assert evaluate("policy=mt50") == 2
    assert "the name of a shipped policy (there are none), found nothing there." in the_error(capsys)
