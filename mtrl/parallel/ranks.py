"""Processes that learn as one, started by `torchrun`: each has a share of the slots, and all take the same steps."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mtrl import per_task
from mtrl.types import Ranks, UserError

T = TypeVar("T")

STARTED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that `torchrun`, or whatever starts the ranks, sets in each."""
TIMEOUT = timedelta(days=1)
"""How long a rank waits for another: long, as all wait while the first one evaluates. A dead one is noticed at once."""


class LostRankError(UserError):
    """Another rank has ended, so that nothing can be exchanged any more."""


@contextmanager
def started_ranks() -> Iterator[Ranks]:
    """The ranks that this process belongs to: itself alone, unless it was started by `torchrun`.

    Within the block only the first rank writes to standard output, and ranks of one machine share its cores.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or any(name not in os.environ for name in STARTED_BY):
        yield Ranks()
        return
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # The store outlives ranks that are started again, with the addresses of those before them.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    # Tensors are exchanged where they are.
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    ranks = ProcessGroup(store)
    if gpus:
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    share_cores(ranks)
    try:
        with Path(os.devnull).open("w") as null, redirect_stdout(sys.stdout if rank == 0 else null):
            yield ranks
    except SystemExit as ended:
        if ended.code not in (2, 130):  # not after a failure, when others may not answer
            dist.destroy_process_group()
        raise


class ProcessGroup(Ranks):
    """The ranks of torch's default process group.

    Args:
        store: torch's store of the group, in which they leave notes.

    Raises:
        LostRankError: Any method: another rank has ended.
    """

    def __init__(self, store: Any) -> None:
        self.store, self.rank, self.size = store, dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        """Number of this process on its machine."""
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.launcher = ("torchrun", f"--nproc-per-node={self.local_size}")

    def sum(self, x: Tensor) -> Tensor:
        return self._sum_in_place(x.detach().clone(memory_format=torch.contiguous_format))

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return unflattened(self._sum_in_place(flattened(tensors)), tensors) if tensors else []

    def _sum_in_place(self, x: Tensor) -> Tensor:
        with _connection_errors():
            dist.all_reduce(x)
        return x

    def each(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(self.size)]
        with _connection_errors():
            dist.all_gather(found, x)
        return found

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not tensors:
            return []
        flat = flattened(tensors)
        with _connection_errors():
            dist.broadcast(flat, src=0)
        return unflattened(flat, tensors)

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with _connection_errors():
            dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def first(self, function: Callable[[], T]) -> T:
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = function()
            except Exception as error:
                told[1] = error
        with _connection_errors():
            dist.broadcast_object_list(told, src=0)
        result, failure = told
        if failure is not None:
            raise failure
        return result

    def joint(self, losses: Float[Tensor, "M K"], task: Int[Tensor, "*samples"]) -> Float[Tensor, "M K"]:
        number = per_task.count(task, losses.shape[1]).to(losses.dtype)
        *sums, numbers = self.sum(torch.stack([*losses.detach() * number, number]))
        numbers = numbers.clamp(min=1)
        joint: Tensor = _JointLosses.apply(losses, torch.stack(sums) / numbers, number / numbers)
        return joint

    def sum_gradients(self, parameters: Iterable[nn.Parameter], mean: bool = False) -> None:
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        for parameter, gradient in zip(learned, self.sum_all(found), strict=True):
            parameter.grad = gradient / self.size if mean else gradient

    @torch.no_grad()
    def make_alike(self, module: nn.Module) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        first = self.first(lambda: [tensor.cpu() for tensor in tensors])
        for tensor, value in zip(tensors, first, strict=True):
            tensor.copy_(value)

    def share(self, name: str, total: int) -> int:
        if total % self.size:
            raise UserError(f"{name}={total} cannot be shared by {self.size} ranks: use a multiple of it.")
        return total // self.size

    def reports(self, error: BaseException) -> bool:
        text = f"{type(error).__name__}: {error}"
        try:
            reported = self.store.add("reported", 1) > 1
            repeated = self.store.add(hashlib.sha256(text.encode()).hexdigest(), 1) > 1
        except RuntimeError:  # whatever held the store is gone
            return True
        # That another rank has ended is no news where a rank has said why.
        return not (repeated or (reported and isinstance(error, LostRankError)))


class _JointLosses(torch.autograd.Function):
    """Losses of the joint batch, whose gradients are those of a rank's own, times its share of the samples."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, joint: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return joint.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (share,) = ctx.saved_tensors
        return gradient * share, None, None


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors, one after another."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def unflattened(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flattened`: tensors of the shapes and dtypes of `like`."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)]


def share_cores(ranks: Ranks) -> None:
    """Gives each rank its share of the cores, where several of a machine may all use the same.

    The simulation and torch use as many threads as there are cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    places = ranks.gather((socket.gethostname(), cores))
    beside = [rank for rank, place in enumerate(places) if place == places[ranks.rank]]
    share = len(cores) // len(beside)
    if share and len(beside) > 1:
        first = beside.index(ranks.rank) * share
        os.sched_setaffinity(0, cores[first : first + share])
        torch.set_num_threads(min(torch.get_num_threads(), share))


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Turns the error of an exchange, whose words depend on who noticed it first, into a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            "Another rank has ended. The last checkpoint is intact: resume=auto with run_dir=... goes on from it, and "
            "torchrun --max-restarts=3 does so without you."
        ) from error
