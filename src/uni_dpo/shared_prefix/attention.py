"""Who sees whom in a shared sequence, and what computes it.

SDPA takes a shared sequence in two calls: the prompt, in which all is causal, by the kernel for that, which needs no
mask and skips the half that nobody sees; then the answers, over all before them, with a mask of their rows alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import image_token_id, text_config, unwrapped
from uni_dpo.shared_prefix.layout import PADDING, PREFIX

FLEX_ATTENTION = "flex_attention"
PREFIX_ATTENTION = "uni_dpo_prefix"
"""The name of SDPA in two calls among the attention implementations of transformers."""


def shared_attention(model: nn.Module, wanted: str) -> str:
    """The implementation by which the language model attends within shared sequences.

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


def visibility(segments: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule: causal, and no answer sees another.

    Every position sees itself, padding too, since a row of a softmax that sees nothing is not a number.

    Args:
        segments: (n, T) of `PADDING`, `PREFIX`, and `ANSWER` + i for each answer.

    Returns:
        A function of the indices of row, head (all alike), query and key; True where the query sees the key. It is
        FlexAttention's `mask_mod`.
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = segments[row, key]
        same = (segments[row, query] == seen) & (seen != PADDING)
        return ((key <= query) & (same | (seen == PREFIX))) | (key == query)

    return sees


def attention_mask(segments: Tensor, start: int = 0) -> Tensor:
    """`visibility` of the keys from every query at `start` or later: (n, 1, T − start, T), boolean."""
    rows, length = segments.shape
    row = torch.arange(rows, device=segments.device)[:, None, None, None]
    position = torch.arange(length, device=segments.device)
    return visibility(segments)(row, torch.zeros_like(row), position[start:, None], position)


def mask_for(model: nn.Module, segments: Tensor) -> Any:
    """The mask as the language model's attention takes it: boolean for SDPA, additive for eager code, or by blocks."""
    attention = text_config(model)._attn_implementation
    if attention == FLEX_ATTENTION:
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = segments.shape
        return create_block_mask(visibility(segments), rows, None, length, length, device=segments.device)
    if attention == PREFIX_ATTENTION:
        return attention_mask(segments, start=_prompt_length(segments))
    mask = attention_mask(segments)
    if attention != "eager":
        return mask
    dtype = unwrapped(model).dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


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
    if prompt == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    causal = settings | {"is_causal": True}
    before = (part[:, :, :prompt] for part in (query, key, value))
    prompts, _ = sdpa_attention_forward(module, *before, None, **causal)
    answers, _ = sdpa_attention_forward(module, query[:, :, prompt:], key, value, attention_mask, **settings)
    return torch.cat([prompts, answers], 1), None
