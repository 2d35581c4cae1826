"""Reading questions from any table, and the names that their columns have wherever rows are read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import (
    CONVERSATION_COLUMNS,
    ID_COLUMNS,
    IMAGE_COLUMNS,
    OPTION_COLUMNS,
    PROMPT_COLUMNS,
    REFERENCE_COLUMNS,
    TEXT_COLUMNS,
    VIDEO_COLUMNS,
    first_filled,
    is_empty,
    items_of,
    plain_text,
)
from uni_dpo.data.faults import Fault, PreferenceDataError, encodable, shown
from uni_dpo.data.image_state import BrokenImageError, check_shape
from uni_dpo.data.images import ImageFolder, ImagePaths, image_paths, image_source, source_state
from uni_dpo.data.messages import Turn, placed_images, turns_of
from uni_dpo.data.pair import Image, is_image
from uni_dpo.data.tables.reading import Row, Unreadable, numbered_rows, one_split, unreadable_fault
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Count
from uni_dpo.storage.identity import digest

_PEOPLE = 10
"""VQAv2 and TextVQA have the answers of ten people to every question."""


@dataclass(frozen=True)
class InputOptions:
    """Where the questions are.

    Attributes:
        path: JSONL, JSON, Parquet, Arrow or CSV file. Empty where the caller hands questions over in Python.
        image_root: folder that relative image paths start from; with it, no image may lie outside.
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
    """One question about zero or more images.

    Attributes:
        id: unique in its data set; every later record of this question carries it.
        text: what is asked, without image placeholders.
        images: paths of the image files, in the order in which the question means them.
        reference: the right answer, where the data has one; of several the most frequent.
        options: letter → text of a multiple-choice question.
        answers: answers that came with the data, for the `given` sampler.
        references: all right answers where the data has several, with repeats; any of them is right.
        system: the system prompt.
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

        Its place is no part of it, and what it lacks of the last two is left out.
        """
        row: Row = {
            "id": self.id,
            "text": self.text,
            "images": list(self.images),
            "reference": self.reference,
            "options": dict(self.options),
            "answers": list(self.answers),
        }
        several: Row = {"references": list(self.references)} if self.references else {}
        return row | several | ({"system": self.system} if self.system else {})

    @classmethod
    def from_row(cls, row: Row) -> "Question":
        """Undo `to_row`: read what it wrote."""
        tuples = {name: tuple(row.get(name, ())) for name in ("images", "answers", "references")}
        return cls(**{**row, **tuples})


def read_questions(options: InputOptions, extracted: Path) -> list[Question]:
    """Return all questions of a file, sorted by id.

    Args:
        extracted: folder that embedded images are written to, under the hash of their bytes.

    Raises:
        UniDPOError: a row without text, an image that is missing or outside `image_root`, an id given twice.
    """
    questions: dict[str, Question] = {}
    for question, own_id in questions_in_order(options, extracted):
        if other := questions.get(question.id):
            if question == other and own_id is None:
                continue  # the same question twice, and no id that claims otherwise
            place = other.place.removeprefix(f"{options.path}, ")
            raise UniDPOError(f"{question.place}: the id {question.id!r} is also that of {place}; make ids unique")
        questions[question.id] = question
    return sort_questions(questions.values(), options.limit)


def questions_in_order(options: InputOptions, extracted: Path) -> Iterator[tuple[Question, Any]]:
    """Yield every question of a file in its order, and the id that its row has.

    Without one (None) the content is the id.

    Raises:
        UniDPOError: see `read_questions`; ids may repeat.
    """
    if not options.path:
        raise UniDPOError("input.path: this setting is required")
    for file in one_split(options.path):
        paths = image_paths(options.image_root, options.image_root, None if options.image_root else file.parent)
        reader = _QuestionReader(options, paths, ImageFolder(extracted, paths))
        for index, line, row in numbered_rows(file):
            if isinstance(row, Unreadable):
                raise PreferenceDataError.of([unreadable_fault(row, index, file, line)])
            place = f"{file}, {Fault('', '', '', '', index, line=line).place}"
            try:
                yield replace(reader.question(row), place=place), first_filled(row, ID_COLUMNS)
            except PreferenceDataError as error:
                fault = error.faults[0] if error.faults else Fault("question", "row", str(error), "")
                advice = f"; {fault.advice}" if fault.advice else ""
                raise UniDPOError(f"{place}, field {fault.field!r}: {fault.found}{advice}") from None


def sort_questions(questions: Iterable[Question], limit: int | None = None) -> list[Question]:
    """Return questions in the engine's order, which is by id and not by place; the first `limit` of them."""
    ordered = sorted(questions, key=lambda question: question.id)[:limit]
    if not ordered:
        raise UniDPOError("the input holds no questions")
    return ordered


def _fault(field: str, found: str, advice: str = "") -> PreferenceDataError:
    return PreferenceDataError.of([Fault("question", field, found, advice)])


@dataclass(frozen=True)
class _QuestionReader:
    options: InputOptions
    paths: ImagePaths
    folder: ImageFolder

    def question(self, row: Row) -> Question:
        """Return the question that a row holds; the caller adds its place.

        Raises:
            PreferenceDataError: there is none.
        """
        if film := next((name for name in VIDEO_COLUMNS if not is_empty(row.get(name))), None):
            raise _fault(film, "a video", "only images can be asked about: write frames into `images`")
        system, asked = _asked(row)
        column = next((name for name in IMAGE_COLUMNS if not is_empty(row.get(name))), "images")
        turns, images = placed_images([asked], _images(row, column))
        text = turns[0].text.replace(IMAGE_TOKEN, "").strip()
        choices = _choices(first_filled(row, OPTION_COLUMNS) or _lettered(row))
        text += "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())
        paths = tuple(self._file(image, column) for image in images)
        references, answers = self._answers(row)
        reference = Counter(references).most_common(1)[0][0] if references else None
        identity = plain_text(first_filled(row, ID_COLUMNS))
        if identity is None and first_filled(row, ID_COLUMNS) is not None:
            raise _fault("id", shown(first_filled(row, ID_COLUMNS)), "a number or a text belongs there")
        for name, said in (
            ("question", text),
            ("id", identity or ""),
            ("system", system),
            ("answer", "".join((*references, *answers))),
        ):
            if not encodable(said):
                raise _fault(name, f"broken UTF-8 in {shown(said)}", "write the text as UTF-8")
        return Question(
            digest([text, paths, reference]) if identity is None else identity,
            text,
            paths,
            reference,
            choices,
            tuple(answers),
            tuple(references) if len(references) > 1 else (),
            system,
        )

    def _file(self, image: Image, field: str) -> str:
        """The path of an image given as path, as base64 text, or as {bytes, path}."""
        try:
            source = image_source(image, self.paths)
            name = "the encoded image" if isinstance(source, bytes) else str(source)
            state = source_state(source, name, decode=False)
            check_shape(state.width, state.height, name)
        except BrokenImageError as broken:
            raise _fault(field, broken.found, broken.advice) from None
        return str(source.resolve()) if isinstance(source, Path) else str(self.folder.put(source))

    def _answers(self, row: Row) -> tuple[list[str], list[str]]:
        """The right answers of a row, and the answers to rate."""
        references = texts_of(row, REFERENCE_COLUMNS)
        given = texts_of(row, ("answers",))
        kind = self.options.answers
        if kind == "references" or (kind == "auto" and not references and _are_people_s(row.get("answers"), given)):
            return references or given, []
        return references, given


def _images(row: Row, column: str) -> list[Image]:
    images = [image for image in items_of(row.get(column)) if not is_empty(image)]
    for image in images:
        if not is_image(image):
            raise _fault(column, shown(image), "a path, base64 text or {bytes, path} belongs there")
    return images


def texts_of(row: Row, columns: Sequence[str]) -> list[str]:
    """Return what stands under the first of `columns` that holds something, as texts.

    Raises:
        PreferenceDataError: an item that has no text.
    """
    column = next((name for name in columns if not is_empty(row.get(name))), None)
    values = [] if column is None else [value for value in items_of(row[column]) if not is_empty(value)]
    texts = [plain_text(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if text is None and not isinstance(value, str):
            raise _fault(str(column), shown(value), "a text, a number, or an object with a `text` belongs there")
    return [text for text in texts if text is not None]


def _are_people_s(value: object, texts: Sequence[str]) -> bool:
    if any(isinstance(answer, Mapping) and "answer_id" in answer for answer in items_of(value)):
        return True
    return len(texts) == _PEOPLE and all(len(text) <= 80 and "\n" not in text for text in texts)


def _asked(row: Row) -> tuple[str, Turn]:
    """The system prompt of a row, and what the user says first."""
    value = first_filled(row, TEXT_COLUMNS)
    if value is None:
        value = first_filled(row, CONVERSATION_COLUMNS)
    if value is None or (isinstance(value, str) and not value.replace(IMAGE_TOKEN, "").strip()):
        names = " or ".join(f"`{name}`" for name in TEXT_COLUMNS)
        found = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), None)
        raise _fault("question", f"a text is expected, not {shown(found)}", f"name its column {names}")
    turns = turns_of(value, "question", "user")
    asked = next((turn for turn in turns if turn.role == "user" and turn.text.replace(IMAGE_TOKEN, "").strip()), None)
    if asked is None:
        raise _fault("question", "a conversation in which the user says nothing", "write the question")
    system = row.get("system")
    if not is_empty(system) and not isinstance(system, str):
        raise _fault("system", shown(system), "a text belongs there")
    said = [turn.text for turn in turns if turn.role == "system"]
    return (system if isinstance(system, str) and system.strip() else "\n".join(said)), asked


def _lettered(row: Row) -> Row | None:
    """The options that stand in columns `A`, `B` and so on, as in VLMEvalKit's files; None where there are no two."""
    letters = {letter: row[letter] for letter in map(chr, range(ord("A"), ord("Z") + 1)) if letter in row}
    return letters if {"A", "B"} <= letters.keys() else None


def _choices(value: Any) -> dict[str, str]:
    if is_empty(value):
        return {}
    if isinstance(value, list):
        if len(value) > 26:
            raise _fault("options", f"{len(value)} of them", "at most 26 have a letter")
        value = {chr(ord("A") + index): choice for index, choice in enumerate(value)}
    if not isinstance(value, Mapping):
        raise _fault("options", shown(value), "a list of texts or a mapping letter → text is expected")
    choices = {str(letter).upper(): plain_text(choice) for letter, choice in value.items() if not is_empty(choice)}
    return {letter: choice for letter, choice in choices.items() if choice is not None}
