"""From a YAML mapping to a frozen dataclass, with every mistake named by its key."""

import copy
import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from uni_dpo.errors import UniDPOError, did_you_mean

T = TypeVar("T")


def runtime(default: Any) -> Any:
    """A dataclass field that changes how fast or where the work is done, never what comes out of it.

    Such fields stay out of a stage's fingerprint, so changing one makes nothing stale.
    """
    return dataclasses.field(default=default, metadata={"runtime": True})


def added(default: Any) -> Any:
    """A dataclass field that came later: at its default it stays out of a fingerprint, so old work stays good."""
    return dataclasses.field(default=default, metadata={"added": True})


def parse(cls: type[T], raw: object, where: str) -> T:
    """Build the dataclass `cls` from a mapping.

    Args:
        cls: fields of type str, int, float, bool, Path, Literal, optional, list of str, mapping, or dataclass.
        raw: the mapping as YAML gave it; None stands for an empty one.
        where: the dotted key that leads to the mapping, for messages.

    Raises:
        UniDPOError: an unknown or missing key, or a value of the wrong type.
    """
    raw = {} if raw is None else raw
    if not isinstance(raw, Mapping):
        raise UniDPOError(f"{where}: a mapping of settings is expected, not {raw!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; known: {', '.join(fields) or 'none'}"
            raise UniDPOError(f"{_join(where, key)}: unknown setting{hint}")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in raw.items()}
    for name, field in fields.items():
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise UniDPOError(f"{_join(where, name)}: this setting is required")
    return cls(**values)


def read_mapping(path: str | Path, expected: str) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        expected: what the message says where the file holds something else.

    Raises:
        UniDPOError: there is no such file, or no mapping in it.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise UniDPOError(f"there is no config file {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UniDPOError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UniDPOError(f"{path}: {expected}")
    return raw


def override(raw: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """A mapping of settings with those of a command line put in.

    Args:
        given: `key=value`, the value in YAML; `reward.function=exact` reaches into a mapping.

    Raises:
        UniDPOError: something else than `key=value`, or a key that leads into what is no mapping.
    """
    import yaml

    changed = copy.deepcopy(dict(raw))
    for item in given:
        key, equals, value = item.partition("=")
        *outer, name = key.split(".")
        place: Any = changed
        for part in outer:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not equals or not name or not isinstance(place, dict):
            raise UniDPOError(f"{item!r}: `key=value` is expected, with a key of the config")
        try:
            place[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UniDPOError(f"{item!r}: the value is not valid YAML: {error}") from error
    return changed


def fingerprinted(options: Any) -> dict[str, Any]:
    """The settings of a dataclass instance that decide what comes out, as JSON values."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("runtime")
        and not (field.metadata.get("added") and getattr(options, field.name) == field.default)
    }


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(kind: Any, value: object, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
        return _convert(kind, value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise UniDPOError(f"{where}: one of {', '.join(map(str, get_args(kind)))}; not {value!r}")
        return value
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, where)  # type: ignore[arg-type]
    if origin is tuple or origin is list:
        item = get_args(kind)[0]
        if not isinstance(value, list | tuple):
            raise UniDPOError(f"{where}: a list is expected, not {value!r}")
        return tuple(_convert(item, part, f"{where}[{index}]") for index, part in enumerate(value))
    return _convert_scalar(kind, value, where)


def _convert_scalar(kind: Any, value: object, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif kind is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return _convert_scalar(float, float(value), where)
        except ValueError:
            pass
    elif kind is Path:
        if isinstance(value, str | Path) and str(value):
            return Path(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is Any or isinstance(value, get_origin(kind) or kind):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise UniDPOError(f"{where}: a value of type {name} is expected, not {value!r}")
