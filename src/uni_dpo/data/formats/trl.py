"""TRL's preference layouts: `prompt, chosen, rejected, images`, as messages or as plain texts."""

from collections.abc import Callable, Iterator
from typing import Any

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    count_losses,
    images_of,
    optional,
    refuse,
    score_of,
    text_of,
    with_placeholders,
)
from uni_dpo.data.formats.llamafactory import OPENAI_TAGS, message_list
from uni_dpo.data.pair import Pair
from uni_dpo.data.tables.reading import Row

Message = dict[str, Any]


def read(row: Row, losses: Losses, pairing: Pairing) -> Iterator[Pair]:
    """The pair in a row of either layout, with the prompt in its own column or at the start of both answers."""
    images = images_of(row, "images", "image")
    scores = score_of(row, "score_chosen"), score_of(row, "score_rejected")
    if isinstance(row.get("prompt"), str):
        prompt = with_placeholders(text_of(row, "prompt"), images, losses)
        chosen, rejected = (_answer_text(row, name) for name in ("chosen", "rejected"))
        yield Pair(prompt, chosen, rejected, *scores, images, row.get("id"))
        return
    chosen_messages, rejected_messages = _messages(row, "chosen"), _messages(row, "rejected")
    prompt_messages = row.get("prompt") or chosen_messages[:-1]
    turns = [(str(m.get("role")), _flat(m.get("content"))) for m in prompt_messages]
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
    expected = ["user", "assistant"] * (len(turns) // 2) + ["user"]
    if [role for role, _ in turns] != expected:
        refuse("prompt", f"roles {[role for role, _ in turns]}", "user and assistant alternate and the user comes last")
    texts = [text for _, text in turns]
    missing = len(images) - sum(text.count(IMAGE_TOKEN) for text in texts)
    if missing > 0:
        texts[0] = IMAGE_TOKEN * missing + texts[0]
    yield Pair(
        texts[-1],
        _flat(chosen_messages[-1].get("content")),
        _flat(rejected_messages[-1].get("content")),
        *scores,
        images,
        row.get("id"),
        system,
        tuple(zip(texts[:-1:2], texts[1::2], strict=True)),
    )


def _messages(row: Row, column: str) -> list[Message]:
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        refuse(column, value, "a list of messages belongs there")
    return value


def _answer_text(row: Row, column: str) -> str:
    return _flat(row[column][-1].get("content")) if isinstance(row.get(column), list) else text_of(row, column)


def _flat(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse("content", content, "text, or a list of parts, belongs there")
    return "".join(IMAGE_TOKEN if part.get("type") == "image" else part.get("text") or "" for part in content)


def write(pair: Pair, losses: Losses) -> Row:
    """Messages whose contents are lists of parts, as TRL's vision models want them, also without an image."""
    images = {"images": list(pair.images)} if pair.images else {}
    return _as_messages(pair, _parts) | images | optional(pair)


def write_text(pair: Pair, losses: Losses) -> Row:
    """Messages whose contents are texts, as TRL's text models want them."""
    count_losses(pair, losses, "scores", "system", "history", "id")
    return _as_messages(pair, str) | optional(pair)


def _as_messages(pair: Pair, content: Callable[[str], object]) -> Row:
    prompt = [m | {"content": content(m["content"])} for m in message_list(pair, OPENAI_TAGS)]
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {"prompt": prompt} | {
        name: [{"role": "assistant", "content": content(text)}] for name, text in answers.items()
    }


def _parts(text: str) -> list[dict[str, str | None]]:
    parts: list[dict[str, str | None]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        parts += [{"type": "image", "text": None}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def write_plain(pair: Pair, losses: Losses) -> Row:
    """Three texts and the images."""
    count_losses(pair, losses, "scores", "images", "id")
    row: Row = {"prompt": pair.instruction, "chosen": pair.chosen, "rejected": pair.rejected}
    return row | ({"images": list(pair.images)} if pair.images else {}) | optional(pair)


FORMATS = (
    Format(
        "trl", "`prompt, chosen, rejected` as messages of parts, `images`; a folder is a `DatasetDict`", read, write
    ),
    Format("trl-text", "`prompt, chosen, rejected` as messages of texts", read, write_text),
    Format("trl-plain", "`prompt, chosen, rejected` as texts, `images`", read, write_plain),
)
