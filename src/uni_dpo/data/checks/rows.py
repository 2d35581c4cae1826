"""The faults of preference pairs: one pass over a file, rows in order, memory that does not grow."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.image_state import MediaState
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.pair import PreferencePair, is_image, listed_images, read_pair
from uni_dpo.data.ranking import ALL_PAIRS, PairChoice, read_ranked
from uni_dpo.data.tables.reading import Row, Unreadable, numbered_rows, unreadable_fault
from uni_dpo.data.videos import VideoChecker

IMAGE_TOKEN = os.environ.get("IMAGE_PLACEHOLDER", "<image>")
"""What stands for an image in a text; LlamaFactory lets the same variable change it."""
MEDIA_TOKENS = {
    "images": IMAGE_TOKEN,
    "videos": os.environ.get("VIDEO_PLACEHOLDER", "<video>"),
    "audios": os.environ.get("AUDIO_PLACEHOLDER", "<audio>"),
}
MODEL_MARKERS = (
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image|>", "<|video|>", "<IMG_CONTEXT>", "<image_soft_token>"),
)
"""Texts that a tokenizer of Qwen-VL, GLM-4V, InternVL or Gemma 3 reads as the places of an image, and training then
counts as such."""
_ROWS_AT_ONCE = 256


@dataclass(slots=True)
class CheckedRow:
    """One row after its check: usable when `faults` is empty.

    Attributes:
        index: 0-based position in `file`.
        row: what the file holds there; None where it could not be read.
        pairs: what the row says; none where no pair can be made of it.
        image_states, video_states: one per image and video, in the row's order; empty where they are left alone.
        odd_images: the field of every image that a viewer shows in another way, with why, as `oddity` tells.
        line: the line of `file` that it starts in, from 1; None where the file has no lines.
    """

    file: Path
    index: int
    row: Row | None
    pairs: list[PreferencePair] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    image_states: list[MediaState] = field(default_factory=list)
    video_states: list[MediaState] = field(default_factory=list)
    line: int | None = None
    odd_images: list[tuple[str, str]] = field(default_factory=list)

    def placed(self, fault: Fault) -> Fault:
        """Return a fault of this row, with the row's place."""
        name = (self.row or {}).get("id")
        return replace(
            fault, row=self.index, file=self.file, line=self.line, id=name if isinstance(name, str | int) else None
        )


@dataclass(frozen=True)
class RowChecker:
    """Judges the rows of a dataset.

    Attributes:
        entry: how they are laid out.
        images, videos: look at the images and videos; None leaves them alone.
        scores_required: whether a row without scores is a fault.
        choice: which pairs of ranked answers count.
    """

    entry: DatasetEntry
    images: ImageChecker | None
    videos: VideoChecker | None = None
    scores_required: bool = True
    choice: PairChoice = ALL_PAIRS

    def rows(self, file: Path, limit: int | None = None) -> Iterator[CheckedRow]:
        """Yield the rows of one file, `limit` at most.

        Raises:
            PreferenceDataError: the file, or the rest of it, cannot be read.
        """
        rows = islice(numbered_rows(file), limit)
        for batch in _batches((self._row(file, *row) for row in rows), _ROWS_AT_ONCE):
            self._look(batch)
            yield from batch

    def again(self, checked: CheckedRow, row: Row) -> CheckedRow:
        """Judge a changed `row` that stands where `checked` stood."""
        again = self._row(checked.file, checked.index, checked.line, row)
        self._look([again])
        return again

    def _row(self, file: Path, index: int, line: int | None, row: Row | Unreadable) -> CheckedRow:
        if isinstance(row, Unreadable):
            return CheckedRow(file, index, None, faults=[unreadable_fault(row, index, file, line)], line=line)
        checked, entry = CheckedRow(file, index, row, line=line), self.entry
        question: PreferencePair | None
        if entry.ranked:
            ranked = read_ranked(row, entry, checked.faults, scores_required=self.scores_required)
            question = ranked.question if ranked else None
            checked.pairs = ranked.pairs(self.choice) if ranked else []
            column = str(entry.columns.answers)
            answers = [(f"{column}[{at}]", answer.text) for at, answer in enumerate(ranked.answers if ranked else ())]
        else:
            question = read_pair(row, entry, checked.faults, scores_required=self.scores_required)
            checked.pairs = [question] if question else []
            answers = [("chosen", question.chosen), ("rejected", question.rejected)] if question else []
        if question is not None:
            checked.faults += _placeholder_faults(row, question, answers, entry)
            checked.faults += _marker_faults(question, answers, entry)
        checked.faults = [checked.placed(fault) for fault in checked.faults]
        return checked

    def _look(self, batch: list[CheckedRow]) -> None:
        """Look at the images and videos of all rows, also of those that make no pair."""
        columns = self.entry.columns
        for column in filter(None, (columns.images, columns.rejected_images)):
            if self.images is not None:
                _check_column(batch, self.images, column, keep=column == columns.images)
        if self.videos is not None:
            _check_videos(batch, self.videos, self.entry)


def _placeholder_faults(
    row: Row, question: PreferencePair, answers: list[tuple[str, str]], entry: DatasetEntry
) -> Iterator[Fault]:
    """LlamaFactory counts the placeholders of the whole conversation, once per answer."""
    asked = [question.instruction, *(text for turn in question.history for text in turn)]
    for medium, token in MEDIA_TOKENS.items():
        column = getattr(entry.columns, medium)
        media = len(listed_images(row, column))
        before = sum(text.count(token) for text in asked)
        for name, answer in answers:
            count = before + answer.count(token)
            if count != media:
                found = f"{count} × {token} in the conversation with the {name} answer, {media} {medium}"
                by_itself = ", or let --fix do so" if medium == "images" and not (count or question.history) else ""
                advice = f"write one {token} per item of {medium}{by_itself}"
                yield Fault("image_count", column or medium, found, advice)
                break


def _marker_faults(question: PreferencePair, answers: list[tuple[str, str]], entry: DatasetEntry) -> Iterator[Fault]:
    """Texts in which a model would see images that are not there."""
    columns = entry.columns
    prompt = columns.prompt if entry.formatting == "alpaca" else columns.messages
    texts = (
        (columns.system or prompt, question.system),
        (columns.history or prompt, "\n".join(text for turn in question.history for text in turn)),
        (prompt, question.instruction),
        *((getattr(columns, name, name), text) for name, text in answers),
    )
    for column, text in texts:
        if "<" in text and (marker := next((marker for marker in MODEL_MARKERS if marker in text), None)):
            found = f"the text {marker}, which the model reads as part of an image"
            yield Fault("model_marker", str(column), found, "write it in another way, or remove the row")


def _check_column(batch: list[CheckedRow], images: ImageChecker, column: str, *, keep: bool) -> None:
    named = [[(i, v) for i, v in enumerate(listed_images(row.row or {}, column)) if is_image(v)] for row in batch]
    states = iter(images.states([image for row in named for _, image in row]))
    for row, items in zip(batch, named, strict=True):
        for place, _ in items:
            state = next(states)
            if keep:
                row.image_states.append(state)
            where = f"{column}[{place}]"
            if state.odd:
                row.odd_images.append((where, state.odd))
            if state.kind:
                row.faults.append(row.placed(Fault(state.kind, where, state.found, state.advice)))


def _check_videos(batch: list[CheckedRow], videos: VideoChecker, entry: DatasetEntry) -> None:
    for row in batch:
        for place, video in enumerate(listed_images(row.row or {}, entry.columns.videos)):
            state = videos.state(video)
            row.video_states.append(state)
            if state.kind:
                where = f"{entry.columns.videos}[{place}]"
                row.faults.append(row.placed(Fault(state.kind, where, state.found, state.advice)))


def _batches(rows: Iterable[CheckedRow], size: int) -> Iterator[list[CheckedRow]]:
    """Rows in lists of `size`; where the reading fails, what was read before comes first."""
    batch: list[CheckedRow] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
    except PreferenceDataError:
        yield batch
        raise
    yield batch
