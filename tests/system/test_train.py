"""The main command: what a run leaves behind, and that everything which can be chosen runs."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

import mtrl.compare
import mtrl.evaluate
import mtrl.plot
import mtrl.report.__main__
import mtrl.sweep.__main__
import mtrl.train
from mtrl.config import GROUPS, TrainConfig, composed, load_yaml, options, train_config
from mtrl.registry import names
from mtrl.run.folder import environment_description
from tests.system.commands import ON_POLICY, TINY, evaluations, only_run, rows, run, start, the_error, tiny

TASKS = [f"reach-{i}" for i in range(4)]


def test_run_folder(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*tiny(), "log.tensorboard=true", f"run_dir={run_dir}", "seed=3") == 0
    assert {path.name for path in run_dir.iterdir()} == {
        "config.yaml", "env.txt", "metrics.jsonl", "tensorboard", "eval", "checkpoints",
    }  # fmt: skip
    config = load_yaml(run_dir / "config.yaml")
    assert config["seed"] == 3
    assert config["env"] == {"name": "toy_reach", "num_envs": 8, "history": 0}
    assert train_config(config).plain() == config
    assert "torch: " in (run_dir / "env.txt").read_text()
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (run_dir / "eval").iterdir()) == ["000000000320.json", "000000000640.json"]

    checkpoints = run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["000000000480", "000000000640", "last"]
    assert (checkpoints / "last").readlink() == Path("000000000640")
    assert (checkpoints / "last" / "training_state").is_dir()
    policy = checkpoints / "last" / "policy"
    assert {path.name for path in policy.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((policy / "config.json").read_text())["spec"]["task_names"] == TASKS
    assert load_file(policy / "model.safetensors")

    out = capsys.readouterr().out
    assert all(f"\n{task} " in out for task in TASKS), "a table of success per task at the end"
    assert "steps/s" in out
    assert "Peak memory" in out
    assert str(run_dir) in out


@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_switches_can_be_changed_on_resume(run_dir: Path, agent: str) -> None:
    """The state is the same with and without."""
    assert run(*tiny(agent, total_steps=160), "precision=bfloat16", f"run_dir={run_dir}") == 0
    assert run(f"resume={run_dir}", "precision=float32", "total_steps=240") == 0
    assert rows(run_dir)[-1]["step"] == 240


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_compiled_run(run_dir: Path, agent: str) -> None:
    """In a process of its own: the checks of shapes that tests add do not compile."""
    command = [sys.executable, "-m", "mtrl.train", *tiny(agent), "compile=true", "precision=bfloat16"]
    subprocess.run([*command, f"run_dir={run_dir}"], check=True, timeout=500)
    assert rows(run_dir)[-1]["step"] == 640


def test_metric_names(run_dir: Path) -> None:
    assert run(*tiny(), f"run_dir={run_dir}") == 0
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in found if "train/policy_loss/reach-0" in row]
    evaluation = [row for row in found if "eval/success_rate" in row]
    assert [row["step"] for row in training] == list(range(80, 641, 80))
    assert [row["step"] for row in evaluation] == [320, 640]
    names = set(training[-1])
    assert {f"train/{kind}/{task}" for kind in ("policy_loss", "value_loss", "entropy") for task in TASKS} <= names
    assert {"train/return_mean", "train/success_rate_mean", "grad/policy_norm"} <= names
    assert {"time/env_steps_per_s", "time/wall_s", "time/updates", "time/env_s", "time/update_s"} <= names
    assert {f"eval/{kind}/{task}" for kind in ("success_rate", "return") for task in TASKS} <= set(evaluation[0])
    assert all(name.split("/")[0] in ("step", "train", "eval", "time", "grad") for row in found for name in row)


def test_the_last_steps_are_logged_too(run_dir: Path) -> None:
    assert run(*tiny(), f"run_dir={run_dir}", "log.every=500", "eval.every=0", "checkpoint.every=0") == 0
    assert [row["step"] for row in rows(run_dir)] == [560, 640, 640]


@pytest.mark.parametrize(
    ("agent", "env"), [("ppo", "toy_grid"), ("impala", "toy_reach"), ("impala", "toy_grid"), ("sac", "toy_reach")]
)
def test_agents(run_dir: Path, agent: str, env: str) -> None:
    assert run(*tiny(agent, env, total_steps=320), f"run_dir={run_dir}") == 0
    (found,) = evaluations(run_dir).values()
    assert len(found[0]["tasks"]) == 4
    assert any("train/entropy" in name for row in rows(run_dir) for name in row)


@pytest.mark.parametrize("env", ["toy_scale", "counting"])
def test_other_toys(run_dir: Path, env: str) -> None:
    assert run(*tiny(env=env, num_envs=12, total_steps=240), f"run_dir={run_dir}") == 0


def test_tasks_of_which_some_report_success(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One with every step, one with the last only, one never: two succeed always, and the third is not counted."""
    always, at_end, silent = ids = [f"tests.system.success_envs:{name}-v0" for name in ("Always", "AtEnd", "Silent")]
    command = [*tiny(env="gym", num_envs=6, total_steps=480), f"env.ids=[{','.join(ids)}]", "env.num_workers=2"]
    for option in ("weighting=focal", "weighting=implicit_schedule", "task_sampling=learning_progress"):
        assert run(*command, option) == 2
        assert f"no success is reported by {silent}" in the_error(capsys)

    assert run(*command, f"run_dir={run_dir}") == 0
    names = set().union(*rows(run_dir))
    for group in ("train", "eval"):
        assert {f"{group}/success_rate/{task}" for task in (always, at_end)} <= names
        assert f"{group}/success_rate/{silent}" not in names
        assert f"{group}/return/{silent}" in names
    assert not {"train/return_mean", "eval/return"} & names
    last = {name: value for row in rows(run_dir) for name, value in row.items()}
    assert last["train/success_rate_mean"] == last["eval/success_rate"] == 1
    (*_, evaluation) = (json.loads(path.read_text()) for path in sorted((run_dir / "eval").iterdir()))
    assert evaluation["episodes"][silent]["success"] == [None, None]
    assert evaluation["protocol"]["success"] == f"at any step, not reported by {silent}"
    out = capsys.readouterr().out
    assert re.search(rf" success 1\.00 .* {always} 1\.00 {at_end} 1\.00 {silent} -- ", " ".join(out.split()))
    assert re.search(r"evaluation success 1\.000\n", out)
    assert re.search(rf"\n{silent} +-- +12\.0 ", out)
    assert re.search(r"\nmean +1\.000\n", out)


def test_gym_of_mixed_sizes_without_success(run_dir: Path) -> None:
    ids = "env.ids=[Pendulum-v1,MountainCarContinuous-v0]"
    command = [*tiny(env="gym", num_envs=2, total_steps=40), ids, "env.num_workers=0"]
    assert run(*command, "eval.every=0", "eval.episodes_per_task=1", f"run_dir={run_dir}") == 0
    assert not any(name.startswith("train/success_rate") for row in rows(run_dir) for name in row)


NEEDED = {
    "alpha_softmax": ("sac", []),
    "context": ("ppo", ["env.history=2"]),
    "replay": ("sac", []),
    "branched": (
        "ppo",
        [
            "network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]",
            "network.trunk.each.width=16",
            "network.trunk.stem.width=16",
        ],
    ),
    "grouped": ("ppo", ["network.trunk.groups=[[reach-0,reach-2],[reach-1,reach-3]]", "network.trunk.each.width=16"]),
}
"""Options that need another agent or setting."""


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in GROUPS
        if group not in ("env", "agent", "torso")
        for option in options(group)
        if option != "dagger"  # needs a teacher: see test_distill
    ],
)
def test_every_option_trains(run_dir: Path, group: str, option: str) -> None:
    if option == "torchjd":
        pytest.importorskip("quadprog")
    agent, settings = NEEDED.get(option, ("ppo", []))
    of_run = tiny(agent, total_steps=80)
    if option in ("linear", "none", "grouped", "branched") and group == "network":  # has no hidden layers of its own
        of_run = [argument for argument in of_run if not argument.startswith("network.trunk")]
    command = [*of_run, f"{group}={option}", *settings, f"run_dir={run_dir}", "eval.every=0"]
    has_no_vectors = option == "language"  # of toys; see test_metaworld
    assert run(*command, "eval.episodes_per_task=1") == (2 if has_no_vectors else 0)


def test_diagnostics_of_the_gradients(run_dir: Path) -> None:
    assert run(*tiny(total_steps=80), "aggregation=pcgrad", "weighting=dwa", f"run_dir={run_dir}", "eval.every=0") == 0
    (row,) = (row for row in rows(run_dir) if "grad/policy_norm" in row)
    for network in ("policy", "value"):
        assert -1 <= row[f"grad/{network}_cosine_mean"] <= 1
        assert 0 <= row[f"grad/{network}_conflict_rate"] <= 1
        assert [row[f"grad/{network}_cosine"][i][i] for i in range(4)] == [1.0] * 4
        assert all(row[f"grad/{network}_task_norm/{task}"] > 0 for task in TASKS)
        assert all(row[f"grad/{network}_task_weight/{task}"] == pytest.approx(1) for task in TASKS)


@pytest.mark.parametrize("head", ["shared", "per_task"])
@pytest.mark.parametrize("value_norm", ["none", "popart"])
def test_sac_with_every_head_and_scale(run_dir: Path, head: str, value_norm: str) -> None:
    code = run(*tiny("sac", total_steps=160), f"network.head={head}", f"value_norm={value_norm}", f"run_dir={run_dir}")
    assert code == (2 if (head, value_norm) == ("shared", "popart") else 0)


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in (*GROUPS, "experiment") for option in options(group)]
)
def test_every_choice_is_valid(group: str, option: str) -> None:
    config = train_config(composed([f"{group}={option}"], "train"))
    assert group == "experiment" or vars(config)[group]


def test_experiment_sets_the_published_values() -> None:
    config = train_config(composed(["+experiment=mt10_sac", "seed=4"], "train"))
    assert (config.env["name"], config.agent["name"], config.seed) == ("mt10", "sac", 4)
    assert config.network["trunk"]["width"] == 400
    assert config.total_steps == 20_000_000
    assert composed(["experiment=mt10_sac"], "train") == composed(["+experiment=mt10_sac"], "train")


@pytest.mark.parametrize(
    ("name", "tasks", "trunk"),
    [
        ("soft_modules", "mt10", {"width": 256, "depth": 2, "modules": 2, "embedding": 400}),
        ("soft_modules", "mt50", {"width": 256, "depth": 4, "modules": 4, "embedding": 400}),
        ("moore", "mt10", {"width": 400, "depth": 3, "experts": 4}),
        ("moore", "mt50", {"width": 400, "depth": 3, "experts": 6}),
        ("paco", "mt10", {"width": 400, "depth": 3, "sets": 5}),
        ("paco", "mt50", {"width": 400, "depth": 3, "sets": 20}),
        ("mtsac", "mt10", {"width": 400, "depth": 3}),
        ("sac", "mt50", {"width": 400, "depth": 3}),
        ("pcgrad", "mt50", {"width": 400, "depth": 3}),
        ("care", "mt10", {"experts": 6, "embedding": 50}),
        ("care", "mt50", {"experts": 10, "embedding": 50}),
    ],
)
def test_published_baselines(name: str, tasks: str, trunk: dict[str, int]) -> None:
    """On SAC; an experiment's network prevails over the agent's."""
    config = train_config(composed([f"+experiment={tasks}_{name}"], "train"))
    assert (config.env["name"], config.agent["name"], config.data["batch_size"]) == (tasks, "sac", 128)
    mlp = name in ("mtsac", "sac", "pcgrad")
    assert config.network["trunk"].items() >= {"name": "mlp" if mlp else name, **trunk}.items()
    assert config.network["head"] == ("per_task" if name in ("moore", "sac", "pcgrad") else "shared")
    assert config.value_norm["name"] == "none"
    assert config.aggregation["name"] == ("pcgrad" if name == "pcgrad" else "mean")
    assert config.weighting["name"] == ("alpha_softmax" if name == "soft_modules" else "uniform")
    assert config.task_encoder["name"] == ("language" if name == "care" else "one_hot")
    assert config.total_steps == (20_000_000 if tasks == "mt10" else 100_000_000)


@pytest.mark.parametrize(("tasks", "num_tasks"), [("mt10", 10), ("mt50", 50)])
def test_published_value_learning(tasks: str, num_tasks: int) -> None:
    """What overrides the agent's and the value head's own choice of a scale, too."""
    brc, simba, ars = (
        train_config(composed([f"+experiment={tasks}_{name}"], "train")) for name in ("brc", "simba_v2", "ars")
    )
    for config, bound in ((brc, 10.0), (simba, 5.0)):
        assert config.value_norm == {"name": "return_range", "v_max": bound}
        head = config.value_head
        assert (head["name"], head["bins"], head["maximum"], head["symlog"]) == ("hl_gauss", 101, bound, False)
    assert brc.network["trunk"] | brc.network["value"] == {"name": "bronet", "width": 4096, "depth": 2}
    assert simba.network["trunk"] | simba.network["value"] == {"name": "simba_v2", "width": 512, "depth": 2}
    # Two updates with about 1,024 samples for each step of all tasks.
    assert brc.data["batch_size"] * num_tasks == 1000
    assert brc.data["samples_per_insert"] * num_tasks == 2000
    assert (ars.value_norm["name"], ars.resets) == ("mean_reward", 4 if tasks == "mt10" else 6)


def test_the_default_run() -> None:
    config = train_config(composed([], "train"))
    assert (config.env["name"], config.env["num_envs"], config.eval.episodes_per_task) == ("mt10", None, 50)


def test_run_folders_do_not_collide(run_dir: Path) -> None:
    for _ in range(2):
        assert run(*tiny(total_steps=80), "eval.every=0", "eval.episodes_per_task=1") == 0
    assert len(list(run_dir.parent.glob("runs/*_toy_reach_*_seed1*"))) == 2


def test_same_seed_same_run_and_another_seed_another(run_dir: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*tiny(total_steps=160), f"run_dir={name}", f"seed={seed}", "eval.every=0") == 0
    weights = [Path(name, "checkpoints/last/policy/model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    assert rows(Path("a")) == rows(Path("b")) != rows(Path("c"))


def test_environment_description_names_versions() -> None:
    text = environment_description()
    assert "mujoco: 3" in text
    assert "git commit: " in text


# ---------------------------------------------------------------------------------------------------------------------
# As a user starts it
# ---------------------------------------------------------------------------------------------------------------------


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_sweep(tmp_path: Path) -> None:
    command = [*tiny(total_steps=80), "eval.every=0", "eval.episodes_per_task=1"]
    code, _, err = finish(start("-m", "seed=0,1", *command, cwd=tmp_path))
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [path.name for path in runs] == ["000_seed=0", "001_seed=1"]
    assert [load_yaml(path / "config.yaml")["seed"] for path in runs] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing else is left behind"


def test_sweep_in_parallel(tmp_path: Path) -> None:
    """With a job that fails, in Hydra's own launcher for several processes."""
    pytest.importorskip("joblib")
    command = [*tiny(total_steps=80), "eval.every=0", "eval.episodes_per_task=1", "hydra.launcher.n_jobs=2"]
    code, out, _ = finish(start("-m", "task_encoder=one_hot,language", *command, "hydra/launcher=joblib", cwd=tmp_path))
    assert code == 1
    assert "\n1 done, 1 failed.\n" in out
    assert re.search(r"\nfailed +001_task_encoder=language +exit code 2: error: ", out)


def test_cfg(tmp_path: Path) -> None:
    code, text, _ = finish(start("--cfg", "job", "env=toy_grid", "seed=7", cwd=tmp_path))
    assert code == 0
    assert "name: toy_grid" in text
    assert "seed: 7" in text
    assert not list(tmp_path.iterdir())


COMMANDS = [mtrl.train, mtrl.evaluate, mtrl.plot, mtrl.compare, mtrl.report.__main__, mtrl.sweep.__main__]


@pytest.mark.parametrize("command", COMMANDS)
def test_version(capsys: pytest.CaptureFixture[str], command: ModuleType) -> None:
    assert run("--version", command=command) == 0
    assert capsys.readouterr().out == f"mtrl {mtrl.__version__}\n"


def test_presets_of_ones_own(tmp_path: Path) -> None:
    """The folder may have any name, and what is in it can be chosen by name."""
    folder = tmp_path / "my conf=[1]"
    (folder / "aggregation").mkdir(parents=True)
    (folder / "aggregation" / "mine.yaml").write_text("name: sum\n")
    code, text, err = finish(start("--config-dir", folder.name, "--cfg", "job", "aggregation=mine", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert "aggregation:\n  name: sum\n" in text


def test_sweep_over_a_pattern(tmp_path: Path) -> None:
    command = [*tiny(total_steps=80), "eval.every=0", "eval.episodes_per_task=1"]
    code, _, err = finish(start("-m", "aggregation=glob(m*n,exclude=measured*)", *command, cwd=tmp_path))
    assert (code, err) == (0, "")
    (path,) = tmp_path.glob("runs/*/*/config.yaml")
    assert load_yaml(path)["aggregation"] == {"name": "mean"}


def test_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Every key of the run, every option of every group with its settings, and every component's name."""
    assert run("--help") == run("env=mt10", "-h") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert field.name in GROUPS or f"\n  {field.name}:" in text, field.name
    for group in (*GROUPS, "experiment"):
        for option in options(group):
            assert f"\n{group}={option}\n" in text
    assert " or distill, distral, impala, ppo, sac\n" in text
    for kind in (
        "torso",
        "core",
        "trunk",
        "aggregation",
        "weighting",
        "value_norm",
        "task_sampling",
        "head",
        "optimizer",
        "obs_norm",
        "physics",
    ):
        assert all(name in text for name in names(kind))
    assert "agent=sac\n  # Multi-task SAC" in text
    assert "  batch_size: 128 # per task\n" in text
    assert "  # network.trunk.activation=relu (Literal['relu', 'tanh', 'elu', 'silu'])\n" in text
    assert "@package" not in text
    assert "override" not in text


def test_plain_command(tmp_path: Path) -> None:
    code, out, err = finish(start(*tiny(total_steps=80), "log.tensorboard=true", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert str(only_run(tmp_path).relative_to(tmp_path)) in out


@pytest.mark.slow
def test_metaworld(run_dir: Path) -> None:
    small = ["env=mt10", "env.num_envs=20", "env.horizon=20", *ON_POLICY, *TINY, "eval.every=0"]
    small += ["task_encoder=language"]
    assert run(*small, "eval.episodes_per_task=1", "total_steps=400", f"run_dir={run_dir}") == 0
    (found,) = evaluations(run_dir).values()
    assert len(found[0]["tasks"]) == 10


def test_shared_policy_goes_to_other_tasks(tmp_path: Path) -> None:
    """In two columns it is a part of the policy that is saved."""
    before, after = tmp_path / "four", tmp_path / "two"
    assert run(*tiny("two_columns", total_steps=160), f"run_dir={before}") == 0
    transfer = [f"init_from={before}", "init_from_parts=[shared_policy]"]
    assert run(*tiny("two_columns", total_steps=160), "env.num_tasks=2", *transfer, f"run_dir={after}") == 0


def test_trunk_goes_to_another_number_of_tasks(tmp_path: Path) -> None:
    """With the one-hot encoder too: the columns of the tasks stay behind."""
    before, after = tmp_path / "four", tmp_path / "two"
    assert run(*tiny(), f"run_dir={before}") == 0
    transfer = [f"init_from={before}", "init_from_parts=[trunk,obs_norm]"]
    assert run(*tiny(), "env.num_tasks=2", *transfer, f"run_dir={after}") == 0
