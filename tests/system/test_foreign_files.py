"""Files of runs and policies, damaged or made by a stranger: they work, or one line says what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mtrl
from mtrl.config import load_train_yaml, load_yaml, save_yaml
from mtrl.run.checkpoint.manifest import sealed
from mtrl.run.checkpoint.rotation import newest_valid
from mtrl.run.loop import Loop
from mtrl.types import UserError
from tests.system.commands import evaluate, run, stopped_after, tiny

NEWEST, BEFORE = "000000000480", "000000000320"
CHECKPOINT = f"checkpoints/{NEWEST}"
STATES = ("learner", "data", "run", "metrics", "log_now", "evaluate_now", "save_now", "rng")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs stopped at step 480 of 640, with checkpoints of steps 320 and 480: one of each kind of agent."""
    folder = tmp_path_factory.mktemp("originals")
    for agent, updates in (("ppo", 6), ("sac", 60)):
        with stopped_after(updates):
            assert run(*tiny(agent), "weighting=gradnorm", "aggregation=pcgrad", f"run_dir={folder / agent}") == 143
        assert sorted(path.name for path in (folder / agent / "checkpoints").glob("0*")) == [BEFORE, NEWEST]
    return folder


@pytest.fixture
def original(originals: Path) -> Path:
    return originals / "ppo"


def outcome(command: Callable[[], Any], hint: str = "") -> str:
    """What a command printed; it worked, or ended with one line which has `hint` in it. Anything else fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command()
        except UserError as error:  # of a function
            print(f"error: {error}", file=err)
            code = 2
    if code == 2:
        (line,) = err.getvalue().splitlines()
        assert line.startswith("error: "), line
        assert hint in line, (hint, line)
        assert len(line) < 2000, line
        return line
    assert code == 0 or not isinstance(code, int), (code, err.getvalue())
    return out.getvalue()


def resume(run_dir: Path, hint: str = "") -> str:
    """The outcome of resuming a run for one iteration, without what comes after."""
    return train(f"resume={run_dir}", hint=hint)


def train(*arguments: str, hint: str = "") -> str:
    """The outcome of one iteration of training."""

    def once(loop: Loop, checkpointer: Any) -> None:
        loop._train()
        loop._log()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run", once)
        patch.setattr("mtrl.train.show", lambda result: None)
        return outcome(lambda: run(*arguments), hint)


def reseal(folder: Path) -> None:
    """Gives a tampered policy and its checkpoint checksums that are right, as a stranger could."""
    policy = folder if (folder / "config.json").is_file() else folder / "policy"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        document = json.loads((policy / "config.json").read_text())
        document.pop("sha256", None)
        (policy / "config.json").write_text(json.dumps(sealed(document)))
    if (folder / "manifest.json").exists():
        files = {
            path.relative_to(folder).as_posix(): {
                "size": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in folder.rglob("*")
            if path.is_file() and path.name != "manifest.json"
        }
        (folder / "manifest.json").write_text(json.dumps(sealed({"step": int(folder.name), "files": files})))


# ---------------------------------------------------------------------------------------------------------------------
# Damage to a file as a whole
# ---------------------------------------------------------------------------------------------------------------------


def _flip(path: Path, elsewhere: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _folder(path: Path, elsewhere: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, elsewhere: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, elsewhere: Path) -> None:
    """To the same content, outside of the folder."""
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / f"{len(list(elsewhere.iterdir()))}"
    path.rename(target)
    path.symlink_to(target)


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "truncated": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path, _: os.truncate(path, 0),
    "flipped": _flip,
    "missing": lambda path, _: path.unlink(),
    "folder": _folder,
    "pipe": _pipe,
    "link": _link,
    "not UTF-8": lambda path, _: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "NUL": lambda path, _: path.write_bytes(path.read_bytes()[:20] + b"\0" + path.read_bytes()[20:]),
    "deep": lambda path, _: path.write_text("[" * 100_000 + "]" * 100_000),
    "a long number": lambda path, _: path.write_text("9" * 5000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_policy(original: Path, tmp_path: Path, damage: str) -> None:
    for file in ("config.json", "model.safetensors"):
        policy = tmp_path / file
        shutil.copytree(original / CHECKPOINT / "policy", policy)
        DAMAGES[damage](policy / file, tmp_path / "elsewhere")
        line = outcome(lambda policy=policy: mtrl.load_policy(policy), file if damage != "missing" else "")
        assert line.startswith("error: "), (file, damage)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint(original: Path, tmp_path: Path, damage: str) -> None:
    folder = original / CHECKPOINT
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) == 5 + 2 * len(STATES)
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(original / "checkpoints", copy, symlinks=True)
        DAMAGES[damage](copy / NEWEST / file, tmp_path / "elsewhere")
        lines: list[str] = []
        assert newest_valid(copy, lines.append).name == BEFORE
        (line,) = lines
        assert f"{NEWEST} is damaged: {file}: " in line
        assert "\n" not in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_configuration(original: Path, tmp_path: Path, damage: str) -> None:
    shutil.copy(original / "config.yaml", tmp_path)
    DAMAGES[damage](tmp_path / "config.yaml", tmp_path.with_name("elsewhere"))
    line = outcome(lambda: load_train_yaml(tmp_path / "config.yaml"), "config.yaml")
    assert line.startswith("error: ") or damage == "flipped"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_logs(original: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(original, copy, symlinks=True)
    for file in ("metrics.jsonl", "env.txt", "eval/000000000320.json"):
        DAMAGES[damage](copy / file, tmp_path / "elsewhere")
    (copy / "eval" / "notes.json").write_text("{}")
    (copy / "eval" / "²³.json").write_text("{}")
    resume(copy, "metrics.jsonl")


def test_pointers_and_folders_that_lead_outside(original: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(original, other, symlinks=True)
    for number, name in enumerate(("checkpoints", "eval", CHECKPOINT, f"{CHECKPOINT}/training_state/learner")):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy, symlinks=True)
        shutil.rmtree(copy / name)
        (copy / name).symlink_to(other / name)
        assert "leads outside of" in resume(copy)
    (copy / "checkpoints" / "last").unlink()
    (copy / "checkpoints" / "last").symlink_to(other / "checkpoints" / NEWEST)
    assert "leads outside of" in outcome(lambda: mtrl.load_policy(copy / "checkpoints" / "last"))
    assert (other / "eval" / "000000000320.json").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole, with checksums that are right, and hold something else
# ---------------------------------------------------------------------------------------------------------------------

WRONG = [None, True, -1, 10**30, 1e300, 0.5, "text", "\0", "../x", "${oc.env:HOME}", [], {}, [[1]], {"a": {"b": 1}}]


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything in a document but the document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """A copy in which what is at a path is replaced or removed, or has a neighbour that nobody knows."""
    document = json.loads(json.dumps(document))
    node = document
    for key in path[:-1]:
        node = node[key]
    if how == "removed":
        del node[path[-1]]
    elif how == "added" and isinstance(node, dict):
        node["foreign"] = value
    else:
        node[path[-1]] = value
    return document


def changes(document: Any, name: str, most: int) -> Iterator[tuple[str, Any]]:
    """Some changes, the same every time: what was done, and the document."""
    chance = random.Random(name)
    every = [(path, how) for path in paths(document) for how in ("replaced", "replaced", "removed", "added")]
    for path, how in chance.sample(every, min(most, len(every))):
        value = chance.choice(WRONG)
        yield f"{'/'.join(map(str, path))} {how} {value!r}", changed(document, path, how, value)


def tampered_tensors(tensors: dict[str, torch.Tensor], name: str, most: int) -> Iterator[tuple[str, Any]]:
    """Some changes of a safetensors file: what was done, and the tensors."""
    chance = random.Random(name)
    how: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "another dtype": lambda x: x.to(torch.float16 if x.dtype != torch.float16 else torch.int32),
        "a row more": lambda x: torch.cat([x, x[:1]]) if x.ndim else x[None],
        "flat": lambda x: x.reshape(1, -1),
        "empty": lambda x: x.reshape(-1)[:0],
        "NaN": lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else torch.full_like(x, 77),
        "missing": lambda x: None,
    }
    every = [(tensor, kind) for tensor in sorted(tensors) for kind in how]
    for tensor, kind in chance.sample(every, min(most, len(every))):
        new = {**tensors, tensor: how[kind](tensors[tensor])}
        yield f"{tensor}: {kind}", {key: value for key, value in new.items() if value is not None}


def test_tampered_policy(original: Path, tmp_path: Path) -> None:
    policy = original / CHECKPOINT / "policy"
    document, tensors = json.loads((policy / "config.json").read_text()), load_file(policy / "model.safetensors")
    for number, (what, new) in enumerate(changes(document, "policy", 300)):
        copy = tmp_path / f"json{number}"
        shutil.copytree(policy, copy)
        (copy / "config.json").write_text(json.dumps(new))
        reseal(copy)
        print(what, outcome(lambda copy=copy: mtrl.load_policy(copy)))
    for number, (what, new) in enumerate(tampered_tensors(tensors, "policy", 100)):
        copy = tmp_path / f"tensors{number}"
        shutil.copytree(policy, copy)
        save_file(new, copy / "model.safetensors")
        document = json.loads((copy / "config.json").read_text())
        del document["weights"], document["sha256"]  # as in policies without checksums
        (copy / "config.json").write_text(json.dumps(document))
        line = outcome(lambda copy=copy: mtrl.load_policy(copy), "model.safetensors")
        assert "77" in what or line.startswith("error: "), what


@pytest.mark.parametrize("agent", ["ppo", "sac"])
@pytest.mark.parametrize("state", STATES)
def test_tampered_state(originals: Path, tmp_path: Path, agent: str, state: str) -> None:
    folder = originals / agent / CHECKPOINT / "training_state" / state
    document, tensors = json.loads((folder / "state.json").read_text()), load_file(folder / "state.safetensors")
    most = MOST if state in ("learner", "data", "rng") else 3
    every = [(what, new, tensors) for what, new in changes(document, agent + state, most)]
    every += [(what, document, new) for what, new in tampered_tensors(tensors, agent + state, most)]
    for number, (what, json_, tensors_) in enumerate(every):
        copy = tmp_path / str(number)
        shutil.copytree(originals / agent, copy, symlinks=True)
        target = copy / CHECKPOINT / "training_state" / state
        (target / "state.json").write_text(json.dumps(json_))
        save_file(tensors_, target / "state.safetensors")
        reseal(copy / CHECKPOINT)
        print(what)
        found = resume(copy)
        print(found)
        assert (
            f"at step {int(NEWEST)}." in found
            or (
                f"at step {int(BEFORE)}." in found and f"{state}/state." in found and "Using the one before it" in found
            )
            or "NaN or infinite" in found
        )


def test_tampered_manifest(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "checkpoints", tmp_path / "run", symlinks=True)
    folder = tmp_path / "run" / NEWEST
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    for what, new in changes(manifest, "manifest", 300):
        (folder / "manifest.json").write_text(json.dumps(sealed(new)))
        lines: list[str] = []
        found = newest_valid(tmp_path / "run", lines.append).name
        assert found == NEWEST or (found == BEFORE and "is damaged: " in lines[0] and "\n" not in lines[0]), what
    for name in ("../../../config.yaml", "/etc/hostname", "policy/../../x", "a\0b", "policy\n", "x" * 9000):
        (folder / "manifest.json").write_text(
            json.dumps(sealed({**manifest, "files": {name: {"size": 1, "sha256": ""}}}))
        )
        lines = []
        assert newest_valid(tmp_path / "run", lines.append).name == BEFORE
        assert "\n" not in lines[0]


def test_tampered_configuration(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(original, copy, symlinks=True)
    values = load_train_yaml(copy / "config.yaml").plain()
    for what, new in changes(values, "config", MOST):
        (copy / "config.yaml").write_text(yaml.safe_dump(new))
        print(what)
        print(resume(copy))


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("network.trunk.width", 10**9, "network.trunk.width: 1000000000 is too large for weights of "),
        (
            "network.trunk.width",
            64,
            "policy.trunk.input.weight: expected float32 (64, 2), found float32 (16, 2)",
        ),
        ("network.trunk.depth", 10**12, "network.trunk.depth: 1000000000000 is too large for weights of"),
        ("network.trunk.depth", 9999, "it describes far more parameters than there are"),
        ("env.num_envs", 4 * 10**9, "expected 4,000,000,000 slots, found 8"),
        ("data.slots_per_task", 3, ""),
    ],
)
def test_sizes_are_compared_before_memory_is_taken(
    original: Path, tmp_path: Path, setting: str, value: int, expected: str
) -> None:
    """The configuration is the one that the checkpoints say they were made with."""
    copy = tmp_path / "run"
    shutil.copytree(original, copy, symlinks=True)
    values = load_train_yaml(copy / "config.yaml").plain()
    *groups, last = setting.split(".")
    node = values
    for group in groups:
        node = node[group]
    node[last] = value
    save_yaml(copy / "config.yaml", values)
    line = resume(copy)
    assert f"{setting}: expected " in line
    for step in (NEWEST, BEFORE):
        shutil.rmtree(copy / "checkpoints" / step / "settings")  # as in checkpoints of earlier versions
        reseal(copy / "checkpoints" / step)
    line = resume(copy)
    if setting == "data.slots_per_task":  # env.num_envs counts
        assert "at step 480" in line
    else:
        assert expected in line
        assert str(copy / "config.yaml") in line


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 10**9), ("width", 17), ("width", -1), ("depth", 10**12), ("depth", 9999)]
)
def test_sizes_of_a_policy(original: Path, tmp_path: Path, setting: str, value: int) -> None:
    shutil.copytree(original / CHECKPOINT / "policy", tmp_path / "policy")
    document = json.loads((tmp_path / "policy" / "config.json").read_text())
    document["network"]["trunk"][setting] = value
    (tmp_path / "policy" / "config.json").write_text(json.dumps(document))
    assert "its content was altered" in outcome(lambda: mtrl.load_policy(tmp_path / "policy"))
    reseal(tmp_path / "policy")
    line = outcome(lambda: mtrl.load_policy(tmp_path / "policy"))
    assert re.search("too large for weights|expected float32|far more parameters|width must be positive", line)


def test_policies_without_checksums_load(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / CHECKPOINT / "policy", tmp_path / "policy")
    document = json.loads((tmp_path / "policy" / "config.json").read_text())
    del document["weights"], document["sha256"]
    (tmp_path / "policy" / "config.json").write_text(json.dumps(document))
    assert mtrl.load_policy(tmp_path / "policy").spec.num_tasks == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: ${oc.env:HOME}", "expected a value, found the interpolation '${oc.env:HOME}' in line 1"),
        ("a: 1\nenv: {name: 'x${oc.decode:${oc.env:HOME}}'}", "found the interpolation"),
        ("a: &x [1, 2]\nb: *x", "expected a value, found the alias *x in line 2"),
        ("env: {5: 1}", "env: a key must be text, not 5"),
        ("7: 1", "the settings: a key must be text, not 7"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: ???", "Missing mandatory value"),
    ],
)
def test_a_stored_configuration_is_values_only(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    line = outcome(lambda: load_yaml(tmp_path / "config.yaml"), "config.yaml")
    assert expected in line
    assert os.environ["HOME"] not in line


def test_tampered_run_in_evaluation(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(original, copy, symlinks=True)
    values = load_train_yaml(copy / "config.yaml").plain()
    values["env"].pop("history", None)  # whose type beartype checks in tests before `make` does
    for key in ("env", "seed", "eval", "env.name", "env.num_envs", "eval.episodes_per_task"):
        for what, new in changes({key: values[key.split(".")[0]]}, f"evaluate {key}", MOST):
            (copy / "config.yaml").write_text(yaml.safe_dump({**values, **new}))
            print(what)
            print(outcome(lambda: evaluate(f"run={copy}")))


def test_tampered_source_of_weights(originals: Path, tmp_path: Path) -> None:
    folder = originals / "ppo" / CHECKPOINT / "training_state" / "learner"
    document, tensors = json.loads((folder / "state.json").read_text()), load_file(folder / "state.safetensors")
    document["steps"] = {}  # of which nothing is taken
    every = [(what, new, tensors) for what, new in changes(document, "init_from", MOST)]
    every += [(what, document, new) for what, new in tampered_tensors(tensors, "init_from", MOST)]
    for number, (what, json_, tensors_) in enumerate(every):
        copy = tmp_path / f"source{number}"
        shutil.copytree(originals / "ppo", copy, symlinks=True)
        (copy / CHECKPOINT / "training_state" / "learner" / "state.json").write_text(json.dumps(json_))
        save_file(tensors_, copy / CHECKPOINT / "training_state" / "learner" / "state.safetensors")
        reseal(copy / CHECKPOINT)
        print(what)
        print(train(*tiny(), f"init_from={copy}", f"run_dir={tmp_path / str(number)}"))


MOST = 12
"""Changes of each file, of all those that can be made."""
