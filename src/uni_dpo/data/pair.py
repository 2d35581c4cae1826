"""The pair record, and reading it from a row of LlamaFactory's alpaca, sharegpt and openai formats."""

import math
import numbers
import string
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any

from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import Fault, encodable, shown
from uni_dpo.settings.options import as_number

_UNSEEN = string.whitespace + "\xa0\u3000\u200b\u200c\u200d\u2060\ufeff"
"""Characters that show nothing: an answer of them alone is empty."""
MAX_SCORE = 3.4e38
"""Scores travel as float32, which has no larger numbers."""
Image = str | bytes | dict[str, Any]
"""A path, an encoded image, or the `{"bytes": …, "path": …}` that `datasets` stores."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One question with a better and a worse answer.

    Attributes:
        instruction: the question, one `<image>` per image that stands in it.
        chosen, rejected: the better and the worse answer.
        score_chosen, score_rejected: how good each answer is; None where the file has no score.
        images: paths or encoded images, in the order of their `<image>`.
        id: what the file calls this pair.
        system: the system prompt.
        history: earlier turns as (question, answer).
        rejected_images: what the worse answer sees in place of `images`; none where both see the same.
        videos: paths, or lists of frames, in the order of their `<video>`.
    """

    instruction: str
    chosen: str
    rejected: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    images: tuple[Image, ...] = ()
    id: str | int | None = None
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    rejected_images: tuple[Image, ...] = ()
    videos: tuple[Any, ...] = ()


def read_pair(
    row: dict[str, Any], entry: DatasetEntry, faults: list[Fault], *, scores_required: bool = True
) -> PreferencePair | None:
    """Return the pair that a row holds; what is wrong with the row is appended to `faults`.

    Returns:
        None where no pair can be made of the row.
    """
    reader, columns = RowReader(row, entry, faults), entry.columns
    turns = reader.turns()
    chosen, rejected = reader.answer(columns.chosen), reader.answer(columns.rejected)
    question = reader.question(turns)
    score_chosen = read_score(row, columns.score_chosen, faults, required=scores_required)
    score_rejected = read_score(row, columns.score_rejected, faults, required=scores_required)
    if question is None or chosen is None or rejected is None:
        return None
    return replace(question, chosen=chosen, rejected=rejected, score_chosen=score_chosen, score_rejected=score_rejected)


def read_score(row: dict[str, Any], column: str, faults: list[Fault], *, required: bool = True) -> float | None:
    """Return the finite number under `column`; anything else is None, and a fault where scores are `required`."""
    value = row.get(column)
    match value:
        case bool():
            kind, found = "score_boolean", f"the truth value {value}"
        case numbers.Real() | Decimal():
            number = as_number(value)
            score = math.inf if number is None else number  # an integer beyond every float
            if abs(score) <= MAX_SCORE:
                return score
            nan = math.isnan(score)
            kind, found = ("score_nan", "NaN") if nan else ("score_infinite", f"{score:g}, too large for float32")
        case str():
            kind, found = "score_text", f"the text {shown(value)}"
        case None if column in row:
            kind, found = "score_null", "null"
        case None:
            kind, found = "score_missing", f"no such column (it has {_names(row)})"
        case _:
            kind, found = "score_type", f"{shown(value)} ({type(value).__name__})"
    if required:
        advice = "map the score columns in dataset_info.json" if kind == "score_missing" else "give a finite number"
        faults.append(Fault(kind, column, found, f"{advice}, or remove the row"))
    return None


@dataclass(frozen=True, slots=True)
class Turns:
    """A question, what came before it as (question, answer), and the system prompt."""

    instruction: str
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""


class RowReader:
    """Reads the typed parts of one row and notes what is not as it should be."""

    def __init__(self, row: dict[str, Any], entry: DatasetEntry, faults: list[Fault]) -> None:
        self._row = row
        self._columns = entry.columns
        self._tags = entry.tags
        self._openai = entry.formatting == "openai"
        self._messages = entry.formatting != "alpaca"
        self._faults = faults

    def _fault(self, kind: str, field: str, found: str, advice: str) -> None:
        self._faults.append(Fault(kind, field, found, advice))

    def _text(self, value: object, field: str) -> str | None:
        if isinstance(value, str):
            if not value.isascii() and not encodable(value):
                self._fault("text_encoding", field, f"broken UTF-8 in {shown(value)}", "write the text as UTF-8")
            return value
        kind, found = ("text_null", "null") if value is None else ("text_type", shown(value))
        self._fault(kind, field, found, "write text there")
        return None

    def required(self, column: str | None, role: str) -> tuple[bool, Any]:
        """Tell whether the row has the column that the entry names for `role`, and what stands there."""
        if column is None:
            self._fault("column_unmapped", role, "dataset_info.json names no column", f'add "{role}" to its columns')
            return False, None
        if column not in self._row:
            found = f"no such column (it has {_names(self._row)})"
            self._fault("column_missing", column, found, "map the columns in dataset_info.json")
            return False, None
        return True, self._row[column]

    def optional_text(self, column: str | None) -> str:
        """Return the text under `column`, empty where there is none."""
        value = self._row.get(column) if column else None
        return "" if value is None else self._text(value, str(column)) or ""

    def turns(self) -> Turns | None:
        """Return the question and what came before it, in whatever format the entry says."""
        return self._asked_in_messages() if self._messages else self._asked()

    def question(self, asked: Turns | None) -> PreferencePair | None:
        """Return what `turns` returned, with what the question is about, as a pair whose answers are empty."""
        columns, row = self._columns, self._row
        system = (asked.system if asked else "") or self.optional_text(columns.system)
        images, rejected_images = self.images(columns.images), self.images(columns.rejected_images)
        if rejected_images and len(rejected_images) != len(images):
            found = f"{len(rejected_images)} images for the rejected answer, {len(images)} for the chosen one"
            advice = "give as many as in `images`, in the same order, or none"
            self._fault("image_count", str(columns.rejected_images), found, advice)
        if asked is None:
            return None
        return PreferencePair(
            asked.instruction,
            chosen="",
            rejected="",
            images=images,
            id=row["id"] if isinstance(row.get("id"), str | int) else None,
            system=system,
            history=asked.history,
            rejected_images=rejected_images,
            videos=tuple(listed_images(row, columns.videos)),
        )

    def _asked(self) -> Turns | None:
        """The question and its history in alpaca's columns."""
        before = len(self._faults)
        present, prompt = self.required(self._columns.prompt, "prompt")
        texts = [self._text(prompt, str(self._columns.prompt)) if present else ""]
        texts.append(self.optional_text(self._columns.query))
        history = []
        turns = self._row.get(self._columns.history or "") or []
        if not isinstance(turns, list):
            self._fault("history_type", str(self._columns.history), shown(turns), "write a list of [question, answer]")
            return None
        for index, turn in enumerate(turns):
            field = f"{self._columns.history}[{index}]"
            if isinstance(turn, list | tuple) and len(turn) == 2:
                history.append((self._text(turn[0], field) or "", self._text(turn[1], field) or ""))
            else:
                self._fault("history_shape", field, shown(turn), "write [question, answer]")
        if len(self._faults) > before:
            return None
        return Turns("\n".join(text for text in texts if text), tuple(history))

    def _asked_in_messages(self) -> Turns | None:
        """The question, its history and the system prompt in a list of messages that ends with the question."""
        present, messages = self.required(self._columns.messages, "messages")
        if not present:
            return None
        column = str(self._columns.messages)
        if not isinstance(messages, list) or not messages:
            self._fault("messages_type", column, shown(messages), "write a list of messages")
            return None
        parsed = [self._message(message, f"{column}[{index}]") for index, message in enumerate(messages)]
        turns = [message for message in parsed if message is not None]
        if len(turns) < len(parsed):
            return None
        system = turns.pop(0)[1] if self._tags.system_tag and turns[0][0] == self._tags.system_tag else ""
        if self._openai:
            turns = _joined_observations(turns, self._tags.observation_tag)
        if not self._alternate([role for role, _ in turns], column):
            return None
        texts = [text for _, text in turns]
        return Turns(texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True)), system)

    def _message(self, message: object, field: str) -> tuple[str, str] | None:
        role_tag, content_tag = str(self._tags.role_tag), str(self._tags.content_tag)
        if not isinstance(message, dict) or role_tag not in message or content_tag not in message:
            advice = f"write an object with {role_tag!r} and {content_tag!r}"
            self._fault("message_shape", field, shown(message), advice)
            return None
        if self._openai and message.get("tool_calls"):
            return str(self._tags.function_tag), ""
        text = self._text(message[content_tag], f"{field}.{content_tag}")
        return None if text is None else (message[role_tag], text)

    def _alternate(self, roles: list[str], column: str) -> bool:
        asks = (self._tags.user_tag, self._tags.observation_tag)
        answers = (self._tags.assistant_tag, self._tags.function_tag)
        for index, role in enumerate(roles):
            if role not in (asks, answers)[index % 2]:
                expected = " or ".join(map(repr, filter(None, (asks, answers)[index % 2])))
                self._fault("roles_order", f"{column}[{index}]", f"role {role!r}", f"{expected} belongs here")
                return False
        if len(roles) % 2 == 0:
            found = f"ends with an answer ({roles[-1]!r})" if roles else "no question"
            self._fault("roles_order", column, found, "end it with the question that the two answers answer")
            return False
        return True

    def answer(self, column: str | None) -> str | None:
        """Return the answer under `column`: a text in alpaca, one message in the other formats."""
        present, value = self.required(column, "chosen / rejected")
        field = str(column)
        if present and self._messages:
            role, value = self._message(value, field) or ("", None)
            present = value is not None
            if present and role not in (self._tags.assistant_tag, self._tags.function_tag):
                self._fault("answer_role", field, f"role {role!r}", f"an answer's role is {self._tags.assistant_tag!r}")
        return self.answer_text(value, field) if present else None

    def answer_text(self, value: object, field: str) -> str | None:
        """Return the text of an answer, which is never empty."""
        text = self._text(value, field)
        if text is not None and not text.strip().strip(_UNSEEN):
            self._fault("answer_empty", field, "an empty answer", "write the answer, or remove the row")
        return text

    def images(self, column: str | None) -> tuple[Image, ...]:
        """Return the row's images under a column, as they stand there."""
        items = listed_images(self._row, column)
        for index, item in enumerate(items):
            if not is_image(item):
                found = "null" if item is None else f"{shown(item)} ({type(item).__name__})"
                self._fault("image_type", f"{column}[{index}]", found, "write the path of an image file")
        return tuple(filter(is_image, items))


def _joined_observations(turns: list[tuple[str, str]], tag: str | None) -> list[tuple[str, str]]:
    joined: list[tuple[str, str]] = []
    for role, said in groupby(turns, key=itemgetter(0)):
        texts = [text for _, text in said]
        joined += [(role, "\n".join(texts))] if tag and role == tag else [(role, text) for text in texts]
    return joined


def listed_images(row: dict[str, Any], column: str | None) -> list[Any]:
    """Return what stands under a column of images or videos, whatever it is, as a list."""
    return listed(row.get(column) if column else None)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, another value as the one item of a list, and nothing as an empty list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def is_image(value: object) -> bool:
    """Tell whether a value could name or hold an image."""
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    return isinstance(value, str | bytes)


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
