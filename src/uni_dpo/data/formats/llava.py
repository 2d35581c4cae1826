"""LLaVA's `conversations`: fine-tuning data, and the ranked form whose last answer is a list, best first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from uni_dpo.data.cells import texts_of
from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import ID_COLUMNS, IMAGE_COLUMNS, REFERENCE_COLUMNS, TEXT_COLUMNS
from uni_dpo.data.dataset_info import Tags
from uni_dpo.data.formats.base import Format, Losses, Ranked, SourceRow, limited, optional, refuse
from uni_dpo.data.formats.llamafactory import message_list
from uni_dpo.data.pair import Image, PreferencePair
from uni_dpo.data.tables.reading import Row

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def _conversation(row: SourceRow) -> list[dict[str, Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        refuse("conversations", turns, "a list of turns with an answer at its end belongs there")
    for index, turn in enumerate(turns):
        expected = ("human", "gpt")[index % 2]
        if not isinstance(turn, dict) or turn.get("from") != expected:
            refuse(f"conversations[{index}]", turn, f"a turn from {expected!r} belongs there")
        if index < len(turns) - 1 and not isinstance(turn.get("value"), str):
            refuse(f"conversations[{index}].value", turn.get("value"), "text belongs there")
    return turns


def _images(row: SourceRow) -> tuple[Image, ...]:
    """The images; LLaVA's loaders take several paths in one text, with commas between them.

    A comma is part of a name where not every piece ends like an image file.
    """
    images = row.images("image", "images")
    if len(images) != 1 or isinstance(row.get("image"), list) or not isinstance(images[0], str):
        return images
    pieces = images[0].split(",")
    several = all(piece.lower().endswith(_SUFFIXES) for piece in pieces) and not images[0].startswith("data:")
    return tuple(pieces) if several else images


def _placed(turns: list[dict[str, Any]], images: tuple[Image, ...], row: SourceRow) -> list[dict[str, Any]]:
    """The turns with an `<image>` for every image: those that are missing stand in the first one."""
    later = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns[1:])
    if later > len(images):
        refuse("images", f"{later} × {IMAGE_TOKEN} after the first turn, {len(images)} images", "remove the surplus")
    first = row.with_placeholders(turns[0]["value"], images[: len(images) - later])
    return [{"from": "human", "value": first}, *turns[1:]]


def read(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pairs of the list of answers at the end of the conversation."""
    turns, images = _conversation(row), _images(row)
    answers = turns[-1].get("value")
    if not isinstance(answers, list):
        refuse("conversations[-1].value", answers, "a list of answers, best first; one answer only is `llava-sft`")
    texts = [turn["value"] for turn in _placed(turns[:-1], images, row)]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    ranked = [_answer(answer, index) for index, answer in enumerate(answers)]
    yield from row.pairs_of(ranked, texts[-1], images, id=row.id("id"), history=history)


def _answer(given: object, index: int) -> Ranked:
    """An answer, with its score where it is given as an object that has one."""
    if isinstance(given, dict):
        answer = SourceRow(given)
        return Ranked(answer.text("value", "text", "answer", "response"), answer.score("score"))
    if not isinstance(given, str):
        refuse(f"conversations[-1].value[{index}]", given, "a text belongs there")
    return Ranked(given)


def write(pair: PreferencePair, losses: Losses) -> Row:
    """Return the ranked form with two answers."""
    pair = limited(pair, losses, "images", "history", "id")
    turns = [*message_list(pair, Tags()), {"from": "gpt", "value": [pair.chosen, pair.rejected]}]
    return optional(replace(pair, images=())) | _image_cell(pair.images) | {"conversations": turns}


def _image_cell(images: tuple[Image, ...]) -> Row:
    if not images:
        return {}
    if len(images) > 1 and all(isinstance(image, str) and "," not in image for image in images):
        return {"image": ",".join(map(str, images))}
    return {"image": images[0] if len(images) == 1 and "," not in str(images[0]) else list(images)}


def sft_to_llamafactory(row: SourceRow) -> Row:
    """Return a fine-tuning row as LlamaFactory's sharegpt layout has it: `conversations` and `images`."""
    turns, images = _conversation(row), _images(row)
    if not isinstance(turns[-1].get("value"), str):
        refuse("conversations[-1].value", turns[-1].get("value"), "text; a list of answers is format `llava`")
    rest = {name: value for name, value in row.items() if name not in ("image", "images", "conversations")}
    return rest | {"conversations": _placed(turns, images, row)} | ({"images": list(images)} if images else {})


def llamafactory_to_sft(row: SourceRow) -> Row:
    """Return the other way round."""
    _conversation(row)
    return {name: value for name, value in row.items() if name != "images"} | _image_cell(row.images("images"))


def textvqa_to_llamafactory(row: SourceRow) -> Row:
    """Return a question with its people's answers as a fine-tuning row whose answer is the most frequent one."""
    answers = texts_of(row, ("answers", *REFERENCE_COLUMNS))
    if not answers:
        refuse("answers", row.get("answers"), "the answers of people belong there")
    images = row.images(*IMAGE_COLUMNS)
    question = row.with_placeholders(row.text(*TEXT_COLUMNS), images)
    row.losses["answers of people beside the most frequent"] += len(set(answers)) - 1
    answer = Counter(answers).most_common(1)[0][0]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    made = {"id": row.id(*ID_COLUMNS), "conversations": turns, "images": list(images)}
    return {name: value for name, value in made.items() if value not in (None, [])}


FORMATS = (
    Format("llava", "`image, conversations`; the last `gpt` value is a list of answers, best first", read, write),
    Format(
        "llava-sft",
        "`image, conversations` for fine-tuning; to and from LlamaFactory's sharegpt",
        remap=(sft_to_llamafactory, llamafactory_to_sft),
    ),
    Format(
        "textvqa",
        "`question_id, image, question, answers` of ten people; becomes fine-tuning data",
        remap=(textvqa_to_llamafactory, None),
    ),
)
