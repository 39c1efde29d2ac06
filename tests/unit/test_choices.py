"""Choosing components: by any registered name or preset, in place of what was chosen before, with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtrl import registry
from mtrl.config import GROUPS, KINDS, checked, composed, options, registered, split_folders, train_config
from mtrl.registry import names, register
from mtrl.types import UserError


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A component called `mine` of each kind, without a file, gone afterwards."""
    for group in GROUPS:
        registered(group)
    monkeypatch.setattr(registry, "_components", {kind: dict(known) for kind, known in registry._components.items()})
    for kind in (*(KINDS.get(group, group) for group in GROUPS), "optimizer"):
        register(kind, "mine")(dict)


def chosen(group: str, name: str) -> dict[str, Any]:
    return {"trunk": {"name": name}, "head": "per_task"} if group == "network" else {"name": name}


@pytest.mark.parametrize("group", GROUPS)
def test_a_registered_name_is_a_choice_without_a_file(mine: None, group: str) -> None:
    assert composed([f"{group}=mine"], "train")[group] == chosen(group, "mine")
    several = [f"{group}=mine,{options(group)[0]}", f"{group}=glob(min*)"]
    assert checked(several, "train", sweep=True) == [several[0], f"{group}=mine"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_registered_name_is_a_choice(group: str) -> None:
    for name in names(KINDS.get(group, group)):
        assert name in options(group)
        node = composed([f"{group}={name}"], "train")[group]
        assert (node["trunk"] if group == "network" else node)["name"]


def test_unknown_names_list_files_and_components(mine: None) -> None:
    message = (
        r"Unknown weighting 'mime'. Did you mean 'mine'\? Valid: alpha_softmax, dwa, .*, mine, uncertainty, uniform"
    )
    for key in ("weighting", "weighting.name"):
        with pytest.raises(UserError, match=message):
            composed([f"{key}=mime"], "train")


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "network"])
def test_a_name_replaces_its_group(mine: None, group: str) -> None:
    """With the options on the same command line, wherever they stand."""
    assert composed([f"{group}.name=mine"], "train")[group] == {"name": "mine"}
    given = [f"{group}.a=1", f"{group}.name=mine", f"{group}.b=2"]
    assert composed(given, "train")[group] == {"name": "mine", "a": 1, "b": 2}


def test_the_name_of_a_preset_is_that_preset() -> None:
    assert composed(["value_norm.name=popart"], "train")["value_norm"] == {"name": "popart", "beta": 0.1}


@pytest.mark.parametrize("key", ["network.trunk", "agent.optimizer"])
def test_a_name_within_a_group_replaces_its_node(mine: None, key: str) -> None:
    before = composed([], "train")
    config = composed([f"{key}.a=1", f"{key}.name=mine", f"{key}.b=2"], "train")
    group, _, node = key.partition(".")
    assert config[group].pop(node) == {"name": "mine", "a": 1, "b": 2}
    assert {k: v for k, v in config[group].items() if v is not None} == {
        k: v for k, v in before[group].items() if k != node and v is not None
    }


def test_a_trunk_takes_its_options_in_value_networks_with_it(mine: None) -> None:
    """`network.value` holds options of the trunk that was replaced."""
    assert composed(["experiment=mt10_brc"], "train")["network"]["value"] == {"width": 4096, "depth": 2}
    network = train_config(composed(["experiment=mt10_brc", "network.trunk.name=mine"], "train")).network
    assert (network["trunk"], network["value"]) == ({"name": "mine"}, None)
    given = ["experiment=mt10_brc", "network.trunk.name=mine", "network.value={a: 1}"]
    assert composed(given, "train")["network"]["value"] == {"a": 1}


def test_a_choice_replaces_what_an_experiment_says_of_its_own() -> None:
    """mt10_care is `network=care` with 6 experts, mt50_ppo has a width and slots of the default choices."""
    for choice in ("network=mlp", "network.trunk.name=mlp"):
        assert "experts" not in composed(["experiment=mt50_care", choice], "train")["network"]["trunk"]
    network = composed(["experiment=mt50_care", "network=mlp", "network.trunk.width=3"], "train")["network"]
    assert network == composed(["network=mlp", "network.trunk.width=3"], "train")["network"]
    sac = composed(["experiment=mt50_ppo", "agent=sac"], "train")
    assert sac["agent"] == composed(["agent=sac"], "train")["agent"]
    assert (sac["env"]["name"], sac["total_steps"]) == ("mt50", 10_000_000)


@pytest.mark.parametrize("choice", ["network=care", "agent=sac", "weighting=dwa"])
def test_the_choice_of_an_experiment_is_as_the_experiment_says(choice: str) -> None:
    assert composed(["experiment=mt50_care", choice], "train")["network"]["trunk"]["experts"] == 10


def preset(folder: Path, group: str, name: str, text: str) -> Path:
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("name", ["presets", "a, b=[1]", 'it\'s "mine"', "back\\slash\\", '\\"', "é %20 {x}"])
def test_a_folder_of_presets(mine: None, tmp_path: Path, name: str) -> None:
    folder = preset(tmp_path / name, "weighting", "strong", "name: mine\npower: 3\n")
    preset(
        folder,
        "experiment",
        "all_mine",
        "# @package _global_\ndefaults:\n  - override /weighting: strong\n  - override /network: mine\nseed: 5\n",
    )
    others, folders = split_folders(["seed=1", "--config-dir", str(folder), "-m"])
    assert (others, folders) == (["seed=1", "-m"], [folder])
    assert split_folders([f"--config-dir={folder}"]) == ([], [folder])
    assert composed(["weighting=strong"], "train", folders)["weighting"] == {"name": "mine", "power": 3}
    config = composed(["experiment=all_mine"], "train", folders)
    assert (config["weighting"]["power"], config["network"], config["seed"]) == (3, chosen("network", "mine"), 5)
    assert composed(["experiment=all_mine", "weighting=mine"], "train", folders)["weighting"] == {"name": "mine"}


def test_a_preset_of_a_components_name(mine: None, tmp_path: Path) -> None:
    """The file says what the name means, whether or not the component was chosen before; ours keep their meaning."""
    assert composed(["weighting=mine"], "train")["weighting"] == {"name": "mine"}
    folder = preset(tmp_path, "weighting", "mine", "name: dwa\n")
    assert composed(["weighting=mine"], "train", [folder])["weighting"] == {"name": "dwa"}
    assert composed(["weighting=mine"], "train")["weighting"] == {"name": "mine"}
    preset(tmp_path, "weighting", "dwa", "name: mine\n")
    with pytest.raises(UserError, match=r"weighting/dwa.yaml has the name of .*weighting/dwa.yaml: give it another"):
        composed(["weighting=mine"], "train", [folder])


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(UserError, match=r"weighting=glob\(x\*\) matches no weighting\. Valid: alpha_softmax"):
        checked(["weighting=glob(x*)"], "train", sweep=True)


@pytest.mark.parametrize("arguments", [["--config-dir"], ["--config-dir="], ["-cd"]])
def test_no_folder_of_presets(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="needs a folder of presets"):
        split_folders(arguments)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"No folder nowhere: expected one of presets, nowhere/<group>/<name>\.yaml"):
        composed([], "train", [Path("nowhere")])


@pytest.mark.parametrize("key", ["hydra/launcher", "hydra/sweeper"])
def test_hydras_own_groups_are_left_to_hydra(key: str) -> None:
    assert composed([f"{key}=basic"], "train") == composed([], "train")
    with pytest.raises(UserError, match=f"Could not find '{key}/nope'"):
        composed([f"{key}=nope"], "train")
    assert checked([f"{key}=nope"], "train", sweep=True) == [f"{key}=nope"]


def test_a_preset_that_is_no_yaml(tmp_path: Path) -> None:
    folder = preset(tmp_path, "network", "broken", "trunk: {name: [mlp}\n")
    with pytest.raises(UserError, match=r"A preset is not valid YAML: .*broken\.yaml"):
        composed(["network=broken"], "train", [folder])


def test_presets_of_distillation_take_another_teacher() -> None:
    """With another name the path of the preset's teacher is dropped."""
    values = composed(
        ["distill=kickstart", "aux_losses.teacher.teacher.path=runs/a", "aux_losses.teacher.loss.name=nll"], "train"
    )
    assert values["aux_losses"]["teacher"]["teacher"] == {"name": "policy", "path": "runs/a"}
    assert values["aux_losses"]["teacher"]["loss"] == {"name": "nll"}
    values = composed(["distill=annealing", "aux_losses.teacher.teacher.name=scripted"], "train")
    assert values["aux_losses"]["teacher"]["teacher"] == {"name": "scripted"}
