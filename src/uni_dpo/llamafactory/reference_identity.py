"""What changes reference log-probabilities and image features, beside the answers and pixels themselves."""

from pathlib import Path
from typing import Any

import torch
import transformers
from llamafactory.extras.env import VERSION

from uni_dpo import __version__
from uni_dpo.storage.identity import file_stamps

RANK_SETTINGS = ("device_map", "cache_dir", "offload_folder")
"""Model arguments that say where things are, not what they are."""


def reference_identity(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Everything but the pairs that changes reference log-probabilities.

    Args:
        model_args: LlamaFactory's, as are `data_args`, `training_args` and `finetuning_args`.
    """
    model = finetuning_args.ref_model or model_args.model_name_or_path
    adapters = finetuning_args.ref_model_adapters if finetuning_args.ref_model else model_args.adapter_name_or_path
    identity = _model_identity(model, adapters, model_args, training_args)
    if adapters and not finetuning_args.ref_model:
        merged = finetuning_args.create_new_adapter
        identity["adapters of the reference"] = "merged" if merged else "beside the weights"
    return {
        **identity,
        "quantization of the reference": finetuning_args.ref_model_quantization_bit,
        "template": data_args.template,
        "cutoff": data_args.cutoff_len,
        "pair_forward": [finetuning_args.pair_forward, finetuning_args.pair_attention],
        "averaged": finetuning_args.averages_logps,
    }


def vision_identity(model_args: Any, training_args: Any) -> dict[str, Any]:
    """Everything but the pixels that changes the image features of the policy, whose vision is frozen.

    Args:
        model_args: LlamaFactory's, as are `training_args`.
    """
    return _model_identity(model_args.model_name_or_path, model_args.adapter_name_or_path, model_args, training_args)


def _model_identity(
    model: str, adapters: str | list[str] | None, model_args: Any, training_args: Any
) -> dict[str, Any]:
    settings = {name: value for name, value in model_args.to_dict().items() if name not in RANK_SETTINGS}
    return {
        "model": {model: _files(model, "config.json", model_args)},
        "adapters": {name: _files(name, "adapter_config.json", model_args) for name in _listed(adapters)},
        "settings": settings,
        "precision": [training_args.bf16, training_args.fp16, training_args.device.type],
        "versions": [__version__, VERSION, transformers.__version__, torch.__version__],
    }


def _listed(names: str | list[str] | None) -> list[str]:
    return names.split(",") if isinstance(names, str) else list(names or [])


def _files(name: str, config: str, model_args: Any) -> Any:
    """What a checkpoint is made of: names, sizes and times of its files, or the commit of a downloaded one."""
    if not Path(name).is_dir():
        revision, cache = model_args.model_revision, model_args.cache_dir
        found = transformers.utils.cached_file(name, config, cache_dir=cache, revision=revision)
        return Path(found).parent.name
    return file_stamps(name)
