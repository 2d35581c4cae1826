"""From a mapping to a frozen dataclass, with every mistake named by its key.

A range is part of a field's type: `steps: Count = 100`, `top_p: Annotated[float, Gt(0), Le(1)] = 1.0`.
"""

import dataclasses
import math
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.settings.reading import FaultCollector, SettingsError, located, override, read_mapping

T = TypeVar("T")
Finite = Annotated[float, Interval()]
Count = Annotated[int, Ge(1)]
NotNegative = Annotated[float, Ge(0)]
Seed = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Argument = Annotated[Path, "argument"]
"""A path that a command line gives without its name."""
ImageRoot = Annotated[Path | None, "--image-root --media-dir"]
"""Where image paths start, under both names that a command line has for it."""
TopP = Annotated[float, Gt(0), Le(1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of a model's weights; `auto` is the checkpoint's own."""

_BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("{} or more", operator.ge),
    "gt": ("above {}", operator.gt),
    "le": ("{} at most", operator.le),
    "lt": ("below {}", operator.lt),
}
"""What a bound of annotated_types calls its limit → how it is said, and what it asks of a value."""
_TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def runtime(default: Any) -> Any:
    """Declare a field that changes how fast or where the work is done, never what comes out of it.

    Such fields stay out of a stage's fingerprint, so changing one makes nothing stale.
    """
    return dataclasses.field(default=default, metadata={"runtime": True})


def added(default: Any) -> Any:
    """Declare a field that came later: at its default it stays out of a fingerprint, so old work stays good."""
    return dataclasses.field(default=default, metadata={"added": True})


def named(key: str | None, default: Any) -> Any:
    """Declare a field that a file calls `key`; with None no file can set it."""
    return dataclasses.field(default=default, metadata={"key": key})


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML or JSON file, `key=value` overrides in the place of what it says, into a dataclass as `parse` does.

    Paths in it are relative to the working directory.

    Raises:
        UniDPOError: no such file, or all settings that are unknown, missing, of the wrong type or out of range.
    """
    raw = read_mapping(path)
    given = override(raw, overrides)
    with located(given):
        return parse(cls, given, "")


def parse(cls: type[T], raw: object, where: str) -> T:
    """Build the dataclass `cls` from a mapping.

    Args:
        cls: fields of type str, int, float, bool, Path, Literal, optional, list of str, mapping, or dataclass; each
            with a range or without.
        raw: the mapping as YAML gave it; None stands for an empty one.
        where: the dotted key that leads to the mapping, for messages.

    Raises:
        SettingsError: every unknown or missing key, and every value of the wrong type or out of range.
    """
    raw = {} if raw is None else raw
    if not isinstance(raw, Mapping):
        raise SettingsError([(where, f"a mapping of settings is expected, not {raw!r}")])
    fields, hints = settable(cls), get_type_hints(cls, include_extras=True)
    found, values = FaultCollector(), {}
    for key, value in raw.items():
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; known: {', '.join(fields) or 'none'}"
            found.faults.append((_join(where, key), f"unknown setting{hint}"))
            continue
        with found.collecting():
            values[fields[key].name] = _convert(hints[fields[key].name], value, _join(where, key))
    for name, field in fields.items():
        if name not in raw and field.default is field.default_factory is dataclasses.MISSING:
            found.faults.append((_join(where, name), "this setting is required"))
    found.raise_any()
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError([(_join(where, key) if key else where, text) for key, text in error.faults]) from None
    except UniDPOError as error:
        raise SettingsError([(where if where and not str(error).startswith(where) else "", str(error))]) from None


def check_ranges(instance: Any) -> None:
    """See that the fields of a dataclass instance lie in the ranges of their types.

    Raises:
        SettingsError: every value that does not, or that is no finite number.
    """
    found = FaultCollector()
    for name, kind in get_type_hints(type(instance), include_extras=True).items():
        value, (parts, bounds) = getattr(instance, name, None), parts_of(kind)
        if bounds and {*parts} <= {int, float, type(None)}:
            with found.collecting():
                if isinstance(value, str):
                    raise SettingsError([(name, f"a number is expected, not {value!r}")])
                _convert(kind, value, name)
    found.raise_any()


def fingerprinted(options: Any) -> dict[str, Any]:
    """Give the settings of a dataclass instance that decide what comes out, as JSON values."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("runtime")
        and not (field.metadata.get("added") and getattr(options, field.name) == field.default)
    }


def as_number(value: Any) -> float | None:
    """Return a number, or the number that a text stands for, as LlamaFactory reads both; None for all else."""
    try:
        return None if isinstance(value, bool | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def range_fault(value: float, bounds: Sequence[object]) -> str | None:
    """Say what is wrong with a number by the range of its type (bounds of annotated_types), or nothing."""
    if not math.isfinite(value):
        return f"{value!r} is not a finite number"
    limits = [
        (getattr(bound, name), *rule)
        for bound in bounds
        for name, rule in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    if all(holds(value, limit) for limit, _, holds in limits):
        return None
    return f"{value!r} is out of range; it can be {' and '.join(words.format(limit) for limit, words, _ in limits)}"


def parts_of(kind: Any) -> tuple[list[Any], tuple[object, ...]]:
    """Take a type apart: the types of a union (one otherwise, None among them), and the range that goes with them."""
    bounds: tuple[object, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        bounds = tuple(rest)
    if get_origin(kind) in (Union, types.UnionType):
        pieces = [parts_of(part) for part in get_args(kind)]
        return [part for piece, _ in pieces for part in piece], bounds + tuple(b for _, more in pieces for b in more)
    return [kind], bounds


def settable(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that a file may set, by what it calls them."""
    named = {field.metadata.get("key", field.name): field for field in dataclasses.fields(cls) if field.init}
    return {key: field for key, field in named.items() if key is not None}


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(kind: Any, value: object, where: str) -> Any:
    parts, bounds = parts_of(kind)
    if value is None and type(None) in parts:
        return None
    part = next((part for part in parts if part is not type(None)), Any)
    origin = get_origin(part)
    if dataclasses.is_dataclass(part):
        return parse(part, value, where)
    if origin is Literal:
        choices = get_args(part)
        if not isinstance(value, str | int) or value not in choices:
            meant = did_you_mean(value, choices) if isinstance(value, str) else ""
            raise SettingsError([(where, f"one of {', '.join(map(str, choices))}; not {value!r}{meant}")])
        return value
    if origin is tuple or origin is list:
        if not isinstance(value, list | tuple):
            raise SettingsError([(where, f"a list is expected, not {value!r}")])
        found, items = FaultCollector(), []
        for index, one in enumerate(value):
            with found.collecting():
                items.append(_convert(get_args(part)[0], one, f"{where}[{index}]"))
        found.raise_any()
        return tuple(items)
    return _convert_scalar(part, value, bounds, where)


def _convert_scalar(kind: Any, value: object, bounds: Sequence[object], where: str) -> Any:
    converted: Any = None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    shown: Any = value
    if kind is float and isinstance(value, str):  # a flag's text
        converted = shown = as_number(value)
    elif kind is float and number:
        converted = float(value)  # type: ignore[arg-type]
    elif kind is Path and isinstance(value, str | Path) and str(value):
        converted = Path(value)
    elif kind is int and number and not isinstance(value, float):
        converted = value
    elif kind not in (float, int, Path) and (kind is Any or isinstance(value, get_origin(kind) or kind)):
        return value
    if converted is None:
        name = _TYPES.get(kind) or ("a mapping" if get_origin(kind) is not None else f"a value of type {kind}")
        raise SettingsError([(where, f"{name} is expected, not {value!r}")])
    if isinstance(converted, int | float) and (fault := range_fault(shown, bounds)):
        raise SettingsError([(where, fault)])
    return converted
