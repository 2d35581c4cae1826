"""Answers that share their prompt as one sequence: the prompt once, then every answer.

A pairwise batch, as LlamaFactory collates it, is laid out by `share_prefix`: 2n rows, the n chosen sequences first,
then the n rejected ones, padded on either side, labels −100 on the prompt, the images of the chosen rows followed by
the same images for the rejected rows. `questions.py` lays out any number of answers to one question.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens
from uni_dpo.shared_prefix.media import IMAGE_KEYS, VIDEO_KEYS, images_once

logger = logging.getLogger(__name__)

PADDING, PREFIX, ANSWER = range(3)
"""What a position of a shared sequence belongs to: `ANSWER` + i is the answer that is sequence i of the batch."""

SETTING_KEYS = ("downsample_mode",)
"""Model inputs that say how all images are seen."""

RECOMPUTED_KEYS = (
    *("input_ids", "attention_mask", "labels", "position_ids", "rope_deltas"),
    *("mm_token_type_ids", "token_type_ids", "second_per_grid_ts", "grids", "num_patches_per_image"),
)
"""What a batch holds per row, token or image that the shared layout replaces or that no model takes."""

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
        say_once(f"Some batches are trained as two sequences per pair: {shared}.")
    elif keys_worth_a_token is None or _pays(batch, shared[0], keys_worth_a_token):
        return shared
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return inputs, ResponseTokens.from_labels(batch["labels"])


@cache
def say_once(message: str) -> None:
    """Warn of something that many batches have, the first time."""
    logger.warning(message)


def _pays(batch: dict[str, Any], shared: dict[str, Any], keys_worth_a_token: float) -> bool:
    if "pixel_values" in shared and shared["pixel_values"].numel() < batch["pixel_values"].numel():
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
    carry = (*SETTING_KEYS, *carry)
    known = {*IMAGE_KEYS, *RECOMPUTED_KEYS, *carry}
    if unknown := [key for key, value in batch.items() if key not in known and value is not None]:
        return f"the batch holds {', '.join(unknown)}"
    images = images_once(batch, image_token_id)
    if isinstance(images, str):
        return images
    rows = [AnswerRow.of(batch, row) for row in range(len(batch["input_ids"]))]
    pairs = len(rows) // 2
    sequences = [SharedRow([(chosen, rows[chosen]), (chosen + pairs, rows[chosen + pairs])]) for chosen in range(pairs)]
    shared = lay_out(sequences, batch, image_token_id)
    if isinstance(shared, str):
        return shared
    inputs, tokens = shared
    return {**inputs, **images, **{key: batch[key] for key in carry if key in batch}}, tokens


def lay_out(
    sequences: Sequence["SharedRow"], batch: dict[str, Any], image_token_id: int | None, rows: Tensor | None = None
) -> tuple[dict[str, Any], ResponseTokens] | str:
    """Pad shared sequences to one batch.

    Args:
        sequences: every answer in one of them; the answers' numbers run from 0 without a gap.
        batch: the collated batch that the sequences' prompts come from, for the images behind its padding.
        image_token_id: as for `share_prefix`.
        rows: see `ResponseTokens`.

    Returns:
        `input_ids`, `segments` and `position_ids`, and the tokens to score; or the reason why it can't be done.
    """
    if image_token_id is not None and any(row.has_token_in_answers(image_token_id) for row in sequences):
        return "an answer holds an image"
    if any(key in batch for key in VIDEO_KEYS) and any(row.has_pictures_in_answers() for row in sequences):
        return "an answer holds a video"
    _append_unattended_images(batch, image_token_id, sequences)
    longest = max(len(row.ids) for row in sequences)
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    inputs = {
        "input_ids": torch.stack([_pad(row.ids, length) for row in sequences]),
        "segments": torch.stack([_pad(row.segments, length) for row in sequences]),
        "position_ids": torch.stack([_pad(row.positions, length) for row in sequences], dim=-2),
    }
    return inputs, _response_tokens(sequences, length, rows)


def sequence_means(hidden: Tensor, segments: Tensor | None) -> Tensor:
    """Average hidden states (rows, T, D) over the positions of each sequence: (sequences, D).

    In a shared layout a sequence is its prompt and its answer. In one sequence per answer (`segments` None) it is
    the whole row, padding included, as LlamaFactory averages logits.
    """
    if segments is None:
        return hidden.mean(1)
    in_prompt = segments == PREFIX
    prompts = torch.einsum("nt,ntd->nd", in_prompt.to(hidden.dtype), hidden)
    row, column = (segments >= ANSWER).nonzero(as_tuple=True)
    answer = segments[row, column].long() - ANSWER
    count = int(answer.max()) + 1
    sums = hidden.new_zeros(count, hidden.shape[-1]).index_add(0, answer, hidden[row, column])
    owner = row.new_zeros(count).scatter(0, answer, row)
    lengths = torch.bincount(answer, minlength=count) + in_prompt.sum(1)[owner]
    return (sums + prompts[owner]) / lengths[:, None]


@dataclass(frozen=True)
class AnswerRow:
    """A prompt and one answer to it, without padding.

    Attributes:
        ids: (T,) tokens.
        labels: (T,) tokens, −100 where a token is not scored.
        positions: (…, T) of the tokens, as the model takes them.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor

    @classmethod
    def of(cls, batch: dict[str, Any], row: int) -> "AnswerRow":
        """Return the attended tokens of one row of a collated batch."""
        columns = batch["attention_mask"][row].nonzero().squeeze(1)
        if batch.get("position_ids") is not None:
            positions = batch["position_ids"][..., row, columns]
        else:
            positions = columns - columns[:1]
        return cls(batch["input_ids"][row, columns], batch["labels"][row, columns], positions)


class SharedRow:
    """Answers to one prompt as one sequence.

    Args:
        answers: the number of each answer in the batch, and its row. What all rows have in common at their start,
            and is scored in none, is the prompt.
    """

    def __init__(self, answers: Sequence[tuple[int, AnswerRow]]) -> None:
        (_, first), *_ = answers
        self.answers = answers
        self.prefix = prefix = min(_common_prefix(first, row) for _, row in answers)
        self.ids = torch.cat([first.ids[:prefix], *(row.ids[prefix:] for _, row in answers)])
        self.positions = torch.cat(
            [first.positions[..., :prefix], *(row.positions[..., prefix:] for _, row in answers)], dim=-1
        )
        owners = torch.tensor([PREFIX, *(ANSWER + number for number, _ in answers)], dtype=torch.int16)
        counts = torch.tensor([prefix, *(len(row.ids) - prefix for _, row in answers)])
        self.segments = owners.repeat_interleave(counts).to(self.ids.device)

    def has_token_in_answers(self, token: int) -> bool:
        return bool((self.ids[self.prefix :] == token).any())

    def has_pictures_in_answers(self) -> bool:
        """Tell whether an answer has positions in space, as no text has."""
        answers = self.positions[..., self.prefix :]
        return answers.ndim > 1 and bool((answers != answers[..., :1, :]).any())

    def places(self) -> Iterator[tuple[int, Tensor]]:
        """Of each answer: its number, and where this sequence holds the tokens of its row, its prompt's included."""
        start, prompt = self.prefix, torch.arange(self.prefix, device=self.ids.device)
        for number, row in self.answers:
            length = len(row.ids) - self.prefix
            yield number, torch.cat([prompt, torch.arange(start, start + length, device=self.ids.device)])
            start += length

    def scored(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Of each answer: its number; where this sequence predicts its scored tokens; their ids; their offsets."""
        start = self.prefix
        for number, row in self.answers:
            at = (row.labels[1:] != IGNORE_INDEX).nonzero().squeeze(1)
            yield number, torch.where(at < self.prefix, at, at + start - self.prefix), row.labels[at + 1], at - at[:1]
            start += len(row.ids) - self.prefix

    def append_padding(self, ids: Tensor, positions: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids])
        self.positions = torch.cat([self.positions, positions], dim=-1)
        self.segments = torch.cat([self.segments, torch.full_like(ids, PADDING, dtype=torch.int16)])


def _common_prefix(first: AnswerRow, other: AnswerRow) -> int:
    """How many leading tokens, none of them scored, are the same at the same positions."""
    length = min(len(first.ids), len(other.ids))
    same = first.ids[:length] == other.ids[:length]
    same &= (first.labels[:length] == IGNORE_INDEX) & (other.labels[:length] == IGNORE_INDEX)
    agree = first.positions[..., :length] == other.positions[..., :length]
    same &= agree.reshape(-1, length).all(0)
    return int(same.int().cumprod(0).sum())


def _append_unattended_images(
    batch: dict[str, Any], image_token_id: int | None, sequences: Sequence[SharedRow]
) -> None:
    unattended = (batch["input_ids"] == image_token_id) & ~batch["attention_mask"].bool()
    for row, column in unattended.nonzero().tolist():
        sequence = sequences[row % len(sequences)]
        sequence.append_padding(batch["input_ids"][row, column, None], torch.zeros_like(sequence.positions[..., :1]))


def _response_tokens(sequences: Sequence[SharedRow], length: int, rows: Tensor | None) -> ResponseTokens:
    found = [
        (number, at + place * length, target, offset)
        for place, row in enumerate(sequences)
        for number, at, target, offset in row.scored()
    ]
    found.sort(key=lambda scored: scored[0])
    counts = torch.tensor([len(target) for _, _, target, _ in found])
    offset = torch.cat([offset for *_, offset in found])
    return ResponseTokens(
        predictor=torch.cat([at for _, at, _, _ in found]),
        target=torch.cat([target for _, _, target, _ in found]),
        sequence=torch.repeat_interleave(torch.arange(len(found)), counts).to(offset.device),
        offset=offset,
        sequences=len(found),
        width=int(offset.max()) + 1 if len(offset) else 0,
        rows=rows,
    )


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))
