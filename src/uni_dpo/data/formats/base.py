"""What a foreign format is: how its rows become pairs, and how pairs become its rows."""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from uni_dpo.data.cells import refuse as refuse
from uni_dpo.data.checks.rows import IMAGE_TOKEN, MEDIA_TOKENS
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
_NOTHING = PreferencePair("", "", "")
_PARTS = {"scores": ("score_chosen", "score_rejected")} | {
    name: (name,) for name in ("system", "history", "images", "rejected_images", "videos", "id")
}
"""What a pair has beside its three texts: a name for it → the fields."""


class SourceRow(dict[str, Any]):
    """A row of a foreign format, or an object within one, that knows which of its columns were looked at (`seen`).

    In `losses` it counts what cannot be carried over; `pairing` is which pairs a ranked list gives.
    """

    def __init__(self, row: Mapping[str, Any], losses: Losses | None = None, pairing: Pairing = "all") -> None:
        super().__init__(row)
        self.losses = Counter() if losses is None else losses
        self.pairing = pairing
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Like a dict's."""
        self.seen.add(name)
        return super().get(name, default)

    def count_lost(self, kept: Container[str] = ()) -> None:
        """Count the filled columns that nobody looked at and that are not among `kept`."""
        for name in self.keys() - self.seen:
            self.losses[f"column {name}"] += name not in kept and not is_empty(super().get(name))

    def _first(self, names: Sequence[str]) -> tuple[str, Any]:
        return next(((name, self[name]) for name in names if self.get(name) is not None), (names[0], None))

    def text(self, *names: str) -> str:
        """Return the text under the first of `names` that the row has."""
        name, value = self._first(names)
        if value is None:
            refuse(name, f"no such column (it has {', '.join(map(str, self))})", "check --format")
        return value if isinstance(value, str) else refuse(name, value, "text belongs there")

    def score(self, *names: str) -> float | None:
        """Return the finite number under the first of `names` that the row has, also where it is written as text.

        None where it has none of them.
        """
        name, value = self._first(names)
        number = as_number(value)
        if value is not None and (number is None or not math.isfinite(number)):
            refuse(name, value, "a finite number belongs there")
        return number

    def images(self, *names: str) -> tuple[Image, ...]:
        """Return the image or images under the first of `names` that holds some."""
        value = first_filled(self, names)
        items = value if isinstance(value, list) else [] if value is None else [value]
        for index, item in enumerate(items):
            if not is_image(item):
                refuse(f"{names[0]}[{index}]", item, "the path or the bytes of an image belong there")
        return tuple(item for item in items if not is_empty(item))

    def id(self, *names: str) -> str | int | None:
        """Return what the row calls itself under the first of `names`: a text or an integer; all else is lost."""
        value = first_filled(self, names)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
            return value
        self.losses["ids that are neither texts nor integers"] += 1
        return None

    def with_placeholders(self, text: str, images: Sequence[Image]) -> str:
        """Return `text` with one `<image>` per image: missing ones go where the first one is, or to the front."""
        missing = len(images) - text.count(IMAGE_TOKEN)
        if missing < 0:
            refuse("images", f"{text.count(IMAGE_TOKEN)} × {IMAGE_TOKEN}, {len(images)} images", "remove the surplus")
        place = max(text.find(IMAGE_TOKEN), 0)
        if missing and IMAGE_TOKEN in text:
            self.losses["<image> added beside the first one"] += missing
        return text[:place] + IMAGE_TOKEN * missing + text[place:]

    def pairs_of(
        self, answers: Sequence[Ranked], instruction: str, images: tuple[Image, ...], **rest: Any
    ) -> Iterator[PreferencePair]:
        """Yield the pairs of some answers; two of the same score, rank or text make none.

        They are ordered by their scores, or ranks, where all have them; else they stand best first.
        """
        if all(answer.score is not None for answer in answers):
            answers = sorted(answers, key=lambda answer: -(answer.score or 0.0))
        elif all(answer.rank is not None for answer in answers):
            answers = sorted(answers, key=lambda answer: answer.rank or 0.0)
        if len(answers) < 2:
            self.losses["rows with fewer than two answers, left out"] += 1
        for better, worse in candidates(answers, self.pairing):
            ordered = (better.score, better.rank) != (None, None)
            if better.text == worse.text or (ordered and (better.score, better.rank) == (worse.score, worse.rank)):
                self.losses["pairs of equal answers, scores or ranks, left out"] += 1
            else:
                yield PreferencePair(instruction, better.text, worse.text, better.score, worse.score, images, **rest)

    def count_message_losses(self, *conversations: object) -> None:
        """Count what messages hold beside who says what: other keys, and tools, whose turns become plain ones."""
        for message in chain(*(each if isinstance(each, list) else [each] for each in conversations)):
            if isinstance(message, dict):
                more = (name for name, value in message.items() if name not in _MESSAGE_KEYS and not is_empty(value))
                self.losses.update(f"{name} of messages" for name in more)
                if message.get("role", message.get("from")) in _TOOL_ROLES:
                    self.losses["tool calls and results, kept as plain turns"] += 1


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
    read: Callable[[SourceRow], Iterator[PreferencePair]] | None = None
    write: Callable[[PreferencePair, Losses], Row] | None = None
    remap: tuple[Callable[[SourceRow], Row], Callable[[SourceRow], Row] | None] | None = None


def limited(pair: PreferencePair, losses: Losses, *kept: str) -> PreferencePair:
    """Return `pair` for a format that holds only `kept` beside the three texts; what it drops is counted.

    Without images there is no `<image>` either that would wait for one, and without videos no `<video>`.
    """
    dropped: dict[str, Any] = {}
    for name, fields in _PARTS.items():
        nothing = {field: getattr(_NOTHING, field) for field in fields}
        if name not in kept and any(getattr(pair, field) != value for field, value in nothing.items()):
            losses[name] += 1
            dropped |= nothing
    for medium in dropped.keys() & MEDIA_TOKENS.keys():
        token = MEDIA_TOKENS[medium]
        history = tuple((question.replace(token, ""), answer) for question, answer in pair.history)
        pair = replace(pair, instruction=pair.instruction.replace(token, ""), history=history)
    return replace(pair, **dropped)


def optional(pair: PreferencePair, names: Sequence[str] = ("score_chosen", "score_rejected", "id")) -> Row:
    """Return the columns that a row has only where the pair has them: `names` of its scores and its id, and media."""
    values = (pair.score_chosen, pair.score_rejected, pair.id)
    media = {"images": pair.images, "rejected_images": pair.rejected_images, "videos": pair.videos}
    row: Row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return row | {name: list(shown) for name, shown in media.items() if shown}
