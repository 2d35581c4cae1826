"""What a training configuration says that matters to memory and time, with LlamaFactory's defaults for the rest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.plan.shapes import ModelShape, read_shape
from uni_dpo.settings.losses import compares, is_ours
from uni_dpo.settings.machine import is_true


@dataclass(frozen=True)
class PlannedRun:
    """The settings, by what they mean to a step; LlamaFactory has the same names for most of them."""

    model: ModelShape
    batch: int
    accumulation: int
    epochs: float
    max_steps: int
    full: bool
    lora_rank: int
    bf16: bool
    pure: bool
    quantized: int
    zero: int
    offload: bool
    optimizer: str
    checkpointing: bool
    tuned_vision: bool
    shared: bool
    grouped: bool
    reference: bool
    precomputed: bool
    images_kept: bool
    save_total_limit: int


def read_run(settings: Mapping[str, Any], folder: Path = Path()) -> PlannedRun:
    """Return what a configuration says, with LlamaFactory's defaults for what it does not say.

    Raises:
        UniDPOError: a setting is out of range, or the model is not known.
    """
    kind = str(settings.get("finetuning_type", "lora"))
    if settings.get("stage") != "dpo" or kind not in ("full", "lora"):
        raise UniDPOError(
            f"a plan knows stage: dpo with finetuning_type: full or lora; here stage: {settings.get('stage')}, "
            f"finetuning_type: {kind}"
        )
    loss = settings.get("pref_loss", "sigmoid")
    forward = settings.get("pair_forward", "auto")
    zero, offload = _deepspeed(settings.get("deepspeed"), folder)
    return PlannedRun(
        model=read_shape(str(settings.get("model_name_or_path", ""))),
        batch=_number(settings, "per_device_train_batch_size", 8, int),
        accumulation=_number(settings, "gradient_accumulation_steps", 1, int),
        epochs=_number(settings, "num_train_epochs", 3.0, float),
        max_steps=_number(settings, "max_steps", -1, int),
        full=kind == "full",
        lora_rank=_number(settings, "lora_rank", 8, int),
        bf16=is_true(settings.get("bf16")) or is_true(settings.get("fp16")) or is_true(settings.get("pure_bf16")),
        pure=is_true(settings.get("pure_bf16")),
        quantized=_number(settings, "quantization_bit", 0, int),
        zero=zero,
        offload=offload,
        optimizer=str(settings.get("optim", "adamw_torch")),
        checkpointing=not is_true(settings.get("disable_gradient_checkpointing")),
        tuned_vision=settings.get("freeze_vision_tower") is False,
        shared=forward == "shared_prefix" or (forward == "auto" and is_ours(loss)),
        grouped=is_true(settings.get("group_by_question")),
        reference=compares(loss),
        precomputed=is_true(settings.get("precompute_ref_log_probs")),
        images_kept=is_true(settings.get("keep_image_features")),
        save_total_limit=_number(settings, "save_total_limit", 0, int),
    )


def _deepspeed(value: Any, folder: Path) -> tuple[int, bool]:
    """The ZeRO stage of a DeepSpeed configuration, and whether the optimizer is kept in the machine's memory."""
    if not value:
        return 0, False
    try:
        path = folder / str(value)
        described = json.loads(path.read_text(encoding="utf-8") if path.is_file() else str(value))
        zero = described.get("zero_optimization", {})
        return int(zero.get("stage", 0)), zero.get("offload_optimizer", {}).get("device", "none") not in (None, "none")
    except (OSError, ValueError, AttributeError, TypeError):
        raise UniDPOError(f"deepspeed: {value} is no DeepSpeed configuration that can be read") from None


def _number(settings: Mapping[str, Any], name: str, default: Any, kind: Any) -> Any:
    value = settings.get(name)
    try:
        return default if value is None else kind(value)
    except (TypeError, ValueError):
        raise UniDPOError(f"{name}: {value!r} is no number") from None
