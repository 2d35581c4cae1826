"""Several rated answers per question: MM-RLHF's ranked answers and VLFeedback's completions."""

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from uni_dpo.data.formats.base import Format, Losses, Ranked, SourceRow, refuse
from uni_dpo.data.pair import PreferencePair
from uni_dpo.settings.options import as_number


def read_mm_rlhf(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pairs of answers that each have a score, or a rank (1 is best, and gives no score)."""
    answers = row.get("responses", row.get("answers"))
    if isinstance(answers, dict):
        answers = [{"model": model} | (a if isinstance(a, dict) else {"response": a}) for model, a in answers.items()]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        refuse("responses", answers, "a list of answers with `response` and `score` belongs there")
    grades = ("score", "rank")
    grade = next((name for name in grades if all(answer.get(name) is not None for answer in answers)), None)
    if grade is None:
        refuse("responses", "answers without score or rank", "give every answer one of the two")
    ranked = [
        Ranked(answer.text("response", "answer", "text"), **{grade: answer.score(grade)})
        for answer in map(SourceRow, answers)
    ]
    images = row.images("image", "images", "image_paths")
    question = row.with_placeholders(row.text("prompt", "question"), images)
    yield from row.pairs_of(ranked, question, images, id=row.id("id"))


def read_vlfeedback(row: SourceRow) -> Iterator[PreferencePair]:
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
        ratings = list(_ratings(annotations, row.losses))
        if ratings:
            ranked.append(Ranked(SourceRow(completion).text("response"), fmean(ratings)))
        else:
            row.losses["answers without a rating, left out"] += 1
    images = row.images("image", "img_path")
    question = row.with_placeholders(row.text("prompt"), images)
    yield from row.pairs_of(ranked, question, images, id=row.id("id"))


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
