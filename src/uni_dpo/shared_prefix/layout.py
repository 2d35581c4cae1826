"""Answers that share their prompt as one sequence: the prompt once, then every answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens
from uni_dpo.shared_prefix.media import VIDEO_KEYS

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


def lay_out(
    sequences: Sequence["SharedRow"], batch: dict[str, Any], image_token_id: int | None
) -> tuple[dict[str, Tensor], list[Tensor]] | str:
    """Pad shared sequences to one batch.

    An image that upstream puts behind the padding of a batch without images, so that every rank runs the vision tower,
    stays behind the padding.

    Args:
        sequences: every answer in one of them; the answers' numbers run from 0 without a gap.
        batch: the collated batch that the sequences' prompts come from, for the images behind its padding.
        image_token_id: the id that stands for image features in `input_ids`; None for text models.

    Returns:
        `input_ids`, `segments` and `position_ids`, and by each answer's number where the tokens of its row stand among
        the flattened positions; or the reason why it can't be done.
    """
    if image_token_id is not None and any((row.ids[row.prefix :] == image_token_id).any() for row in sequences):
        return "an answer holds an image"
    if any(key in batch for key in VIDEO_KEYS) and any(row.has_pictures_in_answers() for row in sequences):
        return "an answer holds a video"
    unattended = (batch["input_ids"] == image_token_id) & ~batch["attention_mask"].bool()
    for row, column in unattended.nonzero().tolist():
        sequences[row % len(sequences)].append_padding(batch["input_ids"][row, column, None])
    longest = max(len(row.ids) for row in sequences)
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    inputs = {
        "input_ids": torch.stack([_pad(row.ids, length) for row in sequences]),
        "segments": torch.stack([_pad(row.segments, length) for row in sequences]),
        "position_ids": torch.stack([_pad(row.positions, length) for row in sequences], dim=-2),
    }
    places = {
        number: at * length + inside for at, row in enumerate(sequences) for number, inside in row.places().items()
    }
    return inputs, [places[number] for number in range(len(places))]


def response_tokens(answers: Sequence["AnswerRow"], places: Sequence[Tensor]) -> ResponseTokens:
    """Return the scored tokens of answers, each of which is predicted where `places`, of `lay_out`, says."""
    labels = pad_sequence([row.labels for row in answers], batch_first=True, padding_value=IGNORE_INDEX)
    tokens = ResponseTokens.from_labels(labels)
    return replace(tokens, predictor=pad_sequence([*places], batch_first=True).flatten()[tokens.predictor])


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

    def has_pictures_in_answers(self) -> bool:
        """Tell whether an answer has positions in space, as no text has."""
        answers = self.positions[..., self.prefix :]
        return answers.ndim > 1 and bool((answers != answers[..., :1, :]).any())

    def places(self) -> dict[int, Tensor]:
        """By the number of each answer, where this sequence holds the tokens of its row, its prompt's included."""
        lengths = [self.prefix, *(len(row.ids) - self.prefix for _, row in self.answers)]
        prompt, *answers = torch.arange(sum(lengths), device=self.ids.device).split(lengths)
        return {number: torch.cat([prompt, at]) for (number, _), at in zip(self.answers, answers, strict=True)}

    def append_padding(self, ids: Tensor) -> None:
        """Put tokens behind the answers that nobody sees."""
        self.ids = torch.cat([self.ids, ids])
        self.positions = _pad(self.positions, len(self.ids))
        self.segments = _pad(self.segments, len(self.ids))


def _common_prefix(first: AnswerRow, other: AnswerRow) -> int:
    """How many leading tokens, none of them scored, are the same at the same positions."""
    length = min(len(first.ids), len(other.ids))
    same = first.ids[:length] == other.ids[:length]
    same &= (first.labels[:length] == IGNORE_INDEX) & (other.labels[:length] == IGNORE_INDEX)
    agree = first.positions[..., :length] == other.positions[..., :length]
    same &= agree.reshape(-1, length).all(0)
    return int(same.int().cumprod(0).sum())


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))
