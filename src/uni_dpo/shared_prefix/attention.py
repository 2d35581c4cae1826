"""Who sees whom in a shared sequence, and what computes it.

SDPA takes a shared sequence in two calls: the prompt, in which all is causal, by the kernel for that, which needs no
mask and skips the half that nobody sees; then the answers, over all before them, with a mask of their rows alone.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from uni_dpo.shared_prefix.families import (
    FLEX_ATTENTION,
    MASKS_BY_NAME,
    PREFIX_ATTENTION,
    attention_windows,
    image_token_id,
    looks_both_ways,
    text_config,
    unwrapped,
)
from uni_dpo.shared_prefix.layout import PADDING, PREFIX
from uni_dpo.shared_prefix.linear_attention import regroup


def shared_attention(model: nn.Module, wanted: str) -> str:
    """Return the implementation by which the language model attends within shared sequences.

    FlexAttention where it is wanted; SDPA in two calls where the model was loaded with SDPA, and in place of
    flash-attention, which takes no mask, where images make the prompts long. Text models keep flash-attention, and
    eager code stays eager.
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


def visibility(
    segments: Tensor, window: int | None = None, images: Tensor | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule: causal, and no answer sees another.

    Every position sees itself, padding too, since a row of a softmax that sees nothing is not a number.

    Args:
        segments: (n, T) of `PADDING`, `PREFIX`, and `ANSWER` + i for each answer.
        window: how many positions a query sees, back from itself, as if its answer followed the prompt at once; None
            is all.
        images: (n, T) the number of the image that a position is of, −1 where it is of none; None where images are
            causal as text is. An image sees all of itself, whatever the window.

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
        if images is not None:
            shown = shown | ((images[row, query] == images[row, key]) & (images[row, query] >= 0))
        return shown | (key == query)

    return sees


def _places(segments: Tensor) -> Tensor:
    """The place of every position, (n, T), in the sequence of its own prompt and answer."""
    column = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    offset = column - torch.where(begins, column, 0).cummax(1).values
    return torch.where(segments == PREFIX, column, (segments == PREFIX).sum(1, keepdim=True) + offset)


def attention_mask(segments: Tensor, start: int = 0, window: int | None = None, images: Tensor | None = None) -> Tensor:
    """Return `visibility` of the keys from every query at `start` or later: (n, 1, T − start, T), boolean."""
    rows, length = segments.shape
    row = torch.arange(rows, device=segments.device)[:, None, None, None]
    position = torch.arange(length, device=segments.device)
    return visibility(segments, window, images)(row, torch.zeros_like(row), position[start:, None], position)


def seen_by(model: nn.Module, segments: Tensor, ids: Tensor) -> dict[str, Any]:
    """Return the inputs that tell a model who sees whom; see `mask_for`."""
    return {"attention_mask": mask_for(model, segments, ids), **regroup(model, segments)}


def mask_for(model: nn.Module, segments: Tensor, ids: Tensor) -> Any:
    """Return the mask as the language model takes it: one, or by name where its layers see differently far.

    Args:
        segments: (n, T), see `visibility`.
        ids: (n, T) the tokens.
    """
    whole = looks_both_ways(model)
    images = _images(ids.eq(image_token_id(model) or -1), segments) if whole else None
    masks = {
        kind: _mask(model, segments, window, images if kind in whole else None)
        for kind, window in attention_windows(model).items()
    }
    return masks if len(masks) > 1 or text_config(model).model_type in MASKS_BY_NAME else next(iter(masks.values()))


def _images(is_image: Tensor, segments: Tensor) -> Tensor | None:
    """Number the images, neighbouring image tokens of a prompt, from 0 in each row; None where there are none."""
    is_image = is_image & (segments == PREFIX)
    if not is_image.any():
        return None
    begins = is_image & ~nn.functional.pad(is_image[:, :-1], (1, 0))
    return torch.where(is_image, begins.cumsum(1) - 1, -1)


def _mask(model: nn.Module, segments: Tensor, window: int | None, images: Tensor | None) -> Any:
    """A mask as the model's attention takes it: boolean for SDPA, additive for eager code, or by blocks."""
    attention = text_config(model)._attn_implementation
    if attention == FLEX_ATTENTION:
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = segments.shape
        sees = visibility(segments, window, images)
        return create_block_mask(sees, rows, None, length, length, device=segments.device)
    if attention == PREFIX_ATTENTION and window is None and images is None:
        return attention_mask(segments, start=_prompt_length(segments))
    mask = attention_mask(segments, window=window, images=images)
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
