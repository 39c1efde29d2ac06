import errno
import json
import math
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtrl.files import write_atomic
from mtrl.run.checkpoint.codec import CheckpointError, load_state, save_state
from mtrl.run.checkpoint.manifest import verify
from mtrl.run.checkpoint.rng import RngStates
from mtrl.run.checkpoint.rotation import Checkpointer, newest_valid
from mtrl.run.checkpoint.transfer import load_parts
from mtrl.types import Ranks, UserError

# --- save_state / load_state ----------------------------------------------------------------------------------------


def assert_same(found, expected):
    """Equal in structure, type and every bit; a tuple is expected to come back as a list."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        bits = (tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for tensor in (found, expected))
        assert next(bits) == next(bits)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert [(type(key), key) for key in found] == [(type(key), key) for key in expected]
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert type(found) is float
        assert (math.isnan(found) and math.isnan(expected)) or struct.pack("d", found) == struct.pack("d", expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


def round_trip(folder, state):
    save_state(folder, state)
    return load_state(folder)


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = (
        (torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 50).abs().to(dtype)
    )
    return tensor.transpose(0, 1) if len(shape) > 1 and draw(st.booleans()) else tensor


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text() | st.sampled_from(["$tensor", "$items", "__metadata__", "a/b", "a"]) | st.integers() | st.none()
states = st.recursive(
    scalars | tensors(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(state=st.dictionaries(st.text(), states, max_size=4))
def test_round_trip(tmp_path_factory, state):
    folder = tmp_path_factory.getbasetemp() / "round_trip"
    assert_same(round_trip(folder, state), state)


def test_names_that_collide(tmp_path):
    state = {
        "a": {"b": torch.tensor(1)},
        "a/b": torch.tensor(2),
        "a/b#1": torch.tensor(3),
        "__metadata__": torch.ones(2),
    }
    state["x"] = {1: torch.tensor(4), "1": torch.tensor(5)}
    assert_same(round_trip(tmp_path, state), state)


def test_shared_and_overlapping_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "again": whole, "row": whole[1], "column": whole[:, 1], "expanded": whole[0].expand(5, 4)}
    found = round_trip(tmp_path, state)
    assert_same(found, state)
    found["whole"].zero_()
    assert found["again"].sum() == 66


def test_parameters_and_optimizer(tmp_path):
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(1e-3))
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "parameter": net.weight}
    found = round_trip(tmp_path, state)
    assert list(found["optimizer"]["state"]) == [0, 1]
    optimizer.load_state_dict(found["optimizer"])
    net.load_state_dict(found["net"])
    assert_same(found["net"], dict(net.state_dict()))
    assert not found["parameter"].requires_grad


def test_no_tensors(tmp_path):
    assert round_trip(tmp_path, {}) == {}


@pytest.mark.parametrize("value", [np.zeros(2), object(), {1, 2}, b"bytes", np.float32(1), torch.float32, 1j])
def test_unsupported_values_are_named(tmp_path, value):
    with pytest.raises(TypeError, match=r"agent/items/1/x: .* not "):
        save_state(tmp_path, {"agent": {"items": [0, {"x": value}]}})


def test_unsupported_tensors_and_keys_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"a/b: a tensor must be dense"):
        save_state(tmp_path, {"a": {"b": torch.eye(2).to_sparse()}})
    with pytest.raises(TypeError, match=r"Cannot save a: its key \(1, 2\) is a tuple"):
        save_state(tmp_path, {"a": {(1, 2): 0}})


# --- Checkpointer ---------------------------------------------------------------------------------------------------


class Counter:
    """A savable whose parts all follow from one number, so that a mixture of two checkpoints is noticed."""

    def __init__(self, value=0, size=8):
        self.value, self.size = value, size

    def state_dict(self):
        return {"value": self.value, "tensor": torch.full((self.size,), self.value)}

    def load_state_dict(self, state):
        assert (state["tensor"] == state["value"]).all()
        self.value = state["value"]


def checkpointer(folder, *, value=0, keep=2, report=None, **savables):
    counter = Counter(value)
    made = Checkpointer(folder, {"counter": counter, **savables}, keep, report or (lambda line: None))
    return made, counter


class OneOf(Ranks):
    """A rank whose turn it is; what the first one does is done in its turn only."""

    size = 2

    def __init__(self, rank, folder):
        self.rank, self.folder = rank, folder

    def gather(self, value):
        return [value, value]

    def first(self, function):
        return function() if self.rank == 0 else self.folder


def test_ranks_restore_their_own(tmp_path):
    """The second one's part is added by hand: in a run, both write before the first one completes the checkpoint."""
    per_rank = {0: Counter(10), 1: Counter(11)}
    for rank in (1, 0):
        made = Checkpointer(
            tmp_path, {"counter": Counter(5), "own": per_rank[rank]}, per_rank=("own",), ranks=OneOf(rank, 7)
        )
        if rank:
            made._write(tmp_path / "part")
        else:
            made.save(
                5, lambda folder: shutil.copytree(tmp_path / "part", folder / "training_state", dirs_exist_ok=True)
            )
    assert sorted(path.name for path in (tmp_path / "last" / "training_state").iterdir()) == [
        "counter",
        "own",
        "own-rank1",
    ]
    for rank in (0, 1):
        shared, mine = Counter(), Counter()
        Checkpointer(tmp_path, {"counter": shared, "own": mine}, per_rank=("own",), ranks=OneOf(rank, 7)).restore()
        assert (shared.value, mine.value) == (5, 10 + rank)
    shared, mine, said = Counter(), Counter(), []
    Checkpointer(tmp_path, {"counter": shared, "own": mine}, report=said.append, per_rank=("own",)).restore()
    assert (shared.value, mine.value) == (5, 0)
    assert said[0].startswith("Saved by 2 ranks, resumed by 1: ")


def write_policy(folder):
    (folder / "policy").mkdir()
    (folder / "policy" / "config.json").write_text('{"name": "mlp"}')


def save(folder, *steps, keep=2):
    made, counter = checkpointer(folder, keep=keep)
    for step in steps:
        counter.value = step
        made.save(step, write_policy)


def restored(folder):
    lines = []
    made, counter = checkpointer(folder, report=lines.append)
    step = made.restore()
    assert counter.value == step
    return step, lines


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_layout(tmp_path):
    save(tmp_path, 100, 200, 300)
    assert names(tmp_path) == ["000000000200", "000000000300", "last"]
    assert (tmp_path / "last").readlink() == Path("000000000300")
    files = {
        path.relative_to(tmp_path / "last").as_posix() for path in (tmp_path / "last").rglob("*") if path.is_file()
    }
    counter = "training_state/counter"
    assert files == {"manifest.json", f"{counter}/state.json", f"{counter}/state.safetensors", "policy/config.json"}
    listed = json.loads((tmp_path / "last" / "manifest.json").read_text())["files"]
    assert set(listed) == files - {"manifest.json"}
    verify(tmp_path / "last")
    assert restored(tmp_path) == (300, [])


FILES = ["manifest.json", "training_state/counter/state.json", "training_state/counter/state.safetensors",
         "policy/config.json"]  # fmt: skip


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1 << 4
    path.write_bytes(content)


DAMAGES = {
    "flip the first byte": lambda path: flip(path, 0),
    "flip a byte in the middle": lambda path: flip(path, 0.5),
    "flip the last byte": lambda path: flip(path, 1),
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "lengthen": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "remove": lambda path: path.unlink(),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, file, damage):
    save(tmp_path, 100, 200)
    DAMAGES[damage](tmp_path / "000000000200" / file)
    with pytest.raises(CheckpointError, match=f"000000000200 is damaged: {file}: "):
        verify(tmp_path / "000000000200")
    step, lines = restored(tmp_path)
    assert step == 100
    assert len(lines) == 1
    assert "000000000200" in lines[0]
    assert file in lines[0]


def test_every_single_bit_of_the_manifest_counts(tmp_path):
    save(tmp_path, 100)
    manifest = tmp_path / "000000000100" / "manifest.json"
    content = manifest.read_bytes()
    for position in range(0, len(content), 19):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            manifest.write_bytes(flipped)
            with pytest.raises(CheckpointError):
                verify(manifest.parent)


def test_nothing_usable(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        newest_valid(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        newest_valid(tmp_path)
    save(tmp_path, 100, 200)
    for step in (100, 200):
        (tmp_path / f"{step:012d}" / "policy" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"000000000200 is damaged.*000000000100 is damaged"):
        restored(tmp_path)


def test_missing_savable_is_named(tmp_path):
    save(tmp_path, 100)
    made, _ = checkpointer(tmp_path, replay=Counter())
    with pytest.raises(CheckpointError, match="no state of replay; it has counter"):
        made.restore()


def test_a_state_of_another_version_is_one_line(tmp_path):
    checkpointer(tmp_path, net=torch.nn.Linear(2, 3))[0].save(5)
    made, _ = checkpointer(tmp_path, net=torch.nn.Linear(2, 4))
    expected = (
        r"^.*state.json cannot be used: weight: expected float32 \(4, 2\), found float32 \(3, 2\)\. If another.*\.$"
    )
    with pytest.raises(CheckpointError, match=expected):
        made.restore()


def test_leftovers_are_removed(tmp_path):
    (tmp_path / ".tmp-000000000050-1" / "training_state").mkdir(parents=True)
    save(tmp_path, 100)
    assert names(tmp_path) == ["000000000100", "last"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 100, 200)
    made, _ = checkpointer(tmp_path, value=7)
    made.save(200)
    assert names(tmp_path) == ["000000000100", "000000000200", "last"]
    assert load_state(tmp_path / "last" / "training_state" / "counter")["value"] == 7


def test_after_a_return_to_an_earlier_step_the_later_ones_go(tmp_path):
    """To the newest that is whole."""
    save(tmp_path, 100, 200, 300, keep=3)
    for step in (200, 300):
        flip(tmp_path / f"{step:012d}" / "training_state" / "counter" / "state.json", 0.5)
    made, counter = checkpointer(tmp_path, keep=3)
    assert made.restore() == 100
    assert names(tmp_path) == ["000000000100", "000000000200", "000000000300", "last"]
    counter.value = 150
    made.save(150)
    assert names(tmp_path) == ["000000000100", "000000000150", "last"]
    assert restored(tmp_path) == (150, [])


def test_without_a_restore_later_checkpoints_stay(tmp_path):
    save(tmp_path, 1000)
    save(tmp_path, 100)
    assert names(tmp_path) == ["000000000100", "000000001000", "last"]


# --- failures of the disk -------------------------------------------------------------------------------------------


def assert_intact(folder, step):
    assert not list(folder.glob(".tmp-*"))
    assert restored(folder) == (step, [])


def test_full_disk_in_python_code(tmp_path):
    """A real ENOSPC: /dev/full refuses every byte."""
    save(tmp_path, 100)

    def extra(folder):
        with Path("/dev/full").open("w") as file:
            file.write("x")

    made, _ = checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match=r"^Could not save the checkpoint of step 200 .*No space left on device"):
        made.save(200, extra)
    assert_intact(tmp_path, 100)


def test_full_disk_in_safetensors(tmp_path):
    """A real failure of the write in Rust: files of this process may not exceed 64 KiB."""
    save(tmp_path, 100)
    made = Checkpointer(tmp_path, {"counter": Counter(200, size=100_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 200 .*: File too large\. Earlier checkpoints are intact"):
            made.save(200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_intact(tmp_path, 100)
    made.save(300)


@pytest.mark.parametrize("function", ["fsync", "rename", "replace", "symlink", "open", "mkdir"])
@pytest.mark.parametrize("call", range(1, 12, 2))
def test_full_disk_anywhere(tmp_path, monkeypatch, function, call):
    """ENOSPC from the call-th use of a system call: a clear error, and a valid checkpoint is the newest."""
    save(tmp_path, 100)
    made, counter = checkpointer(tmp_path)
    counter.value = 200
    original, calls = getattr(os, function), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing)
        try:
            made.save(200, write_policy)
        except CheckpointError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
        else:
            assert len(calls) < call or restored(tmp_path)[0] == 200
    assert restored(tmp_path)[0] in (100, 200)
    made.save(200, write_policy)
    assert_intact(tmp_path, 200)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"Cannot write to .*Permission denied"):
        checkpointer(tmp_path / "checkpoints")


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="Cannot write to"):
        checkpointer(tmp_path / "checkpoints")


def test_other_errors_leave_no_temporary_folder(tmp_path):
    save(tmp_path, 100)
    made, _ = checkpointer(tmp_path)

    def interrupt(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.save(200, interrupt)
    assert_intact(tmp_path, 100)


def test_write_atomic_keeps_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x" / "file", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "x" / "file", "new")
    assert (tmp_path / "x" / "file").read_text() == "old"
    assert names(tmp_path / "x") == ["file"]


# --- kill -9 --------------------------------------------------------------------------------------------------------

PRELUDE = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from mtrl.run.checkpoint.rotation import Checkpointer
torch.set_num_threads(1)

class Counter:
    value = 0
    def state_dict(self):
        return {"value": self.value, "tensor": torch.full((2000,), self.value)}
    def load_state_dict(self, state):
        assert (state["tensor"] == state["value"]).all()
        self.value = state["value"]

folder = Path(sys.argv[1])
problems = []

def fresh():
    counter = Counter()
    return Checkpointer(folder, {"counter": counter}, report=problems.append), counter

def save(made, counter, step):
    counter.value = step
    made.save(step, lambda path: (path / "policy").mkdir())

made, counter = fresh()
save(made, counter, 1)
"""

# A child (forked, which is quick) saves in a loop and is killed at a random moment.
RANDOM_KILLS = """
random.seed(0)
newest = 1
for trial in range(25):
    child = os.fork()
    if child == 0:
        made, counter = fresh()
        step = made.restore()
        while True:
            step += 1
            save(made, counter, step)
    time.sleep(random.uniform(0.002, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    made, counter = fresh()
    step = made.restore()
    assert counter.value == step >= newest, (counter.value, step, newest)
    newest = step
assert newest > 3, newest
assert not problems, problems
"""

# A child dies just before its n-th use of a system call that changes the folder, for every n until it survives;
# it saves a new step, or the step that is there already.
EVERY_POINT = """
def dying(function, left):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

for again in (False, True):
    for n in range(1, 1000):
        made, counter = fresh()
        step = made.restore()
        target = step + (not again)
        child = os.fork()
        if child == 0:
            made, counter = fresh()
            made.restore()
            left = [n]
            for name in ("fsync", "rename", "replace", "symlink", "rmdir"):
                setattr(os, name, dying(getattr(os, name), left))
            save(made, counter, target)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        made, counter = fresh()
        assert made.restore() == counter.value in (step, target)
        if code == 0:
            assert counter.value == target
            break
        assert code == 9, code
    assert 10 < n < 200, n
assert not problems, problems
"""


@pytest.mark.parametrize("body", [RANDOM_KILLS, EVERY_POINT], ids=["random moments", "every system call"])
def test_kill_leaves_a_restorable_folder(tmp_path, body):
    memory = Path("/dev/shm")  # where fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        command = [sys.executable, "-c", PRELUDE + body, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


# --- random numbers -------------------------------------------------------------------------------------------------


def test_rng_states_are_exact(tmp_path):
    def draw():
        numbers = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
        return [*numbers, *torch.randn(3).tolist()]

    before = RngStates().state_dict()
    draw()  # leaves a cached second Gaussian behind in random and numpy
    save_state(tmp_path, RngStates().state_dict())
    expected = [draw() for _ in range(3)]
    RngStates().load_state_dict(load_state(tmp_path))
    assert [draw() for _ in range(3)] == expected
    RngStates().load_state_dict(before)


# --- parts of a network ---------------------------------------------------------------------------------------------


def network(hidden=4, actions=2):
    actor = nn.ModuleDict(
        {"trunk": nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, 4)), "head": nn.Linear(4, actions)}
    )
    return nn.ModuleDict({"encoder": nn.Embedding(2, 3), "actor": actor})


TRUNK = [f"actor.trunk.{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")]


def test_load_parts_copies_only_the_parts():
    source, target = network(actions=5).state_dict(), network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    assert list(load_parts(target, source, ["trunk"], (), ())) == TRUNK
    for name, value in target.state_dict().items():
        assert torch.equal(value, source[name] if name in TRUNK else before[name])


def test_load_parts_copies_all():
    source, target = network(), network()
    assert list(load_parts(target, source.state_dict(), None, (), ())) == list(source.state_dict())
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize(
    ("source", "parts", "message"),
    [
        (network(), ["trnk"], r"Unknown part 'trnk'\. Did you mean 'trunk'\? Valid: actor, encoder, head, trunk"),
        (network(hidden=6), ["encoder", "trunk"], r"trunk\.0\.weight: expected \(4, 3\), found \(6, 3\)"),
        (network(actions=5), None, r"head\.weight: expected \(2, 4\), found \(5, 4\)"),
        (nn.ModuleDict({"encoder": nn.Embedding(2, 3)}), None, r"trunk\.0\.weight: expected \(4, 3\), found nothing"),
        (nn.ModuleDict({"encoder": nn.Linear(2, 3)}), ["encoder"], r"encoder\.bias: expected nothing, found \(3,\)"),
    ],
)
def test_load_parts_refuses_and_loads_nothing(source, parts, message):
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_parts(target, source.state_dict(), parts, (), ())
    assert_same(dict(target.state_dict()), before)


def test_two_writers_of_one_file(tmp_path):
    """Two evaluations of one run end at once: one of them wins, and the file is whole at every moment."""
    path, texts = tmp_path / "eval.json", ("a" * 5000, "b" * 7000)

    def write(text):
        for _ in range(100):
            write_atomic(path, text)
            assert path.read_text() in texts

    with ThreadPoolExecutor(2) as executor:
        list(executor.map(write, texts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["eval.json"]
