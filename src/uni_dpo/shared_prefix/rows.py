"""Rows that answer one prompt as one sequence, and the way back: for everyone who scores answers row by row.

Whoever samples or rates several answers to a question has them as rows of a batch that repeat its prompt and images.
Their hidden states are those of a run in which prompt and images stand once.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.logprobs import IGNORE_INDEX
from uni_dpo.shared_prefix.attention import seen_by, shared_attention, use_attention
from uni_dpo.shared_prefix.families import (
    PREFIX_ATTENTION,
    image_token_id,
    text_config,
    unwrapped,
    video_token_id,
    why_not_shared,
)
from uni_dpo.shared_prefix.layout import SETTING_KEYS, AnswerRow, SharedRow, lay_out
from uni_dpo.shared_prefix.media import IMAGE_KEYS, Media, media_dim, media_of_rows, same_media

KNOWN_KEYS = (
    *("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "second_per_grid_ts"),
    *("grids", "num_patches_per_image"),
    *SETTING_KEYS,
    *IMAGE_KEYS,
)

POSITIONED_BY = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
"""What sets the positions of tokens beside these themselves."""


@dataclass(frozen=True)
class SharedBatch:
    """A batch whose rows share their prompts.

    Attributes:
        inputs: of the model, the attention mask included.
        places: (rows, T) where each position of each row stands among the flattened shared positions; that of its
            first token where it is padding.
    """

    inputs: dict[str, Any]
    places: Tensor

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden states of the shared batch, (questions, T', D), as those of its rows: (rows, T, D)."""
        return hidden.flatten(0, 1)[self.places]


def share_rows(model: nn.Module, inputs: dict[str, Any], answers: Tensor) -> SharedBatch | None:
    """Lay the rows of a batch out with each prompt, and its images, only once.

    Args:
        model: a causal language model of transformers, wrapped or not, that attends by `use_attention`.
        inputs: its inputs: prompts padded on the left, or on the right behind their answers.
        answers: (rows, T) true on the answers' tokens.

    Returns:
        None where no two rows have the same prompt, the model does not attend so, or the inputs can't be laid out so.
    """
    if text_config(model)._attn_implementation not in (PREFIX_ATTENTION, "eager"):
        return None
    if any(name not in KNOWN_KEYS and value is not None for name, value in inputs.items()):
        return None
    media = media_of_rows(model, inputs)
    if media is None:
        return None
    batch = {**inputs, "position_ids": _positions(model, inputs)}
    batch["labels"] = torch.where(answers, inputs["input_ids"], IGNORE_INDEX)
    rows = [AnswerRow.of(batch, row) for row in range(len(answers))]
    groups = _groups(rows, media)
    if len(groups) == len(rows):
        return None
    sequences = [SharedRow([(row, rows[row]) for row in group]) for group in groups]
    laid = lay_out(sequences, batch, image_token_id(model))
    if isinstance(laid, str):
        return None
    shared, places = laid
    for name in IMAGE_KEYS:
        if parts := [media[group[0]][name] for group in groups if name in media[group[0]]]:
            shared[name] = torch.cat(parts, media_dim(name, inputs))
    shared |= {name: inputs[name] for name in SETTING_KEYS if name in inputs}
    shared |= seen_by(model, shared.pop("segments"), shared["input_ids"])
    table = torch.stack([place[0] for place in places])[:, None].repeat(1, answers.shape[1])
    table[inputs["attention_mask"].bool()] = torch.cat(places)
    return SharedBatch(shared, table)


def _groups(rows: list[AnswerRow], media: list[Media]) -> list[list[int]]:
    """The rows of each question: those with the same prompt, images and videos."""
    groups: dict[bytes, list[list[int]]] = {}
    for number, row in enumerate(rows):
        scored = row.labels != IGNORE_INDEX
        prompt = row.ids[: int(scored.int().argmax())] if scored.any() else row.ids
        same = groups.setdefault(prompt.cpu().numpy().tobytes(), [])
        group = next((group for group in same if same_media(media[group[0]], media[number])), None)
        if group is None:
            same.append([number])
        else:
            group.append(number)
    return sorted(group for same in groups.values() for group in same)


def _positions(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """The positions that the model gives the tokens of each row; None where they are those of text."""
    index = getattr(unwrapped(model).model, "get_rope_index", None)
    if index is None:
        return None
    takes = inspect.signature(index).parameters
    types = inputs.get("mm_token_type_ids")
    if types is None:
        ids = inputs["input_ids"]
        types = ids.eq(image_token_id(model) or -1).int() + 2 * ids.eq(video_token_id(model) or -1).int()
    given = {**inputs, "mm_token_type_ids": types}
    asked = {name: given.get(name) for name in POSITIONED_BY if name in takes}
    positions: Tensor = index(inputs["input_ids"], **asked)[0]
    return positions


def shares_rows(model: nn.Module) -> bool:
    """Let `model` attend within shared sequences, if it can; whether it does."""
    if why_not_shared(model, shared_attention(model, "sdpa")) is not None:
        return False
    use_attention(model, "sdpa")
    return True


@contextmanager
def sharing_rows(model: nn.Module) -> Iterator[bool]:
    """Let `model` attend within shared sequences in this block, where nothing is kept for a backward pass."""
    config = text_config(model)
    before = config._attn_implementation
    try:
        yield shares_rows(model)
    finally:
        config._attn_implementation = before
