"""What is seen to be wrong in a run's settings before LlamaFactory acts on them."""

import dataclasses
import math
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.llamafactory.seams import train_arguments


def check_settings(given: dict[str, Any] | list[str]) -> None:
    """Look at the settings of a registered LlamaFactory, as `launch.read_arguments` returns them.

    Raises:
        UniDPOError: a setting that LlamaFactory does not know, a value that is not among those it takes or no number
            where it wants one, or a template that is not there or that the model cannot follow.
    """
    from llamafactory.extras.misc import is_env_enabled

    settings, unknown = _flags(given) if isinstance(given, list) else (given, _unknown_keys(given))
    if unknown and not is_env_enabled("ALLOW_EXTRA_ARGS") and not is_env_enabled("USE_MCA"):
        raise UniDPOError("\n".join(f"{name}: unknown setting{did_you_mean(name, _names())}" for name in unknown))
    kinds = _kinds()
    faults = [_value_fault(name, value, kinds.get(name, [])) for name, value in settings.items()]
    if any(faults):
        raise UniDPOError("\n".join(filter(None, faults)))
    _check_template(settings)


def _value_fault(name: str, value: Any, kinds: list[Any]) -> str | None:
    """What is wrong with a value by the type of its setting; LlamaFactory takes whatever a configuration file says."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}: {value!r} is not a finite number"
    if not isinstance(value, str):
        return None
    choices = [str(choice) for kind in kinds for choice in _choices(kind)]
    if choices and value not in choices:
        return (
            f"{name}: {value!r} is none of its values{did_you_mean(value, choices) or '; known: ' + ', '.join(choices)}"
        )
    if kinds and {*kinds} <= {int, float, type(None)} and not _is_number(value):
        return f"{name}: {value!r} is not a finite number"
    return None


def _kinds() -> dict[str, list[Any]]:
    """The types that a value of each setting may have, one by one."""
    hints = {name: hint for group in train_arguments() for name, hint in get_type_hints(group).items()}
    unions = (Union, types.UnionType)
    return {name: list(get_args(hint)) if get_origin(hint) in unions else [hint] for name, hint in hints.items()}


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [member.value for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _names() -> set[str]:
    return {field.name for group in train_arguments() for field in dataclasses.fields(group) if field.init}


def _unknown_keys(settings: Mapping[str, Any]) -> list[str]:
    return sorted(settings.keys() - _names())


def _flags(given: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value` flags as settings, and the keys that are none."""
    from transformers import HfArgumentParser

    settings, rest = HfArgumentParser(train_arguments()).parse_known_args(given)
    flags = [item for item in rest if item.startswith("--")] or rest
    return vars(settings), [flag.removeprefix("--").partition("=")[0] for flag in flags]


def _check_template(settings: Mapping[str, Any]) -> None:
    """A template with images asks for the checkpoint's processor whatever the data; a text-only model has none."""
    from llamafactory.data import TEMPLATES

    name = settings.get("template")
    template = TEMPLATES.get(str(name))
    if name is not None and template is None:
        raise UniDPOError(f"template: LlamaFactory has none called {name!r}{did_you_mean(name, TEMPLATES)}")
    if template is None or template.mm_plugin.image_token is None or settings.get("stage") == "pt":
        return
    folder = Path(str(settings.get("model_name_or_path")))
    if folder.is_dir() and not any(folder.glob("*processor_config.json")):
        raise UniDPOError(
            f"template: {settings['template']} reads images, and {folder} has no image processor; for a text-only "
            "model set `template` to its own, as `template: qwen` for Qwen2 and Qwen2.5 (docs/models.md)"
        )
