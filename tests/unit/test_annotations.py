"""The checks of annotations that every test runs under find what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mtrl import per_task
from tests.annotations import checked

TWO, THREE = torch.ones(2), torch.ones(3)


@checked
def add(x: Float[Tensor, " n"], y: Float[Tensor, " n"], *more: Sequence[float], scale: float = 1) -> Tensor:
    return scale * (x + y)


@checked
def first(x: Float[Tensor, "n m"], count: int) -> Float[Tensor, " {count}"]:
    return x[0]


@checked
@dataclass
class Pair:
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]

    @checked
    def count(self) -> int:
        return 0.5  # type: ignore[return-value]


@checked
def numbers(start: int) -> Iterator[int]:
    yield start


def test_what_is_right_passes() -> None:
    assert torch.equal(add(TWO, TWO, [1.0], scale=2), torch.full((2,), 4.0))
    assert torch.equal(add(THREE, THREE), torch.full((3,), 2.0))  # names hold for one call
    assert torch.equal(first(torch.ones(3, 2), 2), TWO)
    assert Pair(TWO, TWO).right is TWO
    assert list(numbers(3)) == [3]


def test_what_is_wrong_raises() -> None:
    for wrong in (
        lambda: add(TWO, THREE),
        lambda: add(TWO, TWO.double().long()),
        lambda: add(TWO, TWO, ["1"]),
        lambda: add(TWO, TWO, scale="1"),
        lambda: first(torch.ones(3, 2), 3),
        lambda: Pair(TWO, THREE),
        lambda: Pair(TWO, TWO).count(),
        lambda: next(numbers("3")),
        lambda: per_task.count(torch.tensor([0]), 1.5),
        lambda: per_task.mean_or_zero(TWO, torch.zeros(3, dtype=torch.int64), 2),
    ):
        with pytest.raises(TypeError, match="violates type hint"):
            wrong()
