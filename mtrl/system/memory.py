"""Tensors in memory that processes share.

The memory has no name in any file system: it goes with the last process that has it, however that ends.
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
    """Copies the tensors of `source` into those of `target`, a tree of the same form."""
    for (path, to), (other, tensor) in zip(leaves(target), leaves(source), strict=True):
        if path != other:
            raise ValueError(f"Expected {'.'.join(path)}, found {'.'.join(other)}.")
        to.copy_(tensor)


class SharedTensors:
    """A tree of tensors for this process and those that it is sent to.

    Args:
        layout: Of the tree.
        fd: Of the memory, large enough, which is taken over; None makes it.

    Attributes:
        tensors: The tree: views of the memory, zero at first.
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
        """Memory for tensors such as these; their values are not copied."""
        return cls(tuple((path, tuple(tensor.shape), tensor.dtype) for path, tensor in leaves(example)))

    def send(self, connection: Connection) -> None:
        """Lets the process at the other end of a (duplex) pipe `receive` the memory."""
        connection.send(self._layout)
        with _socket_of(connection) as end:
            socket.send_fds(end, [b"fd"], [self._fd])

    @classmethod
    def receive(cls, connection: Connection) -> SharedTensors:
        """The memory that the other end sends. Raises `EOFError` if it has closed."""
        layout = connection.recv()
        with _socket_of(connection) as end:
            _, fds, _, _ = socket.recv_fds(end, 2, 1)
        if not fds:
            raise EOFError
        return cls(layout, fds[0])


def _socket_of(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def _anonymous_file(size: int) -> int:
    if sys.platform == "linux":  # memory, and not limited by the size of /dev/shm, which containers make small
        fd = os.memfd_create("mtrl")
    else:
        with tempfile.TemporaryFile() as file:  # its name is gone already
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


class WeightBroadcast:
    """The newest version of a tree, from one writer to readers in any process.

    Without a lock, which a reader that is killed would keep. Versions lie in two places in turn: what has been read is
    whole unless another version was published meanwhile, after which the writer may have begun the one that takes the
    same place. It is read again then.

    Args:
        memory: Made by `like`.
    """

    def __init__(self, memory: SharedTensors) -> None:
        self.memory = memory
        self._version: Tensor = memory.tensors["version"]
        self._places: Tree = memory.tensors["places"]

    @classmethod
    def like(cls, example: Tree) -> WeightBroadcast:
        """A broadcast of trees such as this one, with no version published."""
        places = {"even": example, "odd": example}
        return cls(SharedTensors.like({"version": torch.zeros((), dtype=torch.int64), "places": places}))

    @property
    def version(self) -> int:
        """Number of versions published."""
        return int(self._version)

    def publish(self, tree: Tree) -> None:
        """Makes this the newest version."""
        version = self.version + 1
        copy_into(self._place(version), tree)
        self._version.fill_(version)

    def read(self, target: Tree) -> int:
        """Copies the newest version into a tree of the same form; returns its number."""
        while True:
            version = self.version
            copy_into(target, self._place(version))
            if self.version == version:
                return version

    def _place(self, version: int) -> Tree:
        place: Tree = self._places["odd" if version % 2 else "even"]
        return place
