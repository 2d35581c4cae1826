"""Reading questions from any table, and the names that their columns have wherever rows are read."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from uni_dpo.data.cells import (
    are_people_s,
    asked_in,
    choices_of,
    images_under,
    placed_images,
    refuse,
    texts_of,
    videos_under,
    without_placeholders,
)
from uni_dpo.data.columns import ID_COLUMNS, IMAGE_COLUMNS, REFERENCE_COLUMNS, first_filled, is_empty, plain_text
from uni_dpo.data.faults import Fault, PreferenceDataError, encodable, shown
from uni_dpo.data.image_state import BrokenImageError, MediaState, check_shape
from uni_dpo.data.images import ImageFolder, ImagePaths, image_paths, image_source, source_state
from uni_dpo.data.pair import Image
from uni_dpo.data.tables.reading import Row, Unreadable, numbered_rows, one_split, unreadable_fault
from uni_dpo.data.videos import DECODER, Video, check_listed, check_sizes, file_state, has_decoder
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Count
from uni_dpo.storage.identity import digest


@dataclass(frozen=True)
class InputOptions:
    """Where the questions are.

    Attributes:
        path: JSONL, JSON, Parquet, Arrow or CSV file. Empty where the caller hands questions over in Python.
        image_root: folder that relative image paths start from, else the file's; with it, no image may lie outside.
        limit: use only this many questions (the first by id).
        answers: what a column `answers` holds: `given` answers to rate, or `references`. `auto` takes ten short texts,
            or objects with an `answer_id`, for the references of TextVQA and VQAv2 where the row has no other.
    """

    path: str = ""
    image_root: str | None = None
    limit: Count | None = None
    answers: Literal["auto", "given", "references"] = "auto"


@dataclass(frozen=True)
class Question:
    """One question about zero or more images and videos.

    Attributes:
        id: unique in its data set; every later record of this question carries it.
        text: what is asked, without placeholders of images and videos.
        images: paths of the image files, in the order in which the question means them.
        reference: the right answer, where the data has one; of several the most frequent.
        options: letter → text of a multiple-choice question.
        answers: answers that came with the data, for the `given` sampler.
        references: all right answers where the data has several, with repeats; any of them is right.
        videos: those that the question is about, behind its images.
        place: file and row that it was read from, for messages.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    reference: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    system: str = ""
    videos: tuple[Video, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def called(self) -> str:
        """How a message names it."""
        return self.place or f"question {self.id}"

    def each_reference(self) -> list["Question"]:
        """Return the question once per different right answer; once where there is one or none."""
        several = dict.fromkeys(self.references)
        return [replace(self, reference=reference) for reference in several] or [self]

    def to_row(self) -> Row:
        """Return the question as JSON values.

        Its place is no part of it, and what it lacks of the last three is left out.
        """
        row = {name: _nested(list, value) for name, value in vars(self).items() if name != "place"}
        return {name: value for name, value in row.items() if value or name not in ("references", "system", "videos")}

    @classmethod
    def from_row(cls, row: Row) -> "Question":
        """Undo `to_row`: read what it wrote."""
        return cls(**{name: _nested(tuple, value) for name, value in row.items()})


def _nested(kind: type[list[Any]] | type[tuple[Any, ...]], value: Any) -> Any:
    """A value whose lists or tuples are of one kind."""
    return kind(_nested(kind, item) for item in value) if isinstance(value, list | tuple) else value


def read_questions(options: InputOptions, extracted: Path) -> list[Question]:
    """Return all questions of a file, sorted by id; embedded images go to `extracted`, under the hash of their bytes.

    Rows that repeat a question, without an id of their own, are counted on the terminal and asked once.

    Raises:
        UniDPOError: a row without text, an image that is missing or outside `image_root`, an id given twice.
    """
    questions: dict[str, Question] = {}
    repeated = 0
    for question, own_id in questions_in_order(options, extracted):
        if other := questions.get(question.id):
            if question == other and own_id is None:
                repeated += 1  # the same question twice, and no id that claims otherwise
                continue
            place = other.place.removeprefix(f"{options.path}, ")
            raise UniDPOError(f"{question.place}: the id {question.id!r} is also that of {place}; make ids unique")
        questions[question.id] = question
    if repeated:
        print(f"{options.path}: {repeated:,} of its rows repeat a question, which is asked once", file=sys.stderr)
    return sort_questions(questions.values(), options.limit)


def questions_in_order(options: InputOptions, extracted: Path) -> Iterator[tuple[Question, Any]]:
    """Yield every question of a file in its order, and the id that its row has; without one (None) the content is it.

    Raises:
        UniDPOError: see `read_questions`; ids may repeat.
    """
    if not options.path:
        raise UniDPOError("input.path: this setting is required")
    for file in one_split(options.path):
        paths = image_paths(options.image_root, options.image_root, file.parent)
        reader = _QuestionReader(options, paths, ImageFolder(extracted, paths))
        for index, line, row in numbered_rows(file):
            if isinstance(row, Unreadable):
                raise PreferenceDataError.of([unreadable_fault(row, index, file, line)])
            place = f"{file}, {Fault('', '', '', '', index, line=line).place}"
            try:
                yield replace(reader.question(row), place=place), first_filled(row, ID_COLUMNS)
            except PreferenceDataError as error:
                fault = error.faults[0]
                advice = f"; {fault.advice}" if fault.advice else ""
                raise UniDPOError(f"{place}, field {fault.field!r}: {fault.found}{advice}") from None


def sort_questions(questions: Iterable[Question], limit: int | None = None) -> list[Question]:
    """Return questions in the engine's order, which is by id and not by place; the first `limit` of them."""
    ordered = sorted(questions, key=lambda question: question.id)[:limit]
    if not ordered:
        raise UniDPOError("the input holds no questions")
    return ordered


def check_media(questions: Sequence[Question]) -> None:
    """Refuse questions of which no pairs can be made: a file is missing, or some videos are files and some frames."""
    first = next((question for question in questions if question.videos), None)
    for question in questions:
        frames = [[video] if isinstance(video, str) else video for video in question.videos]
        for path in (*question.images, *chain(*frames)):
            if not Path(path).is_file():
                raise UniDPOError(f"question {question.id}: there is no file {path}")
        if first and len({isinstance(video, str) for asked in (first, question) for video in asked.videos}) > 1:
            raise UniDPOError(
                f"{question.called}, field 'videos': in one file of pairs videos are all files or all lists of frames, "
                f"and those of {first.called} are not as these; make two runs of them"
            )


def refuse_videos(questions: Iterable[Question], what: str) -> None:
    """Refuse questions with videos, naming the first, on behalf of `what`, which shows a model images only."""
    for question in questions:
        if question.videos:
            raise UniDPOError(
                f"{question.called}, field 'videos': {what} shows images only: write frames into `images`"
            )


@dataclass(frozen=True)
class _QuestionReader:
    options: InputOptions
    paths: ImagePaths
    folder: ImageFolder
    films: dict[str, MediaState] = field(default_factory=dict)
    """What is known of the video files seen so far."""

    def question(self, row: Row) -> Question:
        """Return the question that a row holds; the caller adds its place, also to the error that it holds none."""
        system, asked = asked_in(row)
        column = next((name for name in IMAGE_COLUMNS if not is_empty(row.get(name))), "images")
        turns, images = placed_images([asked], images_under(row, column))
        text = without_placeholders(turns[0].text)
        choices = choices_of(row)
        text += "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())
        paths = tuple(self._file(image, column)[0] for image in images)
        films, found = videos_under(row, asked)
        videos = tuple(self._video(video, films) for video in found)
        references, answers = self._answers(row)
        reference = Counter(references).most_common(1)[0][0] if references else None
        own_id = first_filled(row, ID_COLUMNS)
        identity = plain_text(own_id)
        if identity is None and own_id is not None:
            refuse("id", shown(own_id), "a number or a text belongs there")
        texts = {"question": text, "id": identity or "", "system": system, "answer": "".join((*references, *answers))}
        for name, said in texts.items():
            if not encodable(said):
                refuse(name, f"broken UTF-8 in {shown(said)}", "write the text as UTF-8")
        if identity is None:
            identity = digest([text, paths, reference, *([videos] if videos else [])])
        several = tuple(references) if len(references) > 1 else ()
        return Question(identity, text, paths, reference, choices, tuple(answers), several, system, videos)

    def _file(self, image: Image, field: str) -> tuple[str, tuple[int, int]]:
        """The path of an image given as path, as base64 text, or as {bytes, path}; its width and height."""
        try:
            source = image_source(image, self.paths)
            name = "the encoded image" if isinstance(source, bytes) else str(source)
            state = source_state(source, name, decode=False)
            check_shape(state.width, state.height, name)
        except BrokenImageError as broken:
            refuse(field, broken.found, broken.advice)
        path = str(source.resolve()) if isinstance(source, Path) else str(self.folder.put(source))
        return path, (state.width, state.height)

    def _video(self, video: Any, field: str) -> Video:
        """The path of a video's file, or those of its frames, which are images as others are."""
        if not isinstance(video, str):
            try:
                check_listed(video)
                frames = [self._file(frame, field) for frame in video]
                check_sizes([size for _, size in frames])
            except BrokenImageError as broken:
                refuse(field, broken.found, broken.advice)
            return tuple(path for path, _ in frames)
        if not has_decoder():
            refuse(field, f"the package {DECODER}, which opens videos, is not installed", f"pip install {DECODER}")
        if video not in self.films:
            self.films[video] = file_state(video, self.paths)
        if (state := self.films[video]).kind:
            refuse(field, state.found, state.advice)
        return str(self.paths.find(video).resolve())

    def _answers(self, row: Row) -> tuple[list[str], list[str]]:
        """The right answers of a row, and the answers to rate."""
        references = texts_of(row, REFERENCE_COLUMNS)
        given = texts_of(row, ("answers",))
        kind = self.options.answers
        if kind == "references" or (kind == "auto" and not references and are_people_s(row.get("answers"), given)):
            return references or given, []
        return references, given
