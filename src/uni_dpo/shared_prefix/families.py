"""Which transformers models take a pair as one sequence, and where their parts are."""

from typing import Any

from torch import nn

TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
QWEN_VL_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LLAVA_FAMILIES = ("llava", "llava_next")
MASKED_ATTENTION = ("sdpa", "eager", "flex_attention", "uni_dpo_prefix")
"""Attention implementations that take any mask."""


def why_not_shared(model: nn.Module, attention: str | None = None) -> str | None:
    """Say in one line why `model` can't be trained on shared sequences; None if it can.

    Proved equal to two sequences per pair, by tests: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-1.5, LLaVA-NeXT, and
    Llama, Mistral, Qwen2 and Qwen3 as text models, with full attention through SDPA, FlexAttention or eager code.

    Args:
        model: a causal language model of transformers, wrapped or not.
        attention: what will take the place of the attention that the language model was loaded with, if anything.
    """
    family = _family(model)
    if family not in (*TEXT_FAMILIES, *QWEN_VL_FAMILIES, *LLAVA_FAMILIES):
        return f"{family} models are not among those proved equal"
    if not type(unwrapped(model)).forward.__module__.startswith("transformers."):
        return "another library replaced its forward pass"
    text = text_config(model)
    if hasattr(text, "group_size_ratio"):
        return "shift_attn attends in groups"
    if family in LLAVA_FAMILIES and text.model_type not in TEXT_FAMILIES:
        return f"{text.model_type} language models are not among those proved equal"
    attention = attention or text._attn_implementation
    if attention not in MASKED_ATTENTION:
        return f"{attention} takes no custom mask (flash_attn: sdpa does)"
    layer_types = getattr(text, "layer_types", None) or ()
    if any(kind != "full_attention" for kind in layer_types) or (
        text.model_type == "mistral" and text.sliding_window is not None
    ):
        return "its attention has a sliding window"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts tokens of its own in front"
    return None


def unwrapped(model: Any) -> Any:
    """The transformers model inside DDP, DeepSpeed and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of the model's weights, by ZeRO-3 or FSDP, and gathers the others to run it."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model; its `_attn_implementation` is read at every forward pass."""
    return unwrapped(model).config.get_text_config()


def _family(model: nn.Module) -> str:
    """The class's word: transformers 4.57 lets a loaded Qwen-VL configuration answer with its text model's type."""
    return type(unwrapped(model).config).model_type


def image_token_id(model: nn.Module) -> int | None:
    """The id that stands for image features in `input_ids`; None for text models."""
    if _family(model) in TEXT_FAMILIES:
        return None
    config = unwrapped(model).config
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)


def output_head(model: nn.Module) -> nn.Module:
    """The projection onto the vocabulary."""
    return unwrapped(model).get_output_embeddings()


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What makes image features: the tower, the projector, LLaVA-NeXT's line break. Empty for text models."""
    inner = getattr(unwrapped(model), "model", None)
    if inner is None or not hasattr(inner, "get_image_features"):
        return {}
    return {name: parameter for name, parameter in inner.named_parameters() if not name.startswith("language_model.")}


def keys_worth_a_token(model: nn.Module) -> float:
    """How many attended keys cost as much as the rest of a token's way through the language model.

    The ratio of the multiplications of a layer's linear maps to those of attention to one key.
    """
    text = text_config(model)
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = heads * head_size
    projections = text.hidden_size * (2 * width + 2 * text.num_key_value_heads * head_size)
    return (projections + 3 * text.hidden_size * text.intermediate_size) / (2 * width)
