"""Reading questions from any table that `preferences.sources` reads, images embedded or by path."""

import base64
import binascii
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import digest
from uni_dpo.storage.writing import replacing

Row = dict[str, Any]
"""One question as JSON values."""
ID_COLUMNS = ("question_id", "id", "idx")
TEXT_COLUMNS = ("question", "instruction", "prompt", "problem")
CONVERSATION_COLUMNS = ("messages", "conversations")
REFERENCE_COLUMNS = ("answer", "reference", "label", "solution")
IMAGE_COLUMNS = ("images", "image_path", "image")


@dataclass(frozen=True)
class InputOptions:
    """Where the questions are.

    Attributes:
        path: JSONL, JSON or Parquet file. Empty where the caller hands questions over in Python.
        image_root: folder that relative image paths start from; with it, no image may lie outside.
        limit: use only this many questions (the first by id).
    """

    path: str = ""
    image_root: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Question:
    """One question about zero or more images.

    Attributes:
        id: unique in its data set; every later record of this question carries it.
        text: what is asked, without image placeholders.
        images: paths of the image files, in the order in which the question means them.
        reference: the right answer, where the data has one.
        options: letter → text of a multiple-choice question.
        answers: answers that came with the data, for the `given` sampler.
        place: file and row that it was read from, for messages.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    reference: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def called(self) -> str:
        """How a message names it."""
        return self.place or f"question {self.id}"

    def to_row(self) -> Row:
        """The question as JSON values; its place is no part of it."""
        return {
            "id": self.id,
            "text": self.text,
            "images": list(self.images),
            "reference": self.reference,
            "options": dict(self.options),
            "answers": list(self.answers),
        }

    @classmethod
    def from_row(cls, row: Row) -> "Question":
        """The inverse of `to_row`."""
        return cls(**{**row, "images": tuple(row["images"]), "answers": tuple(row["answers"])})


def read_questions(options: InputOptions, extracted: Path) -> list[Question]:
    """All questions of a file, sorted by id.

    Args:
        extracted: folder that embedded images are written to, under the hash of their bytes.

    Raises:
        UniDPOError: a row without text, an image that is missing or outside `image_root`, an id given twice.
    """
    if not options.path:
        raise UniDPOError("input.path: this setting is required")
    path = Path(options.path)
    questions: dict[str, Question] = {}
    places: dict[str, int] = {}
    for number, row in enumerate(iter_rows(path)):
        where = f"{path}, row {number}"
        question = _question(row, options, extracted, where)
        if question.id in questions:
            if question == questions[question.id] and not any(column in row for column in ID_COLUMNS):
                continue  # the same question twice, and no id that claims otherwise
            raise UniDPOError(f"{where}: the id {question.id!r} is that of row {places[question.id]} too")
        questions[question.id], places[question.id] = question, number
    return sort_questions(questions.values(), options.limit)


def sort_questions(questions: Iterable[Question], limit: int | None = None) -> list[Question]:
    """Questions in the engine's order, which is by id and not by place; the first `limit` of them."""
    ordered = sorted(questions, key=lambda question: question.id)[:limit]
    if not ordered:
        raise UniDPOError("the input holds no questions")
    return ordered


def _question(row: Mapping[str, Any], options: InputOptions, extracted: Path, where: str) -> Question:
    text = _first(row, TEXT_COLUMNS) or _first_user_turn(row)
    if not isinstance(text, str) or not text.replace("<image>", "").strip():
        raise UniDPOError(f"{where}, field 'question': a text is expected, not {text!r}")
    text = text.replace("<image>", "").strip()
    choices = _choices(row.get("options"), where)
    if choices:
        text += "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())
    images = tuple(
        _image(value, options.image_root, extracted, f"{where}, field {column!r}")
        for column in IMAGE_COLUMNS[: 1 if row.get("images") else None]
        for value in _as_list(row.get(column))
    )[: None if row.get("images") else 1]
    reference = _first(row, REFERENCE_COLUMNS)
    reference = None if reference is None else str(reference)
    identity = _first(row, ID_COLUMNS)
    if identity is None:
        identity = digest([text, images, reference])
    answers = tuple(str(answer) for answer in _as_list(row.get("answers")))
    return Question(str(identity), text, images, reference, choices, answers, place=where)


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _first_user_turn(row: Mapping[str, Any]) -> Any:
    """What the user says first in a sharegpt or openai conversation."""
    for turn in _as_list(_first(row, CONVERSATION_COLUMNS)):
        if isinstance(turn, Mapping) and _first(turn, ("role", "from")) in ("user", "human"):
            return _first(turn, ("content", "value"))
    return None


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _choices(value: Any, where: str) -> dict[str, str]:
    if not value:
        return {}
    if isinstance(value, list):
        value = {chr(ord("A") + index): choice for index, choice in enumerate(value)}
    if not isinstance(value, Mapping):
        raise UniDPOError(f"{where}, field 'options': a list of texts or a mapping letter → text is expected")
    return {str(letter).upper(): str(choice) for letter, choice in value.items() if choice is not None}


def _image(value: Any, root: str | None, extracted: Path, where: str) -> str:
    """The path of an image given as path, as base64 text, or as {bytes, path}."""
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return _write_image(value["bytes"], extracted, where)
        value = value.get("path")
    if not isinstance(value, str):
        raise UniDPOError(f"{where}: a path, base64 text or {{bytes, path}} is expected, not {value!r}")
    if len(value) < 1024 and (found := _inside(value, root, where)) is not None:
        return found
    try:
        data = base64.b64decode(value.partition(";base64,")[2] or value, validate=True)
    except (binascii.Error, ValueError):
        raise UniDPOError(f"{where}: there is no image file {value[:200]!r}") from None
    return _write_image(data, extracted, where)


def _inside(value: str, root: str | None, where: str) -> str | None:
    path = Path(root, value) if root else Path(value)
    if not path.is_file():
        return None
    resolved = path.resolve()
    if root and not resolved.is_relative_to(Path(root).resolve()):
        raise UniDPOError(f"{where}: {value!r} leads out of the image root {root}")
    return str(resolved)


def _write_image(data: bytes, folder: Path, where: str) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
            suffix = (image.format or "png").lower().replace("jpeg", "jpg")
    except Exception as error:
        raise UniDPOError(f"{where}: these {len(data)} bytes are no image: {error}") from error
    path = folder / f"{hashlib.sha256(data).hexdigest()[:24]}.{suffix}"
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    return str(path.resolve())
