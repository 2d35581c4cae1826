from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Count, NotNegative, Positive, check_ranges, fingerprinted, parse, runtime
from uni_dpo.settings.reading import override


@dataclass(frozen=True)
class Inner:
    limit: Count | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    rate: NotNegative = 1.0
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    parts: list[str] = field(default_factory=list)
    free: Mapping[str, Any] = field(default_factory=dict)
    speed: int = runtime(1)


def test_values_of_every_kind_are_read():
    given = {"name": "x", "rate": 3, "kind": "b", "flag": True, "inner": {"limit": 4}, "parts": ["p"], "free": {"k": 1}}
    assert parse(Outer, given, "") == Outer("x", 3.0, "b", True, Inner(4), ("p",), {"k": 1})
    assert parse(Outer, {"name": "x", "rate": 1e-3, "inner": {"limit": None}}, "").rate == 0.001


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "top.name: this setting is required"),
        ({"name": 3}, "top.name: a text is expected, not 3"),
        ({"name": "x", "raet": 1}, "top.raet: unknown setting; did you mean 'rate'"),
        ({"name": "x", "rate": float("nan")}, "top.rate: nan is not a finite number"),
        ({"name": "x", "rate": True}, "top.rate: a number is expected, not True"),
        ({"name": "x", "kind": "c"}, "top.kind: one of a, b; not 'c'"),
        ({"name": "x", "rate": -1}, "top.rate: -1 is out of range; it can be 0 or more"),
        ({"name": "x", "inner": {"limit": 0}}, "top.inner.limit: 0 is out of range; it can be 1 or more"),
        ({"name": "x", "inner": {"limit": 1.5}}, "top.inner.limit: a whole number is expected, not 1.5"),
        ({"name": "x", "inner": 3}, "top.inner: a mapping"),
        ({"name": "x", "parts": "p"}, "top.parts: a list"),
    ],
)
def test_mistakes_are_named_by_their_key(given, message):
    with pytest.raises(UniDPOError) as caught:
        parse(Outer, given, "top")
    assert message in str(caught.value)


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UniDPOError) as caught:
        parse(Outer, {"raet": 1, "kind": "c", "inner": {"limit": 0, "lmit": 1}}, "")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "raet",
        "kind",
        "inner.limit",
        "inner.lmit",
        "name",
    ]


def test_an_instance_made_in_python_has_its_ranges_too():
    @dataclass
    class Ranged:
        rate: Positive = 1.0
        text: str = ""

    check_ranges(Ranged(0.5))
    with pytest.raises(UniDPOError, match=r"^rate: 0 is out of range; it can be above 0$"):
        check_ranges(Ranged(0))


def test_what_the_command_line_says_takes_the_place_of_what_the_file_says():
    raw = {"name": "x", "rate": 1, "inner": {"limit": 4, "other": "y"}}
    given = ["rate=1e-3", "inner.limit=null", "free={k: 1}", "free.deep.l=[2]", "name=a=b"]
    changed = {
        "name": "a=b",
        "rate": 1e-3,
        "inner": {"limit": None, "other": "y"},
        "free": {"k": 1, "deep": {"l": [2]}},
    }
    assert override(raw, given) == changed
    assert raw == {"name": "x", "rate": 1, "inner": {"limit": 4, "other": "y"}}


@pytest.mark.parametrize("item", ["name", "=x", "name.first=x", "inner.=x", "rate=[1"])
def test_what_is_no_setting_of_the_command_line_is_named(item):
    with pytest.raises(UniDPOError) as caught:
        override({"name": "x", "inner": {}}, [item])
    assert repr(item) in str(caught.value)


def test_runtime_settings_stay_out_of_the_fingerprint():
    assert "speed" not in fingerprinted(Outer("x"))
    assert fingerprinted(Outer("x"))["name"] == "x"
