"""LLaVA's `conversations`: fine-tuning data, and the ranked form whose last answer is a list, best first."""

from collections.abc import Iterator
from typing import Any

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    Ranked,
    count_losses,
    images_of,
    ranked_pairs,
    refuse,
    with_placeholders,
)
from uni_dpo.data.pair import Image, Pair
from uni_dpo.data.tables.reading import Row


def _conversation(row: Row) -> list[dict[str, Any]]:
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


def _images(row: Row) -> tuple[Image, ...]:
    """The images; LLaVA's loaders take several paths in one text, with commas between them."""
    return tuple(
        path
        for image in images_of(row, "image", "images")
        for path in (image.split(",") if isinstance(image, str) else [image])
    )


def read(row: Row, losses: Losses, pairing: Pairing) -> Iterator[Pair]:
    """The pairs of the list of answers at the end of the conversation."""
    turns, images = _conversation(row), _images(row)
    answers = turns[-1].get("value")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        refuse("conversations[-1].value", answers, "a list of answers, best first; one answer only is `llava-sft`")
    texts = [turn["value"] for turn in turns[:-1]]
    first = with_placeholders(texts[0], images[: len(images) - sum(t.count(IMAGE_TOKEN) for t in texts[1:])], losses)
    texts[0] = first
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    ranked = [Ranked(answer) for answer in answers]
    yield from ranked_pairs(ranked, texts[-1], images, pairing, losses, id=row.get("id"), history=history)


def write(pair: Pair, losses: Losses) -> Row:
    """The ranked form with two answers."""
    count_losses(pair, losses, "images", "history", "id")
    turns: list[dict[str, Any]] = []
    for question, answer in pair.history:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns.append({"from": "human", "value": pair.instruction})
    turns.append({"from": "gpt", "value": [pair.chosen, pair.rejected]})
    row: Row = {"id": pair.id} if pair.id is not None else {}
    return row | _image_cell(pair.images) | {"conversations": turns}


def _image_cell(images: tuple[Image, ...]) -> Row:
    if not images:
        return {}
    if len(images) > 1 and all(isinstance(image, str) for image in images):
        return {"image": ",".join(map(str, images))}
    return {"image": images[0] if len(images) == 1 else list(images)}


def sft_to_llamafactory(row: Row, losses: Losses) -> Row:
    """A fine-tuning row as LlamaFactory's sharegpt layout has it: `conversations` and `images`."""
    turns, images = _conversation(row), _images(row)
    if not isinstance(turns[-1].get("value"), str):
        refuse("conversations[-1].value", turns[-1].get("value"), "text; a list of answers is format `llava`")
    later = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns[1:])
    first = with_placeholders(turns[0]["value"], images[: len(images) - later], losses)
    row = {name: value for name, value in row.items() if name not in ("image", "images", "conversations")}
    conversation = [{"from": "human", "value": first}, *turns[1:]]
    return row | {"conversations": conversation} | ({"images": list(images)} if images else {})


def llamafactory_to_sft(row: Row, losses: Losses) -> Row:
    """The other way round."""
    _conversation(row)
    cell = _image_cell(images_of(row, "images"))
    return {name: value for name, value in row.items() if name != "images"} | cell


FORMATS = (
    Format("llava", "`image, conversations`; the last `gpt` value is a list of answers, best first", read, write),
    Format(
        "llava-sft",
        "`image, conversations` for fine-tuning; to and from LlamaFactory's sharegpt",
        remap=(sft_to_llamafactory, llamafactory_to_sft),
    ),
)
