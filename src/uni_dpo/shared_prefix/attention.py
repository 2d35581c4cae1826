"""Who sees whom in a shared sequence, and what computes it.

SDPA takes a shared sequence in two calls: the prompt, in which all is causal, by the kernel for that, which needs no
mask and skips the half that nobody sees; then the answers, over all before them, with a mask of their rows alone.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from uni_dpo.shared_prefix.layout import PADDING, PREFIX

FLEX_ATTENTION = "flex_attention"
PREFIX_ATTENTION = "uni_dpo_prefix"
"""The name of SDPA in two calls among the attention implementations of transformers."""


def shared_attention(model: nn.Module, wanted: str) -> str:
    """Return the implementation by which the language model attends within shared sequences.

    FlexAttention where it is wanted; SDPA in two calls where the model was loaded with SDPA, and in place of
    flash-attention, which takes no mask, where images make the prompts long. Text models keep flash-attention, and
    eager code stays eager.

    Args:
        model: policy or reference, wrapped or not.
        wanted: `flex_attention` or `sdpa`.
    """
    loaded = text_config(model)._attn_implementation
    if wanted == FLEX_ATTENTION:
        return FLEX_ATTENTION
    if loaded == "sdpa" or (loaded.startswith("flash_attention") and image_token_id(model) is not None):
        return PREFIX_ATTENTION
    return loaded


def use_attention(model: nn.Module, wanted: str) -> None:
    """Let the language model attend by `shared_attention`; other inputs are attended as SDPA does."""
    attention = shared_attention(model, wanted)
    if attention == PREFIX_ATTENTION:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
        AttentionMaskInterface.register(PREFIX_ATTENTION, sdpa_mask)
    text_config(model)._attn_implementation = attention


def visibility(segments: Tensor, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule: causal, and no answer sees another.

    Every position sees itself, padding too, since a row of a softmax that sees nothing is not a number.

    Args:
        segments: (n, T) of `PADDING`, `PREFIX`, and `ANSWER` + i for each answer.
        window: how many positions a query sees, back from itself, as if its answer followed the prompt at once; None
            is all.

    Returns:
        A function of the indices of row, head (all alike), query and key; True where the query sees the key. It is
        FlexAttention's `mask_mod`.
    """
    places = None if window is None else _places(segments)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = segments[row, key]
        same = (segments[row, query] == seen) & (seen != PADDING)
        shown = (key <= query) & (same | (seen == PREFIX))
        if places is not None and window is not None:
            shown = shown & (places[row, query] - places[row, key] < window)
        return shown | (key == query)

    return sees


def _places(segments: Tensor) -> Tensor:
    """The place of every position, (n, T), in the sequence of its own prompt and answer."""
    column = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    offset = column - torch.where(begins, column, 0).cummax(1).values
    return torch.where(segments == PREFIX, column, (segments == PREFIX).sum(1, keepdim=True) + offset)


def attention_mask(segments: Tensor, start: int = 0, window: int | None = None) -> Tensor:
    """Return `visibility` of the keys from every query at `start` or later: (n, 1, T − start, T), boolean."""
    rows, length = segments.shape
    row = torch.arange(rows, device=segments.device)[:, None, None, None]
    position = torch.arange(length, device=segments.device)
    return visibility(segments, window)(row, torch.zeros_like(row), position[start:, None], position)


def mask_for(model: nn.Module, segments: Tensor) -> Any:
    """Return the mask as the language model takes it: one, or by name where its layers see differently far."""
    masks = {kind: _mask(model, segments, window) for kind, window in attention_windows(model).items()}
    return masks if len(masks) > 1 or text_config(model).model_type in MASKS_BY_NAME else next(iter(masks.values()))


def _mask(model: nn.Module, segments: Tensor, window: int | None) -> Any:
    """A mask as the model's attention takes it: boolean for SDPA, additive for eager code, or by blocks."""
    attention = text_config(model)._attn_implementation
    if attention == FLEX_ATTENTION:
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = segments.shape
        return create_block_mask(visibility(segments, window), rows, None, length, length, device=segments.device)
    if attention == PREFIX_ATTENTION and window is None:
        return attention_mask(segments, start=_prompt_length(segments))
    mask = attention_mask(segments, window=window)
    if attention != "eager":
        return mask
    dtype = unwrapped(model).dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


_ADDED: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask as SDPA adds it to its scores, made and kept once rather than in every layer."""
    added = _ADDED.get(mask)
    if added is None or added.dtype != dtype:
        added = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)
        _ADDED[mask] = added
    return added


def _prompt_length(segments: Tensor) -> int:
    """How many positions are of the prompt in every row."""
    return int((segments == PREFIX).all(0).int().cumprod(0).sum())


def prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' SDPA does, in two calls where the mask lacks rows: those of a prompt that is causal.

    Args:
        module: the layer.
        query: (n, heads, T, d), as are `key` and `value`.
        attention_mask: (n, 1, T − prompt, T), or what transformers itself makes.

    Returns:
        (n, T, heads, d), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    prompt = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if attention_mask is None or prompt == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    causal = settings | {"is_causal": True}
    before = (part[:, :, :prompt] for part in (query, key, value))
    prompts, _ = sdpa_attention_forward(module, *before, None, **causal)
    added = added_mask(attention_mask, query.dtype)
    answers, _ = sdpa_attention_forward(module, query[:, :, prompt:], key, value, added, **settings)
    return torch.cat([prompts, answers], 1), None


TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
QWEN_VL_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LLAVA_FAMILIES = ("llava", "llava_next")
MASKS_BY_NAME = ("gemma3_text",)
"""Language models that take a mask for every kind of layer by its name, also where all layers are of one kind."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""What transformers calls the kinds of layers that take a mask."""

MASKED_ATTENTION = ("sdpa", "eager", "flex_attention", "uni_dpo_prefix")
"""Attention implementations that take any mask."""


def why_not_shared(model: nn.Module, attention: str | None = None) -> str | None:
    """Say in one line why `model` can't be trained on shared sequences; None if it can.

    Proved equal to two sequences per pair, by tests: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-1.5, LLaVA-NeXT, and
    Llama, Mistral, Qwen2, Qwen3 and Gemma 3 as text models, with full attention or sliding windows, through SDPA,
    FlexAttention or eager code.

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
    if others := attention_windows(model).keys() - {FULL, SLIDING}:
        return f"it has {' and '.join(sorted(others))} layers"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts tokens of its own in front"
    return None


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside DDP, DeepSpeed and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(model: nn.Module) -> bool:
    """Tell whether each rank holds a part of the model's weights.

    By ZeRO-3 or FSDP, and gathers the others to run it.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model; its `_attn_implementation` is read at every forward pass."""
    return unwrapped(model).config.get_text_config()


def attention_windows(model: nn.Module) -> dict[str, int | None]:
    """Return the kinds of the language model's layers, and how many positions each sees; None where it sees all."""
    text = text_config(model)
    window = getattr(text, "sliding_window", None)
    if text.model_type == "mistral":  # one mask for all layers
        return {FULL if window is None else SLIDING: window}
    kinds = set(getattr(text, "layer_types", None) or (FULL,))
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def _family(model: nn.Module) -> str:
    """The class's word: transformers 4.57 lets a loaded Qwen-VL configuration answer with its text model's type."""
    return type(unwrapped(model).config).model_type


def image_token_id(model: nn.Module) -> int | None:
    """Return the id that stands for image features in `input_ids`; None for text models."""
    if _family(model) in TEXT_FAMILIES:
        return None
    config = unwrapped(model).config
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)


def output_head(model: nn.Module) -> nn.Module:
    """Return the projection onto the vocabulary."""
    return unwrapped(model).get_output_embeddings()


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what makes image features: the tower, the projector, LLaVA-NeXT's line break. Empty for text models."""
    inner = getattr(unwrapped(model), "model", None)
    if inner is None or not hasattr(inner, "get_image_features"):
        return {}
    return {name: parameter for name, parameter in inner.named_parameters() if not name.startswith("language_model.")}


def keys_worth_a_token(model: nn.Module) -> float:
    """Tell how many attended keys cost as much as the rest of a token's way through the language model.

    The ratio of the multiplications of a layer's linear maps to those of attention to one key.
    """
    text = text_config(model)
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = heads * head_size
    projections = text.hidden_size * (2 * width + 2 * text.num_key_value_heads * head_size)
    return (projections + 3 * text.hidden_size * text.intermediate_size) / (2 * width)
