from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import fingerprinted, override, parse, runtime


@dataclass(frozen=True)
class Inner:
    limit: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    parts: list[str] = field(default_factory=list)
    free: Mapping[str, Any] = field(default_factory=dict)
    speed: int = runtime(1)


def test_values_of_every_kind_are_read():
    given = {"name": "x", "rate": 3, "kind": "b", "flag": True, "inner": {"limit": 4}, "parts": ["p"], "free": {"k": 1}}
    assert parse(Outer, given, "") == Outer("x", 3.0, "b", True, Inner(4), ("p",), {"k": 1})
    assert parse(Outer, {"name": "x", "rate": "1e-3", "inner": {"limit": None}}, "").rate == 0.001


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "top.name: this setting is required"),
        ({"name": 3}, "top.name: a value of type str"),
        ({"name": "x", "raet": 1}, "top.raet: unknown setting; did you mean 'rate'"),
        ({"name": "x", "rate": float("nan")}, "top.rate: a value of type float"),
        ({"name": "x", "rate": True}, "top.rate: a value of type float"),
        ({"name": "x", "kind": "c"}, "top.kind: one of a, b; not 'c'"),
        ({"name": "x", "inner": {"limit": 1.5}}, "top.inner.limit: a value of type int"),
        ({"name": "x", "inner": 3}, "top.inner: a mapping"),
        ({"name": "x", "parts": "p"}, "top.parts: a list"),
    ],
)
def test_mistakes_are_named_by_their_key(given, message):
    with pytest.raises(UniDPOError) as caught:
        parse(Outer, given, "top")
    assert message in str(caught.value)


def test_what_the_command_line_says_takes_the_place_of_what_the_file_says():
    raw = {"name": "x", "rate": 1, "inner": {"limit": 4, "other": "y"}}
    given = ["rate=1e-3", "inner.limit=null", "free={k: 1}", "free.deep.l=[2]", "name=a=b"]
    changed = {
        "name": "a=b",
        "rate": "1e-3",
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
