"""JSON schemas of configurations, by which editors complete and check them."""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from uni_dpo.settings.options import parts_of, settable
from uni_dpo.settings.sources import KnownSetting

Schema = dict[str, Any]


def schema_of(cls: Any) -> Schema:
    """Make the schema of a dataclass that `settings.options.parse` reads.

    Descriptions are those of the docstring's attributes.
    """
    hints = get_type_hints(cls, include_extras=True)
    texts = described(cls)
    properties, required = {}, []
    for key, field in settable(cls).items():
        properties[key] = kind_schema(hints[field.name])
        if text := texts.get(field.name):
            properties[key]["description"] = text
        if field.default is not dataclasses.MISSING and isinstance(field.default, str | int | float):
            properties[key]["default"] = field.default
        if field.default is field.default_factory is dataclasses.MISSING:
            required.append(key)
    return object_schema(properties, required)


def schema_of_known(settings: Iterable[KnownSetting], ranges: Any) -> Schema:
    """Make the schema of settings that were read from source; `ranges` has bounds of those whose types have none."""
    properties = {}
    for setting in settings:
        properties[setting.name] = kind_schema(setting.kind, ranges.get(setting.name, ()))
        if setting.help:
            properties[setting.name]["description"] = setting.help
    return object_schema(properties, [])


def object_schema(properties: Schema, required: Iterable[str], others: Schema | None = None) -> Schema:
    """Make the schema of a mapping whose other keys have values of the schema `others`; None allows no other key."""
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": others or False}
    return schema | ({"required": list(required)} if required else {})


def kind_schema(kind: Any, ranges: Iterable[object] = ()) -> Schema:
    """Make the schema of the values of a type, with its range or with `ranges`."""
    from pydantic import TypeAdapter

    parts, bounds = parts_of(kind)
    bounds = bounds or tuple(ranges)
    schemas: list[Schema] = []
    for part in parts:
        if dataclasses.is_dataclass(part):
            schemas.append(schema_of(part))
        elif part is Path:
            schemas.append({"type": "string"})
        elif getattr(part, "__origin__", None) in (list, tuple):
            schemas.append({"type": "array", "items": kind_schema(get_args(part)[0])})
        else:
            schemas.append(TypeAdapter(part).json_schema())
        if schemas[-1].get("type") in ("integer", "number"):
            schemas[-1] |= _limits(bounds)
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _limits(bounds: Iterable[object]) -> Schema:
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    found = ((keyword, getattr(bound, name, None)) for bound in bounds for name, keyword in names.items())
    return {keyword: limit for keyword, limit in found if limit is not None}


def described(cls: type) -> dict[str, str]:
    """Read what a class and its bases say of each attribute in their docstrings."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        text = inspect.cleandoc(part.__doc__ or "")
        _, _, attributes = text.partition("Attributes:\n")
        names: list[str] = []
        for line in attributes.splitlines():
            if begins := re.match(r"    (\w[\w, ]*): (.*)", line):
                names = begins[1].split(", ")
                found |= dict.fromkeys(names, begins[2].strip())
            elif line.startswith("        "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            elif line.strip():
                break
    return found
