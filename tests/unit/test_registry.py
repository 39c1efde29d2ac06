"""Building by name: what is right is built, what is wrong is one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from mtrl import registry
from mtrl.checks import not_negative, positive
from mtrl.registry import build, construct, lookup, names, parameters, register
from mtrl.types import UserError


class Component:
    def __init__(
        self,
        size: int,
        rate: float = 0.5,
        label: str = "x",
        flag: bool = False,
        mode: Literal["fast", "slow"] = "fast",
        bound: float | None = None,
        nested: dict[str, Any] | None = None,
    ) -> None:
        positive(size=size)
        self.values = {"size": size, "rate": rate, "label": label, "flag": flag, "mode": mode, "bound": bound}
        self.nested = nested


@pytest.fixture(autouse=True)
def kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kind "thing" with two components, gone afterwards; no third parties are remembered."""
    monkeypatch.setattr(registry, "_components", {kind: dict(known) for kind, known in registry._components.items()})
    registry._load_third_parties.cache_clear()
    register("thing", "component")(Component)
    register("thing", "other")(dict)
    yield
    registry._load_third_parties.cache_clear()


def test_builds_by_name() -> None:
    component = build("thing", {"name": "component", "size": 3, "rate": 2, "mode": "slow", "bound": None})
    assert component.values == {"size": 3, "rate": 2, "label": "x", "flag": False, "mode": "slow", "bound": None}


def test_the_node_is_left_as_it_was() -> None:
    node = {"name": "component", "size": 3}
    build("thing", node)
    assert node == {"name": "component", "size": 3}


def test_runtime_objects_that_are_not_named_are_left_out() -> None:
    assert build("thing", {"name": "component"}, size=4, unused=object()).values["size"] == 4


def test_a_component_may_be_a_function() -> None:
    @register("thing", "double")
    def double(number: int) -> int:
        return 2 * number

    assert build("thing", {"name": "double", "number": 4}) == 8
    assert double(1) == 2  # the decorator returns what it was given


class Extended(Component):
    """Hands its options on."""

    def __init__(self, size: int, own: float = 1.0, label: str = "y", **options: Any) -> None:
        super().__init__(size, label=label, **options)
        self.own = own


class Unrelated(Component):
    """Takes anything, which is no option of it."""

    def __init__(self, **others: Any) -> None:
        super().__init__(1)


def test_options_of_the_base_class() -> None:
    """With their types and defaults, except where the class has its own."""
    register("thing", "extended")(Extended)
    found = parameters(Extended)
    assert list(found) == ["size", "own", "label", "rate", "flag", "mode", "bound", "nested"]
    assert found["label"].default == "y"
    assert found["rate"] == parameters(Component)["rate"]
    component = build("thing", {"name": "extended", "size": 3, "own": 2, "rate": 4})
    assert (component.own, component.values["rate"], component.values["label"]) == (2, 4, "y")
    with pytest.raises(
        UserError, match=r"'rte'\. Did you mean 'rate'\? Valid: size, own, label, rate, flag, mode, bound"
    ):
        build("thing", {"name": "extended", "size": 3, "rte": 1})
    with pytest.raises(UserError, match=r"^thing 'extended': flag must be true or false, not 1\.$"):
        build("thing", {"name": "extended", "size": 3, "flag": 1})


def test_only_options_are_handed_on() -> None:
    register("thing", "unrelated")(Unrelated)
    with pytest.raises(UserError, match="Unknown option of thing 'unrelated': 'rate'"):
        build("thing", {"name": "unrelated", "rate": 1.0})


def test_names_are_sorted() -> None:
    assert names("thing") == ["component", "other"]
    assert names("nothing of the sort") == []


def test_an_unknown_name_lists_the_valid_and_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^Unknown thing 'componet'\. Did you mean 'component'\? Valid: component, other\.$"
    ):
        lookup("thing", "componet")


def test_an_unknown_name_without_a_near_one() -> None:
    with pytest.raises(UserError, match=r"^Unknown thing 'zzz'\. Valid: component, other\.$"):
        build("thing", {"name": "zzz"})


@pytest.mark.parametrize("name", [3, None, ["component"]])
def test_a_name_that_is_no_text(name: Any) -> None:
    with pytest.raises(UserError, match="Unknown thing"):
        build("thing", {"name": name})


def test_a_node_without_a_name() -> None:
    with pytest.raises(UserError, match=r"^A thing needs a name\. Valid: component, other\.$"):
        build("thing", {"size": 3})


def test_an_unknown_option_lists_the_valid_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'sizes'\. Did you mean 'size'\? Valid: size, rate, label, flag, mode, bound"):
        build("thing", {"name": "component", "sizes": 3})


def test_what_the_run_gives_is_no_option() -> None:
    with pytest.raises(UserError, match=r"'size'\. Valid: rate, label"):
        build("thing", {"name": "component", "size": 3}, size=4)


@pytest.mark.parametrize("key", ["rate", "bound"])
def test_numbers_that_float32_cannot_hold(key: str) -> None:
    for number in (3.4e38, -3.4e38, float("inf"), 1e-300):
        assert build("thing", {"name": "component", "size": 1, key: number}).values[key] == number
    for number in (1e300, -1e300, 3.5e38):
        with pytest.raises(UserError, match=f"{key} must be a number"):
            build("thing", {"name": "component", "size": 1, key: number})


def test_a_whole_float_is_an_integer() -> None:
    """1e6 on a command line."""
    size = build("thing", {"name": "component", "size": 2.0}).values["size"]
    assert size == 2
    assert isinstance(size, int)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("size", 2.5, "an integer"),
        ("size", True, "an integer"),
        ("size", "3", "an integer"),
        ("rate", "fast", "a number"),
        ("rate", False, "a number"),
        ("rate", None, "a number"),
        ("label", 3, "text"),
        ("flag", 1, "true or false"),
        ("mode", "medium", "one of fast, slow"),
        ("bound", "none", "a number or null"),
        ("nested", 3, "settings or null"),
    ],
)
def test_a_value_of_the_wrong_type(key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"^thing 'component': {key} must be .*{expected}.*, not {value!r}"):
        build("thing", {"name": "component", "size": 1} | {key: value})


def test_missing_values_are_named() -> None:
    with pytest.raises(UserError, match=r"^thing 'component' needs a value for: size\.$"):
        build("thing", {"name": "component", "rate": 1.0})


def test_an_impossible_value_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"^thing 'component': size must be positive, not -1\.$"):
        build("thing", {"name": "component", "size": -1})


def test_other_errors_are_not_disguised() -> None:
    @register("thing", "broken")
    def broken() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        build("thing", {"name": "broken"})


def test_construct_says_what_it_is_told() -> None:
    with pytest.raises(UserError, match=r"^my config needs a value for: size\.$"):
        construct("my config", Component, {})


def test_registering_twice() -> None:
    register("thing", "component")(Component)  # the same again, as by a reloaded module: nothing happens
    with pytest.raises(ValueError, match="thing 'component' is registered twice"):
        register("thing", "component")(dict)
    assert lookup("thing", "component") is Component


class Entry:
    """An entry point of an installed package."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


@pytest.mark.parametrize("as_function", [True, False])
def test_third_parties_register_through_entry_points(monkeypatch: pytest.MonkeyPatch, as_function: bool) -> None:
    groups, loads = [], []

    def register_mine() -> None:
        loads.append(1)
        register("thing", "mine")(Component)

    def load() -> Any:
        if as_function:
            return register_mine
        register_mine()  # as importing a module would
        return registry

    def entry_points(group: str) -> list[Entry]:
        groups.append(group)
        return [Entry(load)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert names("thing") == ["component", "mine", "other"]
    assert build("thing", {"name": "mine", "size": 2}).values["size"] == 2
    assert groups == ["mtrl.components"]
    assert len(loads) == 1  # once, whatever is built


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_positive(value: float) -> None:
    with pytest.raises(ValueError, match="width must be positive, not"):
        positive(depth=1, width=value)


@pytest.mark.parametrize("value", [-1e-9, float("nan")])
def test_not_negative(value: float) -> None:
    not_negative(tau=0.0)
    with pytest.raises(ValueError, match="tau must not be negative"):
        not_negative(tau=value)
