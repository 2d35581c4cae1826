"""The names that columns go by, and what a cell holds."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

ID_COLUMNS = ("question_id", "id", "idx")
TEXT_COLUMNS = ("question", "instruction", "prompt", "problem")
CONVERSATION_COLUMNS = ("messages", "conversations")
PROMPT_COLUMNS = (*TEXT_COLUMNS, *CONVERSATION_COLUMNS)
REFERENCE_COLUMNS = ("answer", "reference", "label", "solution")
OPTION_COLUMNS = ("options", "choices")
IMAGE_COLUMNS = ("images", "image", "image_path", "img_path")
VIDEO_COLUMNS = ("videos", "video", "video_path")
ANSWER_COLUMNS = ("answers", "prediction", "response", "output", "answer")
"""Columns of answers to rate, for files that hold no pairs."""
_ANSWER_KEYS = ("answer", "text", "response", "content", "value", "raw_answer")


def first_filled(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """Return what stands under the first of `columns` that holds something, by `is_empty`."""
    return next((row[column] for column in columns if not is_empty(row.get(column))), None)


def is_empty(value: object) -> bool:
    """Tell whether a cell holds nothing: null, NaN (a gap), empty text or list, an image of neither bytes nor path."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return all(is_empty(part) for part in value.values())
    return value is None or (isinstance(value, list | tuple | dict | bytes) and not value)


def plain_text(value: object) -> str | None:
    """Return a cell as text (3.0, which a gap makes of an integer, as `3`), None where it holds none."""
    if isinstance(value, float | Decimal) and abs(float(value)) < 1e15 and value == int(value):
        value = int(value)
    if isinstance(value, Mapping):
        value = first_filled(value, _ANSWER_KEYS)
        return None if isinstance(value, Mapping) else plain_text(value)
    if is_empty(value) or isinstance(value, list | tuple | bytes):
        return None
    text = str(value)
    return None if text.strip().casefold() == "nan" else text


def items_of(value: object) -> list[Any]:
    """Return the items of a cell: of a list its own, else the one value; none where it holds nothing."""
    if is_empty(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
