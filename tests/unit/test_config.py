"""How a command line becomes plain values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mtrl.config import checked, composed, load_yaml, parse, resumed, save_yaml, split_paths, train_config
from mtrl.types import UserError


def test_checked_passes_on_what_is_valid() -> None:
    given = ["env=toy_reach", "seed=3", "eval.every=5", "~agent", "hydra.verbose=true", "seed=1,2", "agent=ppo,sac"]
    given += ["network=choice(mlp,film)", "seed=range(1,4)"]
    assert checked(given, "train", sweep=True) == given
    assert checked(["aggregation=glob([m*,sum])"], "train", sweep=True) == ["aggregation=mean,measured_mean,mgda,sum"]
    assert checked(["agent.gamma=interval(0,1)"], "train", sweep=True) == ["++agent.gamma=interval(0,1)"]


@pytest.mark.parametrize(
    ("argument", "passed"),
    [
        ("agent.gamma=1", "++agent.gamma=1"),
        ("+agent.new=1", "++agent.new=1"),
        ("++agent.new=1", "++agent.new=1"),
        ("experiment=mt10_sac", "+experiment=mt10_sac"),
        ("+experiment=mt10_sac", "+experiment=mt10_sac"),
    ],
)
def test_checked_adds_what_hydra_wants(argument: str, passed: str) -> None:
    assert checked([argument], "train") == [passed]


def test_composed_is_plain_and_resolved() -> None:
    config = composed(
        ["env=toy_grid", "agent=impala", "agent.gamma=0.5", "init_from_parts=[a,b]", "init_from=x"], "train"
    )
    assert config["env"]["name"] == "toy_grid"
    assert config["agent"]["gamma"] == 0.5
    assert config["agent"]["clip_range"] == float("inf")
    assert type(config["agent"]) is dict
    assert type(config["init_from_parts"]) is list
    assert "hydra" not in config
    assert "experiment" not in config


def test_agents_preset_gives_way_to_the_command_line() -> None:
    sac = composed(["agent=sac"], "train")
    assert (sac["network"]["trunk"]["width"], sac["value_norm"]["name"]) == (400, "none")
    chosen = composed(["agent=sac", "network=mlp", "value_norm=popart"], "train")
    assert (chosen["network"]["trunk"]["width"], chosen["value_norm"]["name"]) == (256, "popart")


def test_later_arguments_win() -> None:
    assert composed(["seed=1", "seed=2"], "train")["seed"] == 2


@pytest.mark.parametrize("argument", ["seed", "=", "seed=[", "a b"])
def test_unreadable(argument: str) -> None:
    with pytest.raises(UserError) as caught:
        composed([argument], "train")
    assert "\n" not in str(caught.value)


@pytest.fixture
def stored() -> dict[str, Any]:
    return composed(["env=toy_reach", "total_steps=100"], "train")


def test_resumed_changes_what_may_change(stored: dict[str, Any]) -> None:
    given = ["total_steps=200", "eval.every=7", "checkpoint.keep=5", "log.wandb=true", "device=cpu"]
    config = resumed(stored, parse(given), ["resume"])
    assert (config["total_steps"], config["eval"]["every"], config["checkpoint"]["keep"]) == (200, 7, 5)
    assert config["log"]["wandb"] is True
    assert config["resume"] is None
    assert stored["total_steps"] == 100, "the original is left alone"
    unchanged = {key: value for key, value in stored.items() if key not in ("total_steps", "eval", "checkpoint", "log")}
    assert {key: config[key] for key in unchanged} == unchanged


@pytest.mark.parametrize(
    "argument", ["seed=2", "agent=sac", "agent.gamma=1", "env.num_envs=8", "run_dir=y", "init_from=y"]
)
def test_resumed_refuses_another_run(stored: dict[str, Any], argument: str) -> None:
    key = argument.split("=")[0]
    refused = pytest.raises(
        UserError, match=rf"{key} cannot be changed when a run is resumed \(only total_steps, total_updates, device"
    )
    with refused:
        resumed(stored, parse([argument]))
    with refused:
        resumed(stored, [], ["resume", key])


def test_resumed_names_the_valid_keys(stored: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"Unknown key 'eval.evry'. Did you mean 'eval.every'\? Valid: eval.every, eval.ep"
    ):
        resumed(stored, parse(["eval.evry=3"]))


def test_plain_values_survive_a_file(stored: dict[str, Any], tmp_path: Path) -> None:
    config = train_config({**stored, "agent": {**stored["agent"], "clip_range": float("inf"), "gamma": 1e-9}})
    save_yaml(tmp_path / "config.yaml", config.plain())
    assert train_config(load_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "a\\\\${b", "\\${x}}", "$${", "1e9", "null", "~", "a\nb: c", "%é'\"=["]
)
def test_text_survives_a_file(stored: dict[str, Any], tmp_path: Path, text: str) -> None:
    """A path of the user's may hold anything; it is no interpolation and no number."""
    config = train_config({**stored, "run_dir": text, "env": {**stored["env"], "ids": [text, 1, None]}})
    save_yaml(tmp_path / "config.yaml", config.plain())
    assert train_config(load_yaml(tmp_path / "config.yaml")) == config


def test_text_survives_a_resume(stored: dict[str, Any]) -> None:
    assert resumed({**stored, "run_dir": "${oc.env:HOME}"}, parse(["total_steps=200"]))["run_dir"] == "${oc.env:HOME}"


@pytest.mark.parametrize("value", ["${nothing}", "${oc.env:NO_SUCH_VARIABLE}"])
def test_bad_interpolation_on_resume(stored: dict[str, Any], value: str) -> None:
    with pytest.raises(UserError) as caught:
        resumed(stored, parse([f"device={value}"]))
    assert "\n" not in str(caught.value)


def test_paths_are_taken_as_they_are() -> None:
    odd = "a=b c'd\"e~f%g,h[i${j}é\n"
    arguments = [f"run_dir={odd}", "seed=3", "+resume=1,2", "init_from=null", "run_dir", "out=x"]
    others, paths = split_paths(arguments, ("run_dir", "resume", "init_from"))
    assert others == ["seed=3", "run_dir", "out=x"]
    assert paths == {"run_dir": odd, "resume": "1,2", "init_from": None}


@pytest.mark.parametrize("values", ["1,2", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)", "shuffle(1,2)"])
def test_several_values_outside_of_a_sweep(values: str) -> None:
    with pytest.raises(
        UserError, match=rf"aggregation={re.escape(values)} stands for several values, which only a sweep"
    ):
        parse([f"aggregation={values}"])


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "a: ${b}", "\x00"])
def test_unreadable_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["missing", "file"])
def test_no_run_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"No config\.yaml in {tmp_path / place}: it is not a run folder"):
        load_yaml(tmp_path / place / "config.yaml")


def test_train_config_rejects_unknown_and_missing(stored: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Did you mean 'seed'"):
        train_config({**stored, "sed": 1})
    with pytest.raises(UserError, match="needs a value for: seed"):
        train_config({key: value for key, value in stored.items() if key != "seed"})


def test_a_stored_configuration_reads_no_environment_variable(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\ndevice: ${oc.env:HOME}\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: .*the interpolation .* in line 2"):
        load_yaml(tmp_path / "config.yaml")
