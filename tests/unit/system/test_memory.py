"""Shared memory and the broadcast, with both ends in this process."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

import mtrl.system.memory
from mtrl.system.memory import SharedTensors, Tree, WeightBroadcast, copy_into, leaves


def example() -> Tree:
    """Nested, with tensors of odd sizes and of several types."""
    return {
        "obs": torch.randint(0, 255, (3, 2, 5), dtype=torch.uint8),
        "done": torch.rand(3, 2) < 0.5,
        "state": {"h": torch.randn(2, 7), "c": {"deep": torch.randn(2, 7, dtype=torch.float64)}},
        "count": torch.tensor(3),
        "nothing": torch.zeros(2, 0),
    }


def assert_same(one: Tree, two: Tree) -> None:
    for (path, ours), (other, theirs) in zip(leaves(one), leaves(two), strict=True):
        assert path == other
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), path


def sent(memory: SharedTensors) -> SharedTensors:
    here, there = Pipe()
    memory.send(here)
    return SharedTensors.receive(there)


def test_both_ends_see_the_same_memory() -> None:
    tree = example()
    memory = SharedTensors.like(tree)
    other = sent(memory)
    copy_into(memory.tensors, tree)
    assert_same(other.tensors, tree)
    other.tensors["state"]["h"][1, 3] = 42
    assert memory.tensors["state"]["h"][1, 3] == 42
    copy_into(memory.tensors, example())
    del memory
    assert not torch.equal(other.tensors["obs"], tree["obs"])  # the memory lives as long as one end of it


def test_the_memory_is_given_back() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert len(list(leaves(SharedTensors.like(example()).tensors))) == 6
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_trees_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected b, found a"):
        copy_into({"b": torch.zeros(2)}, {"a": torch.zeros(2)})


def weights(version: int) -> Tree:
    return {"a": torch.full((5,), version), "b": torch.full((5,), version), "c": torch.full((5,), version)}


def test_readers_get_the_newest_version() -> None:
    broadcast = WeightBroadcast.like(weights(0))
    reader, target = WeightBroadcast(sent(broadcast.memory)), weights(-1)
    for version in (1, 2, 3):
        broadcast.publish(weights(version))
        assert reader.read(target) == reader.version == version
        assert_same(target, weights(version))
    for version in (4, 5):  # one has been missed
        broadcast.publish(weights(version))
    assert reader.read(target) == 5
    assert_same(target, weights(5))


@pytest.mark.parametrize("meanwhile", [1, 2, 3])
def test_what_is_read_is_of_one_version(monkeypatch: pytest.MonkeyPatch, meanwhile: int) -> None:
    """While the reader is between the first tensor and the others, more versions come."""
    broadcast, target = WeightBroadcast.like(weights(0)), weights(-1)
    broadcast.publish(weights(1))
    published = 1

    def interrupted(to: Tree, tree: Tree) -> None:
        nonlocal published
        if to is not target:
            copy_into(to, tree)
            return
        to["a"].copy_(tree["a"])
        while published <= meanwhile:
            published += 1
            broadcast.publish(weights(published))
        to["b"].copy_(tree["b"])
        to["c"].copy_(tree["c"])

    monkeypatch.setattr(mtrl.system.memory, "copy_into", interrupted)
    assert broadcast.read(target) == meanwhile + 1
    assert_same(target, weights(meanwhile + 1))
