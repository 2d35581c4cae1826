"""The two kinds of files that can be rated: pairs, and questions with answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from uni_dpo.data.checks.rows import check_file
from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.formats.base import images_of, text_of, with_placeholders
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.pair import Image
from uni_dpo.data.register import detect_entry
from uni_dpo.data.tables.reading import Row, Unreadable, iter_rows, read_rows, unreadable_fault
from uni_dpo.models.rewards.conversation import Conversation, both_answers

QUESTION_COLUMNS = ("question", "instruction", "prompt")
IMAGE_COLUMNS = ("images", "image", "image_path")
ANSWER_COLUMNS = ("answers", "prediction", "response", "output", "answer")


@dataclass(slots=True)
class RateableRow:
    """One row of a file, and what of it is to be rated; usable when `faults` is empty."""

    row: Row
    conversations: tuple[Conversation, ...] = ()
    faults: list[Fault] = field(default_factory=list)


class Layout(Protocol):
    """How the rows of a file are read, and where their ratings go."""

    def read(self, file: Path, images: ImageChecker) -> Iterator[RateableRow]:
        """All rows of one file, in order."""
        ...

    def rated(self, row: Row, ratings: Sequence[float]) -> Row:
        """A row with the ratings of its conversations."""
        ...


def layout_of(source: str | Path, answer_column: str | None = None) -> Layout:
    """The layout of a file, by the columns of its first row.

    Raises:
        PreferenceDataError: the file cannot be read, is empty, or holds neither pairs nor answers.
    """
    first = next(iter_rows(source), None)
    if first is None:
        raise PreferenceDataError(f"{source}: holds no rows")
    if answer_column is None and {"chosen", "rejected"} & first.keys():
        return PairLayout(detect_entry(source))
    column = answer_column or next((name for name in ANSWER_COLUMNS if name in first), None)
    if column is None or column not in first:
        raise PreferenceDataError(
            f"{source}: its columns ({', '.join(first)}) hold no {answer_column or 'answer'}; pairs have `chosen` and "
            f"`rejected`, answers one of {', '.join(ANSWER_COLUMNS)}, or what --answer-column names"
        )
    return AnswerLayout(column)


@dataclass(frozen=True)
class PairLayout:
    """Pairs in any layout that LlamaFactory reads; the ratings become the score columns."""

    entry: DatasetEntry

    def read(self, file: Path, images: ImageChecker) -> Iterator[RateableRow]:
        """See `Layout.read`."""
        for checked in check_file(file, self.entry, images=images, scores_required=False):
            conversations: tuple[Conversation, ...] = ()
            if checked.pair is not None and not checked.faults:
                pair = replace(checked.pair, images=_resolved(checked.pair.images, images))
                conversations = both_answers(pair)
            yield RateableRow(checked.row or {}, conversations, checked.faults)

    def rated(self, row: Row, ratings: Sequence[float]) -> Row:
        """See `Layout.rated`."""
        columns = (self.entry.columns.score_chosen, self.entry.columns.score_rejected)
        return row | dict(zip(columns, ratings, strict=True))


@dataclass(frozen=True)
class AnswerLayout:
    """A question per row with one answer, rated in `score`, or a list of answers, rated in `scores`."""

    column: str

    def read(self, file: Path, images: ImageChecker) -> Iterator[RateableRow]:
        """See `Layout.read`."""
        for index, row in read_rows(file):
            if isinstance(row, Unreadable):
                yield RateableRow({}, faults=[unreadable_fault(row, index, file)])
                continue
            try:
                yield RateableRow(row, self._conversations(row, images))
            except PreferenceDataError as error:
                yield RateableRow(row, faults=[replace(fault, row=index, file=file) for fault in error.faults])

    def rated(self, row: Row, ratings: Sequence[float]) -> Row:
        """See `Layout.rated`."""
        if isinstance(row[self.column], list):
            return row | {"scores": list(ratings)}
        return row | {"score": ratings[0]}

    def _conversations(self, row: Row, images: ImageChecker) -> tuple[Conversation, ...]:
        found = images_of(row, *IMAGE_COLUMNS)
        question = with_placeholders(text_of(row, *QUESTION_COLUMNS), found, Counter())
        faults = [
            Fault(state.kind, f"image {place}", state.found, state.advice)
            for place, state in enumerate(images.states(found))
            if state.kind
        ]
        answers = row.get(self.column)
        texts: list[Any] = answers if isinstance(answers, list) else [answers]
        if not texts or not all(isinstance(text, str) for text in texts):
            faults.append(
                Fault("answer_type", self.column, repr(answers)[:60], "a text or a list of texts belongs there")
            )
        if faults:
            raise PreferenceDataError.of(faults)
        return tuple(Conversation(question, text, _resolved(found, images)) for text in texts)


def _resolved(found: tuple[Image, ...], images: ImageChecker) -> tuple[Image, ...]:
    """Images with their paths as the checker found them."""
    return tuple(str(images.resolve(image)) if isinstance(image, str) else image for image in found)
