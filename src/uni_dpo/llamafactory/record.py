"""What was trained on what, for the page of a run."""

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

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
"""Settings that LlamaFactory works out for itself."""


def run_record(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Describe a run by LlamaFactory's four groups of arguments.

    Returns:
        `changed` (settings that differ from their defaults), `evidence` (see `Evidence.settings`), `versions`,
        `device`, `model`, `datasets`.
    """
    changed: dict[str, Any] = {}
    for group in (finetuning_args, training_args, data_args, model_args):
        changed |= _changed(group)
    return {
        "model": model_args.model_name_or_path,
        "datasets": {"train": data_args.dataset or [], "eval": data_args.eval_dataset or []},
        "changed": changed,
        "evidence": _evidence(finetuning_args, training_args),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": _device(training_args),
    }


def _changed(group: Any) -> dict[str, Any]:
    found = {}
    for item in dataclasses.fields(group):
        value = getattr(group, item.name, None)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        named = item.init and item.name not in _DERIVED and not any(part in item.name for part in SECRET)
        listed = isinstance(value, list) and (not value or ",".join(map(str, value)) == default)
        if named and value != default and not listed and isinstance(value, str | int | float | bool | list):
            found[item.name] = getattr(value, "value", value)
    return found


def _evidence(finetuning_args: Any, training_args: Any) -> dict[str, Any]:
    found = {
        "pref_loss": finetuning_args.pref_loss,
        "beta": finetuning_args.pref_beta,
        "learning_rate": training_args.learning_rate,
        "averaged": finetuning_args.averages_logps,
        "has_reference": finetuning_args.use_ref_model,
    }
    if finetuning_args.uses_uni_dpo:
        objective = finetuning_args.uni_dpo_config()
        found |= {name: getattr(objective, name) for name in ("eta", "tau_ref", "gamma", "nll_lambda", "tau_good")}
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device(training_args: Any) -> str:
    kind = training_args.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return f"{training_args.world_size} × {kind} ({name})"
