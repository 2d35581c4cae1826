"""Turns of a conversation, whatever their contents are: texts, lists of texts, or OpenAI's and TRL's parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.pair import Image, is_image

_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")


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
    if isinstance(value, str):
        return [Turn(role, *_joined([(value, (None,) * value.count(IMAGE_TOKEN))]))]
    messages = [value] if isinstance(value, dict) else value
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
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list):
        refuse(field, content, "text, or a list of parts, belongs there")
    parts = [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]
    return Turn(_ROLES.get(said_by, said_by), *_joined(parts))


def _joined(parts: Sequence[tuple[str, tuple[Image | None, ...]]]) -> tuple[str, tuple[Image | None, ...]]:
    return "".join(text for text, _ in parts), tuple(image for _, images in parts for image in images)


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
    return placed, tuple(_filled(placed, images))


def _filled(turns: Sequence[Turn], images: Sequence[Image]) -> Iterator[Image]:
    rest = iter(images)
    for turn in turns:
        for image in turn.images:
            yield next(rest) if image is None else image
