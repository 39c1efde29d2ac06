"""Names for components: `@register("trunk", "mlp")` names a class, `build("trunk", {"name": "mlp"})` makes one.

The constructor is the schema: unknown names, unknown keywords, missing keywords and values of the wrong type are errors
that list what is valid. One that hands `**options` on to its base class has that one's options, too (`parameters`).
Third parties register through the entry-point group `mtrl.components`: each entry point names
a module (or a callable without arguments) that calls `register` when loaded.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from mtrl.state import shown
from mtrl.types import UserError

_FLOAT32_MAX = 3.4028234663852886e38
_components: dict[str, dict[str, Callable[..., Any]]] = {}
T = TypeVar("T")


def register(kind: str, name: str) -> Callable[[T], T]:
    """Makes a class or function available to `build` as `name` among the components of a `kind`."""

    def decorate(component: T) -> T:
        known = _components.setdefault(kind, {})
        if name in known and known[name] is not component:
            raise ValueError(f"{kind} {name!r} is registered twice: {known[name]} and {component}")
        known[name] = typing.cast(Callable[..., Any], component)
        return component

    return decorate


@cache
def _load_third_parties() -> None:
    for entry in entry_points(group="mtrl.components"):
        loaded = entry.load()
        if callable(loaded):
            loaded()


def names(kind: str) -> list[str]:
    """Registered names of a kind, sorted."""
    _load_third_parties()
    return sorted(_components.get(kind, {}))


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The component registered under a name. Raises `UserError` with the valid names and the nearest match."""
    valid = names(kind)
    if name not in valid:
        raise UserError(unknown(kind, str(name), valid))
    return _components[kind][name]


def unknown(what: str, given: str, valid: Iterable[str]) -> str:
    """The message for an unknown name: nearest match and all valid names."""
    valid = list(valid)
    nearest = difflib.get_close_matches(given[:80], valid, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {what} {shown(given)}.{hint} Valid: {', '.join(valid) or 'none'}."


def missing_extra(what: str, package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed, with the command that installs it."""
    checkout = Path(__file__).parents[1]
    if (checkout / "constraints.txt").is_file():
        command = f'pip install -c constraints.txt -e ".[{extra}]" in {checkout}'
    else:
        command = f'pip install "mtrl-suite[{extra}]"'
    return UserError(f"{what} needs {package}: {command}")


def build(kind: str, node: Any, **runtime: Any) -> Any:
    """Builds the component that a config node describes.

    Args:
        kind: Kind of component ("trunk", "weighting", ...).
        node: `{"name": ..., **keywords}`, plain values from a config.
        runtime: Objects known only at run time (sizes, the environment's spec). Those that the constructor does not
            name are left out, so that components need not accept what they do not use.

    Raises:
        UserError: Unknown name or keyword, missing keyword, or a value of the wrong type.
    """
    keywords = dict(node) if isinstance(node, Mapping) else {}
    if "name" not in keywords:
        raise UserError(f"A {kind} needs a name. Valid: {', '.join(names(kind))}.")
    name = keywords.pop("name")
    return construct(f"{kind} {name!r}", lookup(kind, str(name)), keywords, **runtime)


def construct(what: str, component: Callable[..., Any], keywords: Any, **runtime: Any) -> Any:
    """Calls `component` with keywords from a config and objects from the run, checked as `build` describes.

    Args:
        what: Name of the component in error messages.
    """
    if not isinstance(keywords, Mapping):
        raise UserError(f"{what} must be settings, not {shown(keywords)}.")
    known = parameters(component)
    settable = [key for key in known if key not in runtime]
    given = {**keywords, **{key: value for key, value in runtime.items() if key in known}}
    for key, value in keywords.items():
        if key not in settable:
            raise UserError(unknown(f"option of {what}:", str(key), settable))
        hint = known[key].annotation
        if hint is int and isinstance(value, float) and value.is_integer() and _fits(int(value), int):
            given[key] = int(value)  # 1e6
        else:
            check_type(what, key, value, hint)
    missing = [key for key, p in known.items() if p.default is p.empty and key not in given]
    if missing:
        raise UserError(f"{what} needs a value for: {', '.join(missing)}.")
    try:
        return component(**given)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a component by name, with evaluated annotations: its schema.

    A class whose constructor ends in `**options` hands these to the constructor of its base class. It therefore also
    has those arguments of that one that have a default, except where it has an argument of the same name itself.
    """
    function = component.func if isinstance(component, partial) else component
    constructor = function.__init__ if inspect.isclass(function) else function
    hints, every = typing.get_type_hints(constructor), inspect.signature(component).parameters
    named = {
        key: p.replace(annotation=hints.get(key, p.empty))
        for key, p in every.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if not inspect.isclass(function) or "options" not in every.keys() - named:
        return named
    of_base = parameters(_base(function))
    return named | {key: p for key, p in of_base.items() if p.default is not p.empty and key not in named}


def _base(component: type) -> type:
    """The class whose constructor that of `component` calls as `super().__init__`."""
    with_constructor = [one for one in component.__mro__ if "__init__" in vars(one)]
    return with_constructor[1]


def check_type(what: str, key: str, value: Any, hint: Any) -> None:
    """Raises `UserError` unless a value from a config or a file matches an annotation."""
    if not _fits(value, hint):
        raise UserError(f"{what}: {key} must be {_describe(hint)}, not {shown(value)}.")


def _describe(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, options))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if typing.get_origin(hint) in (list, tuple, Sequence) and options[0] is not typing.Any:
        return f"a list (each {_describe(options[0])})"
    hint = typing.get_origin(hint) or hint
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    plain |= {dict: "settings", list: "a list", tuple: "a list", Sequence: "a list"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config value matches an annotation. Annotations of other types match any value."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63  # torch's range
    if hint is float:
        return (isinstance(value, float) and not _FLOAT32_MAX < abs(value) < math.inf) or _fits(value, int)
    if hint in (bool, str, dict, list, type(None)):
        return isinstance(value, hint)
    items = typing.get_args(hint)
    if typing.get_origin(hint) in (list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, items[0]) for item in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(k, items[0]) and _fits(v, items[1]) for k, v in value.items())
    if typing.get_origin(hint) is tuple:
        each = items[:1] * len(value) if isinstance(value, tuple) and items[-1] is ... else items
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    return True
