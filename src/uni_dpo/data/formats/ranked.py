"""Several rated answers per question: MM-RLHF's ranked answers and VLFeedback's completions."""

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    Ranked,
    id_of,
    images_of,
    number_of,
    ranked_pairs,
    refuse,
    text_of,
    with_placeholders,
)
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row
from uni_dpo.settings.options import as_number


def read_mm_rlhf(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """Yield the pairs of answers that each have a score, or a rank (1 is best, and gives no score)."""
    answers = row.get("responses", row.get("answers"))
    if isinstance(answers, dict):
        answers = [{"model": model} | (a if isinstance(a, dict) else {"response": a}) for model, a in answers.items()]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        refuse("responses", answers, "a list of answers with `response` and `score` belongs there")
    if all(answer.get("score") is not None for answer in answers):
        ranked = [Ranked(text_of(a, "response", "answer", "text"), number_of(a["score"], "score")) for a in answers]
        ranked.sort(key=lambda answer: -(answer.score or 0.0))
    elif all(answer.get("rank") is not None for answer in answers):
        order = sorted(answers, key=lambda answer: number_of(answer["rank"], "rank"))
        ranked = [Ranked(text_of(a, "response", "answer", "text"), rank=number_of(a["rank"], "rank")) for a in order]
    else:
        refuse("responses", "answers without score or rank", "give every answer one of the two")
    images = images_of(row, "image", "images", "image_paths")
    question = with_placeholders(text_of(row, "prompt", "question"), images, losses)
    yield from ranked_pairs(ranked, question, images, pairing, losses, id=id_of(row, losses, "id"))


def read_vlfeedback(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """Yield the pairs of completions; an answer's score is the mean of its ratings over the aspects."""
    completions = row.get("completions")
    if isinstance(completions, dict):
        completions = list(_records(completions))
    if not isinstance(completions, list):
        refuse("completions", completions, "a list of completions belongs there")
    ranked = []
    for completion in completions:
        annotations = completion.get("annotations") if isinstance(completion, dict) else None
        if not isinstance(annotations, dict):
            refuse("completions", completion, "every completion needs `response` and `annotations`")
        ratings = list(_ratings(annotations, losses))
        if ratings:
            ranked.append(Ranked(text_of(completion, "response"), fmean(ratings)))
        else:
            losses["answers without a rating, left out"] += 1
    ranked.sort(key=lambda answer: -(answer.score or 0.0))
    images = images_of(row, "image", "img_path")
    question = with_placeholders(text_of(row, "prompt"), images, losses)
    yield from ranked_pairs(ranked, question, images, pairing, losses, id=id_of(row, losses, "id"))


def _records(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the dict of lists that `datasets` makes of a sequence of objects, also inside objects."""
    responses = columns.get("response")
    if not isinstance(responses, list):
        refuse("completions", columns, "a list of completions belongs there")
    for index in range(len(responses)):
        yield {name: _at(column, index) for name, column in columns.items()}


def _at(column: Any, index: int) -> Any:
    if isinstance(column, dict):
        return {name: _at(inner, index) for name, inner in column.items()}
    if not isinstance(column, list) or index >= len(column):
        refuse("completions", column, "its lists need one item per response")
    return column[index]


def _ratings(annotations: dict[str, Any], losses: Losses) -> Iterator[float]:
    """The finite ratings; a judge writes "N/A" for an aspect that does not apply."""
    for aspect in annotations.values():
        rating = aspect.get("Rating") if isinstance(aspect, dict) else aspect
        number = as_number(rating)
        if number is not None and math.isfinite(number):
            yield number
        else:
            losses["ratings that are no number, left out"] += 1


FORMATS = (
    Format("mm-rlhf", "`prompt, image, responses` of `response` with `score` (or `rank`)", read_mm_rlhf),
    Format("vlfeedback", "`prompt, img_path` or `image`, `completions` of `response, annotations`", read_vlfeedback),
)
