"""What stands in the cells of a row, whatever its columns are called: turns of a conversation, what is asked and shown.

Turns may be texts, lists of texts, or OpenAI's and TRL's parts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, NoReturn

from uni_dpo.data.checks.rows import IMAGE_TOKEN, MEDIA_TOKENS
from uni_dpo.data.columns import (
    OPTION_COLUMNS,
    PROMPT_COLUMNS,
    TEXT_COLUMNS,
    VIDEO_COLUMNS,
    first_filled,
    is_empty,
    items_of,
    plain_text,
)
from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.pair import Image, is_image
from uni_dpo.data.tables.reading import Row

_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_PEOPLE = 10
"""VQAv2 and TextVQA have the answers of ten people to every question."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    Attributes:
        role: `user`, `assistant`, `system`, or what the row has.
        text: one `<image>` per image that stands in it.
        images: one per `<image>` of the text; None where the image is the next one of the row's own column.
    """

    role: str
    text: str
    images: tuple[Image | None, ...] = ()


def refuse(field: str, found: object, advice: str) -> NoReturn:
    """Stop at a row that is not in the format; the caller adds file and row."""
    text = found if isinstance(found, str) else shown(found)
    raise PreferenceDataError.of([Fault("format", field, text, advice)])


def turns_of(value: object, field: str, role: str) -> list[Turn]:
    """Read a text (said by `role`), a message, or a list of messages.

    Raises:
        PreferenceDataError: anything else, or a part that is neither text nor image.
    """
    if isinstance(value, str) and _WRITTEN_MESSAGES.match(value):
        refuse(field, shown(value), "messages that were written as a text, as to CSV; keep them as JSON or Parquet")
    messages = [{"content": value}] if isinstance(value, str) else [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        refuse(field, value, "a text or a list of messages belongs there")
    return [_turn(message, f"{field}[{index}]", role) for index, message in enumerate(messages)]


def _turn(message: dict[str, Any], field: str, role: str) -> Turn:
    said_by = message.get("role", message.get("from", role))
    if not isinstance(said_by, str):
        refuse(f"{field}.role", said_by, "write `user`, `assistant` or `system`")
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            refuse(f"{field}.{name}", "a tool call", "only texts and images can be kept; remove it, or --skip-broken")
    content = message.get("content", message.get("value"))
    field = f"{field}.content"
    if isinstance(content, dict | str):
        content = [content]
    if not isinstance(content, list):
        refuse(field, content, "text, or a list of parts, belongs there")
    parts = [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]
    images = tuple(image for _, found in parts for image in found)
    return Turn(_ROLES.get(said_by, said_by), "".join(text for text, _ in parts), images)


def _part(part: object, field: str) -> tuple[str, tuple[Image | None, ...]]:
    """The text of a part, and its images."""
    if isinstance(part, str):
        return part, (None,) * part.count(IMAGE_TOKEN)
    if not isinstance(part, dict):
        refuse(field, part, "a text, or a part with a `type`, belongs there")
    kind, text = part.get("type"), part.get("text")
    if kind in _TEXT_PARTS and isinstance(text, str):
        return _part(text, field)
    if kind == "text" and text is None:
        return "", ()
    if kind not in _IMAGE_PARTS:
        refuse(field, f"a part of type {kind!r}", "only texts and images can be kept; remove it, or --skip-broken")
    return IMAGE_TOKEN, (_image(part, field),)


def _image(part: dict[str, Any], field: str) -> Image | None:
    names = ("image", "image_url", "source", "url", "path")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(value, dict) and not is_image(value):
        value = value.get("url") or value.get("data")
        value = refuse(field, part, "the path, address or bytes of an image belong there") if value is None else value
    if value is not None and not is_image(value):
        refuse(field, value, "the path, address or bytes of an image belong there")
    return value


def placed_images(turns: Sequence[Turn], images: Sequence[Image]) -> tuple[list[Turn], tuple[Image, ...]]:
    """Give every `<image>` its image; those of `images` that no `<image>` waits for stand in the first user turn.

    Returns:
        The turns, with an `<image>` for every image, and all images in the order of their `<image>`.

    Raises:
        PreferenceDataError: fewer images than `<image>`.
    """
    waiting = sum(image is None for turn in turns for image in turn.images)
    surplus = len(images) - waiting
    if surplus < 0:
        refuse("images", f"{waiting} × {IMAGE_TOKEN}, {len(images)} images", f"remove the surplus {IMAGE_TOKEN}")
    placed = []
    for turn in turns:
        if surplus and turn.role == "user":
            place = max(turn.text.find(IMAGE_TOKEN), 0)
            text = turn.text[:place] + IMAGE_TOKEN * surplus + turn.text[place:]
            turn, surplus = Turn(turn.role, text, (None,) * surplus + turn.images), 0
        placed.append(turn)
    rest = iter(images)
    return placed, tuple(next(rest) if image is None else image for turn in placed for image in turn.images)


def without_placeholders(text: str) -> str:
    """Return a text without what stands for images and videos in it."""
    for medium in ("images", "videos"):
        text = text.replace(MEDIA_TOKENS[medium], "")
    return text.strip()


def images_under(row: Row, column: str) -> list[Image]:
    """Return what stands under a column of images.

    Raises:
        PreferenceDataError: an item that cannot be one.
    """
    images = [image for image in items_of(row.get(column)) if not is_empty(image)]
    for image in images:
        if not is_image(image):
            refuse(column, image, "a path, base64 text or {bytes, path} belongs there")
    return images


def videos_under(row: Row, asked: Turn) -> tuple[str, list[Any]]:
    """Return the column of a row's videos, and what stands there for each.

    Raises:
        PreferenceDataError: there are fewer than the question has `<video>`.
    """
    column = next((name for name in VIDEO_COLUMNS if not is_empty(row.get(name))), VIDEO_COLUMNS[0])
    videos = items_of(row.get(column))
    token = MEDIA_TOKENS["videos"]
    if (waiting := asked.text.count(token)) > len(videos):
        refuse(column, f"{waiting} × {token}, {len(videos)} videos", f"remove the surplus {token}")
    return column, videos


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
            refuse(str(column), value, "a text, a number, or an object with a `text` belongs there")
    return [text for text in texts if text is not None]


def are_people_s(value: object, texts: Sequence[str]) -> bool:
    """Tell whether a list of answers, with its texts, is what ten people said: TextVQA's, or VQAv2's."""
    if any(isinstance(answer, Mapping) and "answer_id" in answer for answer in items_of(value)):
        return True
    return len(texts) == _PEOPLE and all(len(text) <= 80 and "\n" not in text for text in texts)


def asked_in(row: Row) -> tuple[str, Turn]:
    """Return the system prompt of a row, and what the user says first.

    Raises:
        PreferenceDataError: the row has no question.
    """
    value = first_filled(row, PROMPT_COLUMNS)
    if value is None or (isinstance(value, str) and not without_placeholders(value)):
        names = " or ".join(f"`{name}`" for name in TEXT_COLUMNS)
        given = [row[name] for name in PROMPT_COLUMNS if name in row]
        found = next((value for value in given if value is not None), None)
        what = f"not {shown(found)}" if given else f"and the columns are {shown([*row])}"
        refuse("question", f"a text is expected, {what}", f"name its column {names}")
    turns = turns_of(value, "question", "user")
    asked = next((turn for turn in turns if turn.role == "user" and without_placeholders(turn.text)), None)
    if asked is None:
        refuse("question", "a conversation in which the user says nothing", "write the question")
    system = row.get("system")
    if not is_empty(system) and not isinstance(system, str):
        refuse("system", system, "a text belongs there")
    said = [turn.text for turn in turns if turn.role == "system"]
    return (system if isinstance(system, str) and system.strip() else "\n".join(said)), asked


def choices_of(row: Row) -> dict[str, str]:
    """Return letter → text of a multiple-choice question's options; none where the row has none.

    Raises:
        PreferenceDataError: options that are neither a list nor a mapping.
    """
    lettered = {letter: row[letter] for letter in ascii_uppercase if letter in row}  # as in VLMEvalKit's files
    value: Any = first_filled(row, OPTION_COLUMNS) or ({"A", "B"} <= lettered.keys() and lettered)
    if not value:
        return {}
    if isinstance(value, list):
        if len(value) > 26:
            refuse("options", f"{len(value)} of them", "at most 26 have a letter")
        value = dict(zip(ascii_uppercase, value, strict=False))
    if not isinstance(value, Mapping):
        refuse("options", shown(value), "a list of texts or a mapping letter → text is expected")
    choices = {str(letter).upper(): plain_text(choice) for letter, choice in value.items() if not is_empty(choice)}
    return {letter: choice for letter, choice in choices.items() if choice is not None}
