"""Checks of annotations, shapes included, that cost the tests little.

`jaxtyping.jaxtyped` checks the arguments of every call twice, alone and again with what is returned, and binds them to
their names first, shapes or not: about a third of the time of the tests. Here beartype checks them once, and names of
dimensions are kept only for functions whose annotations have some.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# PEP 484's tower: an int is welcome where a float is annotated.
_with_types = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_with_names = functools.partial(jaxtyping.jaxtyped, typechecker=None)


def check(package: str) -> None:
    """Functions and dataclasses of a package check their annotations, except while `jaxtyping_disable` is set."""
    jaxtyping.install_import_hook(package, None)
    jaxtyping.jaxtyped = lambda typechecker: checked  # what the hook decorates with


def checked(defined: Any) -> Any:
    """A function, or a dataclass and its `__init__`, with checks."""
    if isinstance(defined, type):
        if dataclasses.is_dataclass(defined) and not hasattr(defined.__init__, "__wrapped__"):
            defined.__init__ = checked(defined.__init__)  # type: ignore[misc]
        return defined
    twin = FunctionType(
        defined.__code__, defined.__globals__, defined.__name__, defined.__defaults__, defined.__closure__
    )
    twin.__kwdefaults__, twin.__qualname__ = defined.__kwdefaults__, defined.__qualname__
    twin.__annotations__ = {name: _evaluated(hint, twin.__globals__) for name, hint in defined.__annotations__.items()}
    checking: Callable[..., Any] = _with_types(twin)
    if checking is twin:  # without annotations
        return defined
    if any(map(_has_shape, twin.__annotations__.values())):
        checking = _with_names(checking)

    @functools.wraps(defined)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (defined if jaxtyping.config.jaxtyping_disable else checking)(*args, **kwargs)

    return call


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """An annotation that may be a string. One with names that do not exist yet is not checked."""

    def stub() -> None: ...

    stub.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(stub, names, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_has_shape, hint))
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
