"""RLAIF-V, RLHF-V and VQA-RAD: one image and one question per row, in columns or in a JSON text.

Follows the dataset cards of openbmb/RLAIF-V-Dataset (columns) and openbmb/RLHF-V-Dataset (`text`).
"""

import json
from collections.abc import Iterator

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.formats.base import Format, Losses, SourceRow, limited, refuse
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row


def read(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield the pair in a row of either form."""
    texts = row if row.get("question") is not None else _texts(row)
    images = row.images("image", "image_path")
    question = row.with_placeholders(texts.text("question"), images)
    scores = row.score("score_chosen", "chosen_score"), row.score("score_rejected", "rejected_score")
    yield PreferencePair(question, texts.text("chosen"), texts.text("rejected"), *scores, images, row.id("idx", "id"))


def _texts(row: SourceRow) -> SourceRow:
    """The three texts that are an object of JSON under `text`."""
    try:
        texts = json.loads(row.text("text"))
    except (ValueError, RecursionError) as error:
        refuse("text", f"not JSON ({error})", "an object with question, chosen and rejected belongs there")
    if not isinstance(texts, dict):
        refuse("text", texts, "an object with the three texts belongs there")
    return SourceRow(texts)


def _parts(pair: PreferencePair, losses: Losses, *kept: str) -> tuple[Row, Row, Row]:
    """What comes before the texts, the texts, and what comes after them."""
    pair = limited(pair, losses, *kept)
    if len(pair.images) > 1:
        losses["images after the first"] += len(pair.images) - 1
    image = pair.images[0] if pair.images else None
    cell = {"bytes": None, "path": image} if isinstance(image, str) else image
    cell = {"bytes": image, "path": None} if isinstance(image, bytes) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    text = pair.instruction
    if IMAGE_TOKEN in text and not (text.startswith(IMAGE_TOKEN) and text.count(IMAGE_TOKEN) == 1):
        losses["place of <image> in the text"] += 1
    texts = {"question": text.replace(IMAGE_TOKEN, ""), "chosen": pair.chosen, "rejected": pair.rejected}
    rest = {"origin_dataset": "", "origin_split": "{}", "idx": pair.id, "image_path": path or ""}
    return {"ds_name": "", "image": cell}, texts, rest


def write(pair: PreferencePair, losses: Losses) -> Row:
    """Return the form with columns."""
    head, texts, rest = _parts(pair, losses, "images", "id")
    return head | texts | rest


def write_text(pair: PreferencePair, losses: Losses) -> Row:
    """Return the form whose three texts are one JSON text."""
    head, texts, rest = _parts(pair, losses, "images", "id")
    return head | {"text": json.dumps(texts, ensure_ascii=False)} | rest


def write_vqa_rad(pair: PreferencePair, losses: Losses) -> Row:
    """Return image, question and the two answers."""
    head, texts, _ = _parts(pair, losses, "images")
    return {"image": head["image"]} | texts


FORMATS = (
    Format("rlaif-v", "`image, question, chosen, rejected, idx, image_path, …`", read, write),
    Format(
        "vqa-rad", "`image, question, chosen, rejected`, as `vqa_dpo_processing.py` saves them", read, write_vqa_rad
    ),
    Format("rlaif-v-text", "`image, text, idx, image_path, …`; `text` is JSON with the three texts", read, write_text),
)
