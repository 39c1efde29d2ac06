"""A device that counts how often the host waits for it, for machines without an accelerator.

Its tensors are computed on the CPU, but say that they are on "meta", where no tensor of a run is. Whatever hands their
values to the host, or needs them to know the size of a result, is a wait: it would stall the queue of a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

DEVICE = torch.device("meta")

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.equal,
    aten.bincount,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}


class Distant(Tensor):
    """A tensor on the device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Distant:
        layout = (values.size(), values.stride(), values.storage_offset())
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=values.dtype, device=DEVICE)
        made.values = values
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Distant({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside `counting`")


class CountingDevice(TorchDispatchMode):
    """Attributes: `waits`, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def take(self) -> int:
        """Number of waits since the last call."""
        number = self.waits.total()
        self.waits.clear()
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operation = dict(kwargs or {}), func.overloadpacket
        target = kwargs.get("device")
        stays = tree_any(is_distant, (args, kwargs))
        if stays:
            self._count(operation, args, target)
        goes = stays if target is None else torch.device(target) == DEVICE
        if target is not None and goes:
            kwargs["device"] = torch.device("cpu")
        args_here, kwargs_here = tree_map(lambda x: x.values if is_distant(x) else x, (args, kwargs))
        made = func(*args_here, **kwargs_here)
        if func._schema.name.endswith("_"):  # in place
            return args[0] if isinstance(args[0], Tensor) else made
        return tree_map(lambda x: Distant(x) if goes and isinstance(x, Tensor) else x, made)

    def _count(self, operation: Any, args: Any, target: Any) -> None:
        if operation in WAITING:
            self.waits[str(operation)] += 1
        elif operation in INDEXING and any(is_distant(x) and x.dtype == torch.bool for x in args[1]):
            self.waits[f"{operation} by a mask"] += 1
        elif (operation is aten._to_copy and target is not None and torch.device(target) != DEVICE) or (
            operation is aten.copy_ and not is_distant(args[0])
        ):
            self.waits["copy"] += 1


def is_distant(x: Any) -> bool:
    return isinstance(x, Distant)


class Numbers(TorchFunctionMode):
    """Tensors made from numbers keep them, where torch makes them empty on "meta"; and give them back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and is_distant(args[0]):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """Of the CPU, for the device too."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu" if torch.device(device) == DEVICE else device)


@contextmanager
def counting() -> Iterator[CountingDevice]:
    """While it lasts, `device="meta"` is the device that counts."""
    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with (
        mock.patch(fused, return_value=["cpu", DEVICE.type]),
        mock.patch("torch.Generator", Generator),
        Numbers(),
        CountingDevice() as device,
    ):
        yield device
