"""What a foreign format is: how its rows become pairs, and how pairs become its rows."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uni_dpo.data.cells import refuse as refuse
from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import first_filled, is_empty
from uni_dpo.data.pair import Image, PreferencePair, is_image
from uni_dpo.data.ranking import Pairing as Pairing
from uni_dpo.data.ranking import Ranked as Ranked
from uni_dpo.data.ranking import candidates
from uni_dpo.data.tables.reading import Row
from uni_dpo.settings.options import as_number

Losses = Counter[str]
"""What a conversion could not carry over: a name for it → how often."""
_MESSAGE_KEYS = ("role", "from", "content", "value")
_TOOL_ROLES = ("function_call", "observation", "function", "tool")


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of rows.

    Attributes:
        name: what `--format` and `--to` call it.
        shape: its columns in a few words, for the table in the docs.
        read: the pairs in a row; None where it is only written.
        write: a pair as a row; None where it is only read.
        remap: for formats without pairs: its row as LlamaFactory's, and (None where there is none) the way back.
    """

    name: str
    shape: str
    read: Callable[[Row, Losses, Pairing], Iterator[PreferencePair]] | None = None
    write: Callable[[PreferencePair, Losses], Row] | None = None
    remap: tuple[Callable[[Row, Losses], Row], Callable[[Row, Losses], Row] | None] | None = None


def text_of(row: Row, *names: str) -> str:
    """Return the text under the first of `names` that the row has."""
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            return value if isinstance(value, str) else refuse(name, value, "text belongs there")
    return refuse(names[0], f"no such column (it has {', '.join(map(str, row))})", "check --format")


def score_of(row: Row, *names: str) -> float | None:
    """Return the number under the first of `names` that the row has; None where it has none of them."""
    for name in names:
        value = row.get(name)
        if value is not None:
            return number_of(value, name)
    return None


def number_of(value: object, field: str) -> float:
    """Return a finite number, also where the format writes numbers as text."""
    number = as_number(value)
    if number is None or not math.isfinite(number):
        refuse(field, value, "a finite number belongs there")
    return number


def images_of(row: Row, *names: str) -> tuple[Image, ...]:
    """Return the image or images under the first of `names` that holds some."""
    value = first_filled(row, names)
    items = value if isinstance(value, list) else [] if value is None else [value]
    for index, item in enumerate(items):
        if not is_image(item):
            refuse(f"{names[0]}[{index}]", item, "the path or the bytes of an image belong there")
    return tuple(item for item in items if not is_empty(item))


def id_of(row: Row, losses: Losses, *names: str) -> str | int | None:
    """Return what the row calls itself under the first of `names`: a text or an integer.

    Anything else is counted as lost.
    """
    value = first_filled(row, names)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    losses["ids that are neither texts nor integers"] += 1
    return None


def with_placeholders(text: str, images: Sequence[Image], losses: Losses) -> str:
    """Return `text` with one `<image>` per image: those that are missing go where the first one is, or to the front."""
    missing = len(images) - text.count(IMAGE_TOKEN)
    if missing < 0:
        refuse("images", f"{text.count(IMAGE_TOKEN)} × {IMAGE_TOKEN}, {len(images)} images", "remove the surplus")
    place = max(text.find(IMAGE_TOKEN), 0)
    if missing and IMAGE_TOKEN in text:
        losses["<image> added beside the first one"] += missing
    return text[:place] + IMAGE_TOKEN * missing + text[place:]


def without_placeholders(text: str, losses: Losses) -> str:
    """Return `text` for a format in which the images come first and nothing stands for them."""
    if text.lstrip().removeprefix(IMAGE_TOKEN).count(IMAGE_TOKEN) or not text.startswith(IMAGE_TOKEN):
        losses["place of <image> in the text"] += IMAGE_TOKEN in text
    return text.replace(IMAGE_TOKEN, "")


def text_only(pair: PreferencePair) -> PreferencePair:
    """Return `pair` for a format without images: no image, and no `<image>` that would wait for one."""
    if not pair.images:
        return pair
    history = tuple((question.replace(IMAGE_TOKEN, ""), answer) for question, answer in pair.history)
    instruction = pair.instruction.replace(IMAGE_TOKEN, "")
    return replace(pair, instruction=instruction, images=(), rejected_images=(), history=history)


def ranked_pairs(
    answers: Sequence[Ranked],
    instruction: str,
    images: tuple[Image, ...],
    pairing: Pairing,
    losses: Losses,
    **rest: Any,
) -> Iterator[PreferencePair]:
    """Yield the pairs of a list of answers, best first; two answers of the same score, rank or text make none."""
    if len(answers) < 2:
        losses["rows with fewer than two answers, left out"] += 1
    for first, second in candidates(len(answers), pairing):
        better, worse = answers[first], answers[second]
        ordered = (better.score, better.rank) != (None, None)
        if better.text == worse.text or (ordered and (better.score, better.rank) == (worse.score, worse.rank)):
            losses["pairs of equal answers, scores or ranks, left out"] += 1
        else:
            yield PreferencePair(instruction, better.text, worse.text, better.score, worse.score, images, **rest)


def count_losses(pair: PreferencePair, losses: Losses, *kept: str) -> None:
    """Count the parts of `pair` that a format which holds only `kept` beside the three texts drops."""
    parts = {
        "scores": pair.score_chosen is not None or pair.score_rejected is not None,
        "system": bool(pair.system),
        "history": bool(pair.history),
        "images": bool(pair.images),
        "rejected_images": bool(pair.rejected_images),
        "videos": bool(pair.videos),
        "id": pair.id is not None,
    }
    for name, there in parts.items():
        if there and name not in kept:
            losses[name] += 1


def count_message_losses(losses: Losses, *conversations: object) -> None:
    """Count what messages hold beside who says what: other keys, and tools, whose turns become plain ones."""
    for conversation in conversations:
        for message in conversation if isinstance(conversation, list) else [conversation]:
            if not isinstance(message, dict):
                continue
            losses.update(
                f"{name} of messages"
                for name, value in message.items()
                if name not in _MESSAGE_KEYS and not is_empty(value)
            )
            if message.get("role", message.get("from")) in _TOOL_ROLES:
                losses["tool calls and results, kept as plain turns"] += 1


def optional(
    pair: PreferencePair, *, id: str = "id", score: tuple[str, str] = ("score_chosen", "score_rejected")
) -> Row:
    """Return the columns that a row has only where the pair has them: scores and the id."""
    row: Row = {}
    if pair.score_chosen is not None:
        row[score[0]] = pair.score_chosen
    if pair.score_rejected is not None:
        row[score[1]] = pair.score_rejected
    if pair.id is not None:
        row[id] = pair.id
    return row
