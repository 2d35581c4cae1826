"""What a foreign format is: how its rows become pairs, and how pairs become its rows."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.pair import Image, Pair
from uni_dpo.data.tables.reading import Row

Losses = Counter[str]
"""What a conversion could not carry over: a name for it → how often."""
Pairing = Literal["all", "neighbours", "ends"]
"""Which pairs a ranked list gives: every two answers, each with the next, or the best with the worst."""


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of rows.

    Attributes:
        name: what `--format` and `--to` call it.
        shape: its columns in a few words, for the table in the docs.
        read: the pairs in a row; None where it is only written.
        write: a pair as a row; None where it is only read.
        remap: for formats without pairs: its row as LlamaFactory's, and the other way round.
    """

    name: str
    shape: str
    read: Callable[[Row, Losses, Pairing], Iterator[Pair]] | None = None
    write: Callable[[Pair, Losses], Row] | None = None
    remap: tuple[Callable[[Row, Losses], Row], Callable[[Row, Losses], Row]] | None = None


def refuse(field: str, found: object, advice: str) -> NoReturn:
    """Stop at a row that is not in the format; the caller adds file and row."""
    text = found if isinstance(found, str) else shown(found)
    raise PreferenceDataError.of([Fault("format", field, text, advice)])


def text_of(row: Row, *names: str) -> str:
    """The text under the first of `names` that the row has."""
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            return value if isinstance(value, str) else refuse(name, value, "text belongs there")
    refuse(names[0], f"no such column (it has {', '.join(map(str, row))})", "check --format")


def score_of(row: Row, *names: str) -> float | None:
    """The number under the first of `names` that the row has; None where it has none of them."""
    for name in names:
        value = row.get(name)
        if value is not None:
            return as_number(value, name)
    return None


def as_number(value: object, field: str) -> float:
    """A finite number, also where the format writes numbers as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    return number if math.isfinite(number) else refuse(field, value, "a finite number belongs there")


def images_of(row: Row, *names: str) -> tuple[Image, ...]:
    """The image or images under the first of `names` that the row has."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        if not isinstance(item, str | bytes | dict):
            refuse(f"{names[0]}[{index}]", item, "the path or the bytes of an image belong there")
    return tuple(items)


def with_placeholders(text: str, images: Sequence[Image], losses: Losses) -> str:
    """`text` with one `<image>` per image: those that are missing go where the first one is, or to the front."""
    missing = len(images) - text.count(IMAGE_TOKEN)
    if missing < 0:
        refuse("images", f"{text.count(IMAGE_TOKEN)} × {IMAGE_TOKEN}, {len(images)} images", "remove the surplus")
    place = max(text.find(IMAGE_TOKEN), 0)
    if missing and IMAGE_TOKEN in text:
        losses["<image> added beside the first one"] += missing
    return text[:place] + IMAGE_TOKEN * missing + text[place:]


def without_placeholders(text: str, losses: Losses) -> str:
    """`text` for a format in which the images come first and nothing stands for them."""
    if text.lstrip().removeprefix(IMAGE_TOKEN).count(IMAGE_TOKEN) or not text.startswith(IMAGE_TOKEN):
        losses["place of <image> in the text"] += IMAGE_TOKEN in text
    return text.replace(IMAGE_TOKEN, "")


@dataclass(frozen=True, slots=True)
class Ranked:
    """One answer of several, with its score where the format has scores."""

    text: str
    score: float | None = None


def ranked_pairs(
    answers: Sequence[Ranked],
    instruction: str,
    images: tuple[Image, ...],
    pairing: Pairing,
    losses: Losses,
    **rest: Any,
) -> Iterator[Pair]:
    """The pairs of a list of answers, best first; two answers of the same score or text make none."""
    chosen: Iterator[tuple[Ranked, Ranked]]
    if pairing == "all":
        chosen = itertools.combinations(answers, 2)
    elif pairing == "neighbours":
        chosen = itertools.pairwise(answers)
    else:
        chosen = iter([(answers[0], answers[-1])] if len(answers) > 1 else [])
    for better, worse in chosen:
        if better.text == worse.text or (better.score is not None and better.score == worse.score):
            losses["pairs of equal answers or scores, left out"] += 1
        else:
            yield Pair(instruction, better.text, worse.text, better.score, worse.score, images, **rest)


def count_losses(pair: Pair, losses: Losses, *kept: str) -> None:
    """Count the parts of `pair` that a format which holds only `kept` beside the three texts drops."""
    parts = {
        "scores": pair.score_chosen is not None or pair.score_rejected is not None,
        "system": bool(pair.system),
        "history": bool(pair.history),
        "images": bool(pair.images),
        "id": pair.id is not None,
    }
    for name, there in parts.items():
        if there and name not in kept:
            losses[name] += 1


def optional(pair: Pair, *, id: str = "id", score: tuple[str, str] = ("score_chosen", "score_rejected")) -> Row:
    """The columns that a row has only where the pair has them: scores and the id."""
    row: Row = {}
    if pair.score_chosen is not None:
        row[score[0]] = pair.score_chosen
    if pair.score_rejected is not None:
        row[score[1]] = pair.score_rejected
    if pair.id is not None:
        row[id] = pair.id
    return row
