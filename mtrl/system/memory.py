"""Tensors in shared memory.

The memory has no name in any file system: the system frees it when the last process that uses it ends.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import tempfile
import weakref
from collections.abc import Iterator
from math import prod
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

Tree = dict[str, Any]
"""Nested dicts of tensors."""

Layout = tuple[tuple[tuple[str, ...], tuple[int, ...], torch.dtype], ...]
"""Path, shape and dtype of each tensor of a tree."""

_ALIGNMENT = 64
"""Bytes; a cache line."""


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The tensors of a tree with their paths."""
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield (*path, key), value
        else:
            yield from leaves(value, (*path, key))


def build_tree(tensors: dict[tuple[str, ...], Tensor]) -> Tree:
    """The inverse of `leaves`."""
    tree: Tree = {}
    for path, tensor in tensors.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = tensor
    return tree


def copy_into(target: Tree, source: Tree) -> None:
    """Copies the tensors of `source` into those of `target`, a tree of the same structure."""
    for (path, to), (source_path, tensor) in zip(leaves(target), leaves(source), strict=True):
        if path != source_path:
            raise ValueError(f"Expected {'.'.join(path)}, found {'.'.join(source_path)}.")
        to.copy_(tensor)


class SharedTensors:
    """A tree of tensors shared by this process and those that it is sent to.

    Args:
        layout: Layout of the tree.
        fd: File descriptor of existing memory, which this object then owns; None allocates new memory.

    Attributes:
        tensors: The tree, as views of the memory; new memory is zero.
    """

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        self._layout = layout
        sizes = [prod(shape) * dtype.itemsize for _, shape, dtype in layout]
        steps = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        self._fd = _anonymous_file(sum(steps)) if fd is None else fd
        weakref.finalize(self, os.close, self._fd)
        memory = torch.frombuffer(mmap.mmap(self._fd, sum(steps)), dtype=torch.uint8)
        tensors = {}
        for (path, shape, dtype), size, part in zip(layout, sizes, memory.split(steps), strict=True):
            tensors[path] = part[:size].view(dtype).view(shape)
        self.tensors = build_tree(tensors)

    @classmethod
    def like(cls, example: Tree) -> SharedTensors:
        """Allocates memory for a tree with the layout of `example`. Values are not copied."""
        return cls(tuple((path, tuple(tensor.shape), tensor.dtype) for path, tensor in leaves(example)))

    def send(self, connection: Connection) -> None:
        """Sends the memory through a (duplex) pipe to a process that calls `receive`."""
        connection.send(self._layout)
        with _socket_of(connection) as end:
            socket.send_fds(end, [b"fd"], [self._fd])

    @classmethod
    def receive(cls, connection: Connection) -> SharedTensors:
        """Receives the memory that the other end sends. Raises `EOFError` if the pipe is closed."""
        layout = connection.recv()
        with _socket_of(connection) as end:
            _, fds, _, _ = socket.recv_fds(end, 2, 1)
        if not fds:
            raise EOFError
        return cls(layout, fds[0])


def _socket_of(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def _anonymous_file(size: int) -> int:
    if sys.platform == "linux":  # not limited by the size of /dev/shm, which is small in containers
        fd = os.memfd_create("mtrl")
    else:
        with tempfile.TemporaryFile() as file:  # already unlinked
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


class WeightBroadcast:
    """Publishes the newest version of a tree from one writer to readers in any process.

    There is no lock, since a reader that is killed would keep it. Versions alternate between two places. A copy is
    consistent unless another version was published while it was read: the writer may then have begun to overwrite the
    place that was being read. In that case it is read again.

    Args:
        memory: Made by `like`.
    """

    def __init__(self, memory: SharedTensors) -> None:
        self.memory = memory
        self._version: Tensor = memory.tensors["version"]
        self._places: Tree = memory.tensors["places"]

    @classmethod
    def like(cls, example: Tree) -> WeightBroadcast:
        """A broadcast of trees with the layout of `example`, with no version published yet."""
        places = {"even": example, "odd": example}
        return cls(SharedTensors.like({"version": torch.zeros((), dtype=torch.int64), "places": places}))

    @property
    def version(self) -> int:
        """Number of versions published."""
        return int(self._version)

    def publish(self, tree: Tree) -> None:
        """Publishes a tree as the newest version."""
        version = self.version + 1
        copy_into(self._place(version), tree)
        self._version.fill_(version)

    def read(self, target: Tree) -> int:
        """Copies the newest version into a tree of the same structure. Returns its number."""
        while True:
            version = self.version
            copy_into(target, self._place(version))
            if self.version == version:
                return version

    def _place(self, version: int) -> Tree:
        place: Tree = self._places["odd" if version % 2 else "even"]
        return place
