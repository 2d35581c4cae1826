"""What was trained on what, for the page of a run: the parts that any library's arguments have."""

import dataclasses
import platform
from typing import Any

import torch

from uni_dpo.storage.identity import versions_of

PACKAGES = ("uni-dpo", "llamafactory", "transformers", "torch", "trl", "peft", "accelerate", "deepspeed", "datasets")
SECRET = ("_token", "api_key", "secret", "password", "webhook_url")
"""Parts of the names of settings that are written nowhere."""
_DERIVED = (
    "block_diag_attn",
    "compute_dtype",
    "device_map",
    "model_max_length",
    "logging_dir",
    "local_rank",
    "run_name",
)
"""Settings that a library works out for itself."""


def changed_settings(*groups: Any) -> dict[str, Any]:
    """Return the settings of dataclasses that differ from their defaults; no keys and tokens."""
    found = {}
    for group in groups:
        for item in dataclasses.fields(group):
            value = getattr(group, item.name, None)
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            named = item.init and item.name not in _DERIVED and not any(part in item.name for part in SECRET)
            listed = isinstance(value, list) and (not value or ",".join(map(str, value)) == default)
            if named and value != default and not listed and isinstance(value, str | int | float | bool | list):
                found[item.name] = getattr(value, "value", value)
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a training rests on, those that are installed."""
    return versions_of(PACKAGES)


def device_words(training_args: Any) -> str:
    """Return how many devices of what kind a training runs on."""
    kind = training_args.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return f"{training_args.world_size} × {kind} ({name})"
