"""`uni-dpo score`: rate every answer of a file, keep what is done, write the file when all is done."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from uni_dpo.data.checks.rows import MEDIA_TOKENS, RowChecker
from uni_dpo.data.columns import ANSWER_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, VIDEO_COLUMNS, first_filled, items_of
from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import KEPT_FAULTS, Fault, PreferenceDataError
from uni_dpo.data.formats.base import SourceRow, refuse
from uni_dpo.data.image_paths import leading
from uni_dpo.data.image_state import MediaState
from uni_dpo.data.images import ImageChecker, image_paths
from uni_dpo.data.register import detect_entry
from uni_dpo.data.tables.reading import (
    Row,
    Unreadable,
    counted,
    is_file,
    iter_rows,
    numbered_rows,
    one_split,
    unreadable_fault,
)
from uni_dpo.data.tables.writing import row_writer
from uni_dpo.data.videos import VideoChecker
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.loop import Ask, ask_all, replies_for
from uni_dpo.inference.settings import ScoreSettings
from uni_dpo.models.backends.base import Failure
from uni_dpo.models.rewards import load_reward_model
from uni_dpo.models.rewards.options import (
    Conversation,
    RewardModelOptions,
    both_answers,
    checkpoint_identity,
    find_reward_checkpoint,
)
from uni_dpo.storage.identity import contents, digest
from uni_dpo.storage.rowlog import RowLog


@dataclass
class ScoreReport:
    """What was rated.

    Attributes:
        output: the file that was written.
        rows: its rows.
        agreement: for pairs, the share whose chosen answer is rated above the rejected one.
        median: of the ratings of chosen answers, or of all answers where there are no pairs.
    """

    output: Path
    rows: int = 0
    agreement: float | None = None
    median: float = 0.0

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        lines = [f"rows: {self.rows:,}", f"output: {self.output}"]
        if self.agreement is None:
            return [*lines, f"median rating: {self.median:.3f}"]
        return [
            *lines,
            f"chosen rated above rejected: {self.agreement:.1%}",
            f"median rating of chosen (for uni_dpo_tau_good, if the NLL term is on): {self.median:.3f}",
        ]


def score_file(settings: ScoreSettings) -> ScoreReport:
    """Rate the answers in `source` and write its rows with their ratings to `output`.

    Pairs get `score_chosen` and `score_rejected` (or the columns that hold scores already), a row with one
    answer gets `score`, a row with a list of answers `scores`. What is rated is kept beside `output` in
    `OUTPUT.ratings.jsonl` until the file is written, so a run that was stopped resumes.

    Raises:
        UniDPOError: an output that cannot be written, rows that cannot be rated, all of them named, or no reward
            model; nothing is loaded by then.
    """
    files = one_split(settings.source)
    checkpoint = find_reward_checkpoint(settings)
    layout = layout_of(settings.source, settings.answer_column)
    images = ImageChecker(image_paths(settings.image_root or files[0].parent, settings.image_root))
    videos = VideoChecker(images)
    model_digest = digest(checkpoint_identity(settings))
    with replies_for(settings.source, settings.output, "ratings") as done, images.running():
        rateable: dict[str, Conversation] = {}
        for row in _usable_rows(files, layout, videos, sees_images=checkpoint.kind == "value_head"):
            rateable |= {_key(conversation, model_digest): conversation for conversation in row.conversations}
        load = partial(_rating, settings)
        ask_all(rateable, done, load, title="Rating", unit="answers", batch_size=settings.batch_size)
        return _write(settings, files, layout, videos, done, model_digest)


@dataclass(slots=True)
class RateableRow:
    """One row of a file, and what of it is to be rated; usable when `faults` is empty."""

    row: Row
    conversations: tuple[Conversation, ...] = ()
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class PairLayout:
    """Pairs in any layout that LlamaFactory reads; the ratings become the score columns."""

    entry: DatasetEntry

    def read(self, file: Path, videos: VideoChecker) -> Iterator[RateableRow]:
        """Return all rows of one file, in order; `videos` looks at what they show, images included."""
        for checked in RowChecker(self.entry, videos.images, videos, scores_required=False).rows(file):
            conversations: tuple[Conversation, ...] = ()
            if checked.pairs and not checked.faults:
                pair, images = checked.pairs[0], videos.images
                shown, films = _resolved(pair.images, images), _resolved(pair.videos, images)
                conversations = both_answers(replace(pair, images=shown, videos=films))
            yield RateableRow(checked.row or {}, conversations, checked.faults)

    def rated(self, row: Row, ratings: Sequence[float]) -> Row:
        """Return a row with the ratings of its conversations."""
        columns = (self.entry.columns.score_chosen, self.entry.columns.score_rejected)
        return row | dict(zip(columns, ratings, strict=True))


@dataclass(frozen=True)
class AnswerLayout:
    """A question per row with one answer, rated in `score`, or a list of answers, rated in `scores`."""

    column: str

    def read(self, file: Path, videos: VideoChecker) -> Iterator[RateableRow]:
        """See `PairLayout.read`."""
        for index, _, row in numbered_rows(file):
            if isinstance(row, Unreadable):
                yield RateableRow({}, faults=[unreadable_fault(row, index, file)])
                continue
            try:
                yield RateableRow(row, self._conversations(row, videos))
            except PreferenceDataError as error:
                yield RateableRow(row, faults=[replace(fault, row=index, file=file) for fault in error.faults])

    def rated(self, row: Row, ratings: Sequence[float]) -> Row:
        """See `PairLayout.rated`."""
        if isinstance(row[self.column], list):
            return row | {"scores": list(ratings)}
        return row | {"score": ratings[0]}

    def _conversations(self, row: Row, videos: VideoChecker) -> tuple[Conversation, ...]:
        images, given = videos.images, SourceRow(row)
        found = given.images(*IMAGE_COLUMNS)
        question = given.with_placeholders(given.text(*TEXT_COLUMNS), found)
        films = tuple(items_of(first_filled(row, VIDEO_COLUMNS)))
        token = MEDIA_TOKENS["videos"]
        if (waiting := question.count(token)) > len(films):
            refuse("videos", f"{waiting} × {token}, {len(films)} videos", f"remove the surplus {token}")
        question = token * (len(films) - waiting) + question
        states: list[tuple[str, MediaState]] = [
            *((f"image {place}", state) for place, state in enumerate(images.states(found))),
            *((f"video {place}", videos.state(film)) for place, film in enumerate(films)),
        ]
        faults = [Fault(state.kind, name, state.found, state.advice) for name, state in states if state.kind]
        answers = row.get(self.column)
        texts: list[Any] = answers if isinstance(answers, list) else [answers]
        if not texts or not all(isinstance(text, str) for text in texts):
            faults.append(
                Fault("answer_type", self.column, repr(answers)[:60], "a text or a list of texts belongs there")
            )
        if faults:
            raise PreferenceDataError.of(faults)
        shown, films = _resolved(found, images), _resolved(films, images)
        return tuple(Conversation(question, text, shown, videos=films) for text in texts)


Layout = PairLayout | AnswerLayout
"""How the rows of a file are read, and where their ratings go."""


def layout_of(source: str | Path, answer_column: str | None = None) -> Layout:
    """Return the layout of a file, by the columns of its first row.

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


def _resolved(found: Sequence[Any], images: ImageChecker) -> tuple[Any, ...]:
    """Images and videos, some of them lists of frames, with their paths as the checker found them."""
    return tuple(
        str(images.resolve(one))
        if isinstance(one, str)
        else _resolved(one, images)
        if isinstance(one, list | tuple)
        else one
        for one in found
    )


def _usable_rows(
    files: list[Path], layout: Layout, videos: VideoChecker, *, sees_images: bool
) -> Iterator[RateableRow]:
    """All rows; in the end an error that names those which cannot be rated."""
    faults: list[Fault] = []
    count = 0
    for file in files:
        for index, row in enumerate(counted(layout.read(file, videos), f"Checking {file.name}")):
            if not sees_images and any(each.images or each.videos for each in row.conversations):
                advice = "rate it with a reward model that LlamaFactory trained (stage: rm)"
                column = "images" if row.conversations[0].images else "videos"
                row.faults.append(Fault("image_unseen", column, f"a classifier sees no {column}", advice, index, file))
            count += len(row.faults)
            faults += row.faults[: KEPT_FAULTS - len(faults)]
            if not count:
                yield row
    if count:
        raise PreferenceDataError.of(faults, total=count)


def _key(conversation: Conversation, model: str) -> str:
    shown = [str(image) for image in (*conversation.images, *conversation.videos)]
    files = contents(path for path in shown if is_file(Path(path)))
    return digest((conversation.messages(), conversation.system, shown, model, *files))


def _rating(options: RewardModelOptions) -> Ask[Conversation]:
    model = load_reward_model(options)

    def ask(batch: Sequence[Conversation]) -> list[Row | Failure]:
        ratings = model.rate(list(batch))
        if not all(map(math.isfinite, ratings)):
            raise UniDPOError(f"{options.model}: its ratings are {ratings}; train it anew, or name another model")
        return [{"rating": rating} for rating in ratings]

    return ask


def _write(
    settings: ScoreSettings, files: list[Path], layout: Layout, videos: VideoChecker, done: RowLog, model: str
) -> ScoreReport:
    report = ScoreReport(settings.output)
    agreeing, first_ratings = 0, []
    lead = leading(settings.output if settings.image_root else files[0], settings.output)
    with row_writer(settings.output) as writer:
        for file in files:
            for row in layout.read(file, videos):
                ratings = [float(done.rows[_key(conversation, model)]["rating"]) for conversation in row.conversations]
                writer.write(lead(layout.rated(row.row, ratings)))
                report.rows += 1
                agreeing += ratings[0] > ratings[-1]
                first_ratings += ratings[:1] if isinstance(layout, PairLayout) else ratings
    report.median = median(first_ratings)
    if isinstance(layout, PairLayout):
        report.agreement = agreeing / report.rows
    return report
