"""From a pairwise batch of two sequences per pair to one: prompt + chosen answer + rejected answer.

The pairwise batch is the one that LlamaFactory collates: 2n rows, the n chosen sequences first, then the n
rejected ones, padded on either side, labels −100 on the prompt, the images of the chosen rows followed by
the same images for the rejected rows.
"""

import logging
from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor

from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens

logger = logging.getLogger(__name__)

PADDING, PREFIX, CHOSEN, REJECTED = range(4)
"""What a position of a shared sequence belongs to."""

IMAGE_KEYS = ("pixel_values", "image_grid_thw", "image_sizes")
"""Model inputs whose first dimension runs over images (or their patches), in the order of the rows."""

RECOMPUTED_KEYS = ("input_ids", "attention_mask", "labels", "position_ids", "rope_deltas", "mm_token_type_ids")
"""Model inputs per row or token that the shared layout replaces or makes superfluous."""

LENGTH_MULTIPLE = 8


def lay_out_pairs(
    batch: dict[str, Any],
    image_token_id: int | None,
    *,
    keys_worth_a_token: float | None = None,
    carry: Collection[str] = (),
) -> tuple[dict[str, Any], ResponseTokens]:
    """Lay a pairwise batch out for `pair_scores`: shared where that can be done and pays, else two sequences per pair.

    Args:
        batch: the pairwise batch.
        image_token_id: the id that stands for image features in `input_ids`; None for text models.
        keys_worth_a_token: how many attended keys cost as much as the rest of a token's way through the model; with
            it, short prompts before long answers stay two sequences. None shares whatever can be shared.
        carry: keys that are handed on as they are.

    Returns:
        The inputs of the model, and the tokens to score.
    """
    shared = share_prefix(batch, image_token_id, carry)
    if isinstance(shared, str):
        _say_once(f"Some batches are trained as two sequences per pair: {shared}.")
    elif keys_worth_a_token is None or _pays(batch, shared[0], keys_worth_a_token):
        return shared
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return inputs, ResponseTokens.from_labels(batch["labels"])


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _pays(batch: dict[str, Any], shared: dict[str, Any], keys_worth_a_token: float) -> bool:
    if "pixel_values" in shared and len(shared["pixel_values"]) < len(batch["pixel_values"]):
        return True
    two, one = (layout["input_ids"].shape for layout in (batch, shared))
    cost_of_two, cost_of_one = (rows * length * (keys_worth_a_token + length) for rows, length in (two, one))
    return cost_of_one < cost_of_two


def share_prefix(
    batch: dict[str, Any], image_token_id: int | None, carry: Collection[str] = ()
) -> tuple[dict[str, Any], ResponseTokens] | str:
    """Lay a pairwise batch out with each prompt, images included, only once.

    Both answers keep the positions that they have in their own sequences. An image that upstream puts behind
    the padding of a batch without images, so that every rank runs the vision tower, stays behind the padding.

    Args:
        batch: the pairwise batch, on any device.
        image_token_id: the id that stands for image features in `input_ids`; None for text models.
        carry: keys that are handed on as they are.

    Returns:
        The model's inputs, with `segments` (n, T) in place of an attention mask, and the tokens to score,
        the chosen sequences first. Or, when this batch can't be laid out so, the reason in words.
    """
    known = {*IMAGE_KEYS, *RECOMPUTED_KEYS, *carry}
    if unknown := [key for key, value in batch.items() if key not in known and value is not None]:
        return f"the batch holds {', '.join(unknown)}"
    images = _images_once(batch, image_token_id)
    if isinstance(images, str):
        return images
    rows = [_Row(batch, row) for row in range(len(batch["input_ids"]))]
    pairs = len(rows) // 2
    sequences = [_SharedRow(chosen, rejected) for chosen, rejected in zip(rows[:pairs], rows[pairs:], strict=True)]
    if image_token_id is not None and any(row.has_token_in_answers(image_token_id) for row in sequences):
        return "an answer holds an image"
    _append_unattended_images(batch, image_token_id, sequences)

    longest = max(len(row.ids) for row in sequences)
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    shared = {
        "input_ids": torch.stack([_pad(row.ids, length) for row in sequences]),
        "segments": torch.stack([_pad(row.segments, length) for row in sequences]),
        "position_ids": torch.stack([_pad(row.positions, length) for row in sequences], dim=-2),
        **images,
        **{key: batch[key] for key in carry if key in batch},
    }
    return shared, _response_tokens(sequences, length)


def sequence_means(hidden: Tensor, segments: Tensor | None) -> Tensor:
    """Average hidden states (rows, T, D) over the positions of each sequence: (sequences, D), chosen first.

    In a shared layout a sequence is its prompt and its answer. In two sequences per pair (`segments` None) it is
    the whole row, padding included, as LlamaFactory averages logits.
    """
    if segments is None:
        return hidden.mean(1)
    members = torch.stack([(segments == PREFIX) | (segments == answer) for answer in (CHOSEN, REJECTED)])
    sums = torch.einsum("snt,ntd->snd", members.to(hidden.dtype), hidden)
    return (sums / members.sum(-1, keepdim=True)).flatten(0, 1)


class _Row:
    """The attended tokens of one row of the pairwise batch."""

    def __init__(self, batch: dict[str, Any], row: int) -> None:
        columns = batch["attention_mask"][row].nonzero().squeeze(1)
        self.ids = batch["input_ids"][row, columns]
        self.labels = batch["labels"][row, columns]
        if batch.get("position_ids") is not None:
            self.positions = batch["position_ids"][..., row, columns]
        else:
            self.positions = columns - columns[:1]


class _SharedRow:
    """One pair as one sequence."""

    def __init__(self, chosen: _Row, rejected: _Row) -> None:
        self.chosen, self.rejected = chosen, rejected
        self.prefix = prefix = _common_prefix(chosen, rejected)
        self.ids = torch.cat([chosen.ids, rejected.ids[prefix:]])
        self.positions = torch.cat([chosen.positions, rejected.positions[..., prefix:]], dim=-1)
        self.segments = torch.full_like(self.ids, CHOSEN, dtype=torch.int8)
        self.segments[:prefix] = PREFIX
        self.segments[len(chosen.ids) :] = REJECTED

    def has_token_in_answers(self, token: int) -> bool:
        return bool((self.ids[self.prefix :] == token).any())

    def scored(self, row: _Row) -> tuple[Tensor, Tensor, Tensor]:
        """Of the scored tokens of `row`: where the shared sequence predicts them, their ids, their offsets."""
        at = (row.labels[1:] != IGNORE_INDEX).nonzero().squeeze(1)
        shift = len(self.chosen.ids) - self.prefix if row is self.rejected else 0
        return torch.where(at < self.prefix, at, at + shift), row.labels[at + 1], at - at[:1]

    def append_padding(self, ids: Tensor, positions: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids])
        self.positions = torch.cat([self.positions, positions], dim=-1)
        self.segments = torch.cat([self.segments, torch.full_like(ids, PADDING, dtype=torch.int8)])


def _common_prefix(chosen: _Row, rejected: _Row) -> int:
    """How many leading tokens, none of them scored, are the same at the same positions."""
    length = min(len(chosen.ids), len(rejected.ids))
    same = chosen.ids[:length] == rejected.ids[:length]
    same &= (chosen.labels[:length] == IGNORE_INDEX) & (rejected.labels[:length] == IGNORE_INDEX)
    agree = chosen.positions[..., :length] == rejected.positions[..., :length]
    same &= agree.reshape(-1, length).all(0)
    return int(same.int().cumprod(0).sum())


def _images_once(batch: dict[str, Any], image_token_id: int | None) -> dict[str, Tensor] | str:
    """The image inputs of the chosen half, or why the halves can't stand for each other."""
    images = {key: batch[key] for key in IMAGE_KEYS if batch.get(key) is not None}
    attended = (batch["input_ids"] == image_token_id) & batch["attention_mask"].bool()
    if image_token_id is None or not attended.any():
        return images
    if ((batch["input_ids"] == image_token_id) & ~batch["attention_mask"].bool()).any():
        return "there are images behind the padding and before it"
    if "image_grid_thw" in images and batch.get("position_ids") is None:
        return "the batch has no position_ids, which images set"
    for key, values in images.items():
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        if not torch.equal(first, second):
            return f"the chosen and rejected sequences differ in {key}"
        images[key] = first
    return images


def _append_unattended_images(batch: dict[str, Any], image_token_id: int | None, sequences: list[_SharedRow]) -> None:
    unattended = (batch["input_ids"] == image_token_id) & ~batch["attention_mask"].bool()
    for row, column in unattended.nonzero().tolist():
        sequence = sequences[row % len(sequences)]
        sequence.append_padding(batch["input_ids"][row, column, None], torch.zeros_like(sequence.positions[..., :1]))


def _response_tokens(sequences: list[_SharedRow], length: int) -> ResponseTokens:
    scored = [
        (row * length, *sequence.scored(side))
        for name in ("chosen", "rejected")
        for row, sequence in enumerate(sequences)
        for side in [getattr(sequence, name)]
    ]
    counts = torch.tensor([len(target) for _, _, target, _ in scored])
    offset = torch.cat([offset for *_, offset in scored])
    return ResponseTokens(
        predictor=torch.cat([start + at for start, at, _, _ in scored]),
        target=torch.cat([target for _, _, target, _ in scored]),
        sequence=torch.repeat_interleave(torch.arange(len(scored)), counts).to(offset.device),
        offset=offset,
        sequences=len(scored),
        width=int(offset.max()) + 1 if len(offset) else 0,
    )


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))
