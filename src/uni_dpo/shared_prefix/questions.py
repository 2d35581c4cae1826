"""Pairs of one question as one sequence: its prompt and images once, each different answer once.

Ranked answers make many pairs: five answers to one image make ten, in which the prompt would run ten times and each
answer four times. The log-probabilities of all pairs follow from one run of the prompt and one of each answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens
from uni_dpo.shared_prefix.layout import (
    RECOMPUTED_KEYS,
    SETTING_KEYS,
    AnswerRow,
    SharedRow,
    lay_out,
    response_tokens,
)
from uni_dpo.shared_prefix.media import IMAGE_KEYS

MEDIA_COLUMNS = ("images", "videos", "audios")
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""Rows of `input_ids`, `attention_mask`, `labels` and the media columns → a batch with one row each."""


@dataclass
class SharedQuestion:
    """The pairs of a batch that ask the same.

    Attributes:
        prompt: how many tokens all its rows have in common.
        feature: the first of its pairs, whose media stand for all.
        answers: the bytes of a whole row's tokens and labels, prompt included → the number of its answer in the batch,
            and both.
    """

    prompt: int
    feature: dict[str, Any]
    answers: dict[tuple[bytes, bytes], tuple[int, np.ndarray, np.ndarray]] = field(default_factory=dict)

    def rows(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Return the number, tokens and labels of each answer, the longest first."""
        return sorted(self.answers.values(), key=lambda row: -len(row[1]))

    def lead(self) -> dict[str, Any]:
        """Return the row of the longest answer, for a collator."""
        _, ids, labels = self.rows()[0]
        media = {name: self.feature.get(name) for name in MEDIA_COLUMNS}
        return {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels.tolist(), **media}

    def length(self) -> int:
        """Return the number of tokens of all answers behind one prompt."""
        return self.prompt + sum(len(ids) - self.prompt for _, ids, _ in self.answers.values())


def question_key(feature: dict[str, Any]) -> tuple[int, tuple[Any, ...]]:
    """Tell how many tokens of a tokenized pair are its prompt, and what that prompt and its media are known by."""
    chosen, rejected = (_tokens(feature, side) for side in ("chosen", "rejected"))
    prompt = _shared_start(*chosen, *rejected)
    return prompt, (chosen[0][:prompt].tobytes(), *(_media_key(feature.get(name)) for name in MEDIA_COLUMNS))


def group_questions(features: Sequence[dict[str, Any]]) -> tuple[list[SharedQuestion], list[int]]:
    """Find the questions of a batch of tokenized pairs.

    Two pairs ask the same where their unscored tokens before the answers are the same and so are their media. An
    answer that stands in several pairs of a question is one.

    Args:
        features: pairs as LlamaFactory tokenizes them (`chosen_input_ids`, `chosen_labels`, `rejected_…`, `images` …).

    Returns:
        The questions in the order of their first pairs, and the number of the answer of each row: the chosen rows of
        all pairs, then the rejected ones.
    """
    questions: dict[Any, SharedQuestion] = {}
    rows: dict[str, list[int]] = {"chosen": [], "rejected": []}
    answers = 0
    for feature in features:
        prompt, key = question_key(feature)
        question = questions.setdefault(key, SharedQuestion(prompt, feature))
        for side, numbers in rows.items():
            ids, labels = _tokens(feature, side)
            row = (ids.tobytes(), labels.tobytes())
            if row not in question.answers:
                question.answers[row] = answers, ids, labels
                answers += 1
            numbers.append(question.answers[row][0])
    return list(questions.values()), rows["chosen"] + rows["rejected"]


def share_questions(
    features: Sequence[dict[str, Any]],
    collate: Collate,
    image_token_id: int | None,
    *,
    keys_worth_a_token: float | None = None,
) -> tuple[dict[str, Any], ResponseTokens] | str:
    """Collate pairs with every question's prompt and media once, and every different answer once.

    Args:
        features: tokenized pairs, see `group_questions`.
        collate: makes a batch of rows. It is given one row per question, so media are opened and prepared once.
        image_token_id: the id that stands for image features in `input_ids`; None for text models.
        keys_worth_a_token: how many attended keys cost as much as the rest of a token's way through the model; with
            it, short prompts before long answers stay two sequences. None shares whatever can be shared.

    Returns:
        The model's inputs, with `segments` (questions, T) in place of an attention mask, and the tokens to score,
        whose `rows` are the chosen rows of all pairs, then the rejected ones. Or, when these pairs can't be laid out
        so, the reason in words; an empty reason where two sequences per pair cost less.
    """
    questions, rows = group_questions(features)
    if keys_worth_a_token is not None and not _pays(features, questions, keys_worth_a_token):
        return ""
    batch = collate([question.lead() for question in questions])
    kept = {key: batch[key] for key in (*IMAGE_KEYS, *SETTING_KEYS) if batch.get(key) is not None}
    if unknown := [key for key in batch if key not in {*kept, *RECOMPUTED_KEYS} and batch[key] is not None]:
        return f"the batch holds {', '.join(unknown)}"
    if "pixel_values_videos" in kept and "video_grid_thw" not in kept:
        return "the batch holds pixel_values_videos without their grid"
    if kept.keys() & {"image_grid_thw", "video_grid_thw"} and batch.get("position_ids") is None:
        return "the batch has no position_ids, which images set"
    answers: dict[int, AnswerRow] = {}
    sequences = []
    for place, question in enumerate(questions):
        lead = AnswerRow.of(batch, place)
        if lead.ids.tolist() != question.rows()[0][1].tolist():
            return "its collator changes the tokens of a row"
        # Each answer is at the positions that it has alone, as the longest shows.
        said = {
            number: AnswerRow(torch.tensor(ids), torch.tensor(labels), lead.positions[..., : len(ids)])
            for number, ids, labels in question.rows()
        }
        sequences.append(SharedRow([*said.items()]))
        answers |= said
    laid = lay_out(sequences, batch, image_token_id)
    if isinstance(laid, str):
        return laid
    inputs, places = laid
    tokens = response_tokens([answers[number] for number in range(len(answers))], places)
    return {**inputs, **kept}, replace(tokens, rows=torch.tensor(rows))


def _tokens(feature: dict[str, Any], side: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(feature[f"{side}_{name}"], np.int64) for name in ("input_ids", "labels"))  # type: ignore[return-value]


def _shared_start(ids: np.ndarray, labels: np.ndarray, other_ids: np.ndarray, other_labels: np.ndarray) -> int:
    """How many leading tokens, none of them scored, are the same in both rows."""
    length = min(len(ids), len(other_ids))
    same = (ids[:length] == other_ids[:length]) & (labels[:length] == IGNORE_INDEX)
    same &= other_labels[:length] == IGNORE_INDEX
    return length if same.all() else int(same.argmin())


def _media_key(media: Any) -> Any:
    """What tells media apart without opening them: paths and bytes by value, anything else by being the same object."""
    if isinstance(media, list | tuple):
        return tuple(_media_key(item) for item in media)
    if isinstance(media, dict):
        return tuple((name, _media_key(media[name])) for name in sorted(media))
    return media if media is None or isinstance(media, str | bytes | int | float) else id(media)


def _pays(features: Sequence[dict[str, Any]], questions: Sequence[SharedQuestion], keys_worth_a_token: float) -> bool:
    """Whether one sequence per question costs less than two per pair; media always make it so."""
    if any(feature.get(name) for feature in features for name in MEDIA_COLUMNS):
        return True
    longest = max(len(feature[f"{side}_input_ids"]) for feature in features for side in ("chosen", "rejected"))
    two = 2 * len(features), longest
    one = len(questions), max(question.length() for question in questions)
    cost_of_two, cost_of_one = (rows * length * (keys_worth_a_token + length) for rows, length in (two, one))
    return cost_of_one < cost_of_two
