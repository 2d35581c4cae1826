"""The layout of one small batch, written out by hand."""

from typing import Any

import pytest
import torch
from families import share_prefix

from uni_dpo.shared_prefix.layout import ANSWER, PADDING, PREFIX, AnswerRow, sequence_means
from uni_dpo.shared_prefix.questions import share_questions

IMAGE = 99


def batch(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two pairs: prompt 11 12 with answers 21 22 23 | 31, and prompt 13 with answers 24 | 32 33."""
    made = {
        "input_ids": [[11, 12, 21, 22, 23], [13, 24, 0, 0, 0], [11, 12, 31, 0, 0], [13, 32, 33, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]],
        "labels": [
            [-100, -100, 21, 22, 23],
            [-100, 24, -100, -100, -100],
            [-100, -100, 31, -100, -100],
            [-100, 32, 33, -100, -100],
        ],
    }
    return {key: torch.tensor(rows) for key, rows in made.items()} | changes


def test_a_pair_is_prompt_chosen_rejected() -> None:
    shared, tokens = share_prefix(batch(), None)
    assert shared["input_ids"].tolist() == [[11, 12, 21, 22, 23, 31, 0, 0], [13, 24, 32, 33, 0, 0, 0, 0]]
    p, o, (c1, c2, r1, r2) = PREFIX, PADDING, range(ANSWER, ANSWER + 4)
    assert shared["segments"].tolist() == [[p, p, c1, c1, c1, r1, o, o], [p, c2, r2, r2, o, o, o, o]]
    assert shared["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 0, 0], [0, 1, 1, 2, 0, 0, 0, 0]]
    assert tokens.target.tolist() == [21, 22, 23, 24, 31, 32, 33]
    assert tokens.sequence.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert tokens.offset.tolist() == [0, 1, 2, 0, 0, 0, 1]
    # The last prompt token (1 and 8 + 0) predicts the first token of both answers.
    assert tokens.predictor.tolist() == [1, 2, 3, 8, 1, 8, 10]


def test_left_padding_gives_the_same_layout() -> None:
    left = {key: torch.stack([_shift(row, key) for row in rows]) for key, rows in batch().items()}
    assert left["input_ids"][3].tolist() == [0, 0, 13, 32, 33]
    expected, tokens = share_prefix(batch(), None)
    shared, left_tokens = share_prefix(left, None)
    assert all(torch.equal(shared[key], expected[key]) for key in expected)
    assert all(torch.equal(getattr(tokens, name), getattr(left_tokens, name)) for name in ("predictor", "target"))


def _shift(row: torch.Tensor, key: str) -> torch.Tensor:
    pad = -100 if key == "labels" else 0
    kept = row[: int((row != pad).nonzero().max()) + 1]
    return torch.cat([torch.full([len(row) - len(kept)], pad), kept])


def test_a_common_start_of_the_answers_is_not_shared() -> None:
    same_start = batch()
    same_start["input_ids"][2, 2] = same_start["labels"][2, 2] = 21
    shared, _ = share_prefix(same_start, None)
    assert shared["input_ids"][0].tolist() == [11, 12, 21, 22, 23, 21, 0, 0]


def test_unlike_prompts_share_what_they_have_in_common() -> None:
    unlike = batch()
    unlike["input_ids"][2, 1] = 14
    shared, tokens = share_prefix(unlike, None)
    assert shared["input_ids"][0].tolist() == [11, 12, 21, 22, 23, 14, 31, 0]
    assert tokens.predictor.tolist() == [1, 2, 3, 8, 5, 8, 10]


def test_positions_are_those_of_each_answer_alone() -> None:
    positions = torch.arange(3 * 4 * 5).view(3, 4, 5)
    positions[:, 2:, :2] = positions[:, :2, :2]
    shared, _ = share_prefix(batch(position_ids=positions), None)
    assert shared["position_ids"].shape == (3, 2, 8)
    assert shared["position_ids"][1, 0].tolist() == [20, 21, 22, 23, 24, 32, 0, 0]


def test_images_are_kept_once() -> None:
    with_images = batch(pixel_values=torch.arange(8.0).view(2, 4).repeat(2, 1), image_sizes=torch.ones(4, 2))
    with_images["input_ids"][[0, 1, 2, 3], 0] = IMAGE
    shared, _ = share_prefix(with_images, IMAGE)
    assert torch.equal(shared["pixel_values"], torch.arange(8.0).view(2, 4))
    assert len(shared["image_sizes"]) == 2


def test_an_image_behind_the_padding_stays_there() -> None:
    fake = batch(pixel_values=torch.ones(1, 4))
    fake["input_ids"][1, 3:] = IMAGE
    shared, _ = share_prefix(fake, IMAGE)
    assert shared["input_ids"][1].tolist() == [13, 24, 32, 33, IMAGE, IMAGE, 0, 0]
    assert shared["segments"][1, 4:].tolist() == [PADDING] * 4
    assert len(shared["pixel_values"]) == 1


def asked(batch: dict[str, torch.Tensor], **options: Any) -> Any:
    """What `share_questions` makes of the pairs of a batch, whose longest answers it collates."""
    rows = [AnswerRow.of(batch, row) for row in range(len(batch["input_ids"]))]
    pairs = len(rows) // 2
    features = [
        {
            f"{side}_{name}": getattr(rows[row], field).tolist()
            for side, row in (("chosen", pair), ("rejected", pair + pairs))
            for name, field in (("input_ids", "ids"), ("labels", "labels"))
        }
        for pair in range(pairs)
    ]
    longest = [max(pair, pair + pairs, key=lambda row: len(rows[row].ids)) for pair in range(pairs)]
    collated = {key: values[longest] if len(values) == len(rows) else values for key, values in batch.items()}
    return share_questions(features, lambda leads: collated, IMAGE, **options)


def test_questions_are_laid_out_alike() -> None:
    expected, tokens = share_prefix(batch(), IMAGE)
    shared, asked_tokens = asked(batch())
    assert shared["input_ids"].tolist() == [expected["input_ids"][0].tolist(), [13, 32, 33, 24, 0, 0, 0, 0]]
    assert asked_tokens.lengths().tolist() == tokens.lengths().tolist() == [3, 1, 1, 2]
    assert asked_tokens.rows.tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pixel_values_videos": torch.ones(2, 2)}, "the batch holds pixel_values_videos without their grid"),
        ({"image_grid_thw": torch.ones(4, 3)}, "the batch has no position_ids, which images set"),
        ({"scores": torch.ones(4)}, "the batch holds scores"),
    ],
)
def test_what_cannot_be_shared_says_why(changes: dict[str, torch.Tensor], reason: str) -> None:
    foreign = batch(**changes)
    foreign["input_ids"][:, 0] = IMAGE
    assert asked(foreign) == reason


def test_an_image_in_an_answer_is_not_shared() -> None:
    foreign = batch()
    foreign["input_ids"][[0, 2], 2] = IMAGE
    assert asked(foreign) == share_prefix(foreign, IMAGE) == "an answer holds an image"


@pytest.mark.parametrize(("prompt", "answer", "shares"), [(40, 8, True), (2, 46, False)])
def test_short_prompts_before_long_answers_stay_two_sequences(prompt: int, answer: int, shares: bool) -> None:
    input_ids = torch.arange(100, 100 + prompt + answer).repeat(2, 1)
    input_ids[1, prompt:] += 100
    labels = input_ids.clone()
    labels[:, :prompt] = -100
    pair = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    assert (asked(pair, keys_worth_a_token=100) != "") == shares
    assert asked(pair) != ""


def test_means_are_over_prompt_and_answer() -> None:
    shared, _ = share_prefix(batch(), None)
    hidden = shared["input_ids"].double()[..., None]
    means = sequence_means(hidden, shared["segments"])[:, 0].tolist()
    assert means == pytest.approx([(11 + 12 + 21 + 22 + 23) / 5, (13 + 24) / 2, (11 + 12 + 31) / 3, (13 + 32 + 33) / 3])
    assert sequence_means(hidden, None)[1].item() == pytest.approx((13 + 24 + 32 + 33) / 8)
