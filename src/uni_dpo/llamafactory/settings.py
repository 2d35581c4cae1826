"""What is seen to be wrong in a run's settings before LlamaFactory acts on them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.llamafactory.seams import train_arguments


def check_settings(given: dict[str, Any] | list[str]) -> None:
    """Look at the settings of a registered LlamaFactory, as `launch.read_arguments` returns them.

    Raises:
        UniDPOError: a setting that LlamaFactory does not know, or a template that the model cannot follow.
    """
    from llamafactory.extras.misc import is_env_enabled

    settings, unknown = _flags(given) if isinstance(given, list) else (given, _unknown_keys(given))
    if unknown and not is_env_enabled("ALLOW_EXTRA_ARGS") and not is_env_enabled("USE_MCA"):
        raise UniDPOError("\n".join(f"{name}: unknown setting{did_you_mean(name, _names())}" for name in unknown))
    _check_template(settings)


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

    template = TEMPLATES.get(str(settings.get("template")))
    if template is None or template.mm_plugin.image_token is None or settings.get("stage") == "pt":
        return
    folder = Path(str(settings.get("model_name_or_path")))
    if folder.is_dir() and not any(folder.glob("*processor_config.json")):
        raise UniDPOError(
            f"template: {settings['template']} reads images, and {folder} has no image processor; for a text-only "
            "model set `template` to its own, as `template: qwen` for Qwen2 and Qwen2.5 (docs/models.md)"
        )
