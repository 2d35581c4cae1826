"""RLAIF-V, RLHF-V and VQA-RAD: one image and one question per row, in columns or in a JSON text.

Follows the dataset cards of openbmb/RLAIF-V-Dataset (columns) and openbmb/RLHF-V-Dataset (`text`).
"""

import json
from collections.abc import Iterator

from uni_dpo.data.formats.base import (
    Format,
    Losses,
    Pairing,
    count_losses,
    id_of,
    images_of,
    refuse,
    score_of,
    text_of,
    with_placeholders,
    without_placeholders,
)
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row


def read(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """Yield the pair in a row of either form."""
    texts = row if row.get("question") is not None else _texts(row)
    images = images_of(row, "image", "image_path")
    question = with_placeholders(text_of(texts, "question"), images, losses)
    scores = score_of(row, "score_chosen", "chosen_score"), score_of(row, "score_rejected", "rejected_score")
    answers = text_of(texts, "chosen"), text_of(texts, "rejected")
    yield PreferencePair(question, *answers, *scores, images, id_of(row, losses, "idx", "id"))


def _texts(row: Row) -> Row:
    """The three texts that are an object of JSON under `text`."""
    try:
        texts = json.loads(text_of(row, "text"))
    except (ValueError, RecursionError) as error:
        refuse("text", f"not JSON ({error})", "an object with question, chosen and rejected belongs there")
    return texts if isinstance(texts, dict) else refuse("text", texts, "an object with the three texts belongs there")


def _parts(pair: PreferencePair, losses: Losses) -> tuple[Row, Row, Row]:
    """What comes before the texts, the texts, and what comes after them."""
    count_losses(pair, losses, "images", "id")
    if len(pair.images) > 1:
        losses["images after the first"] += len(pair.images) - 1
    image = pair.images[0] if pair.images else None
    path = image if isinstance(image, str) else image.get("path") if isinstance(image, dict) else None
    cell = image if isinstance(image, dict) or image is None else {"bytes": None, "path": image}
    cell = {"bytes": image, "path": None} if isinstance(image, bytes) else cell
    texts = {
        "question": without_placeholders(pair.instruction, losses),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    rest = {"origin_dataset": "", "origin_split": "{}", "idx": pair.id, "image_path": path or ""}
    return {"ds_name": "", "image": cell}, texts, rest


def write(pair: PreferencePair, losses: Losses) -> Row:
    """Return the form with columns."""
    head, texts, rest = _parts(pair, losses)
    return head | texts | rest


def write_text(pair: PreferencePair, losses: Losses) -> Row:
    """Return the form whose three texts are one JSON text."""
    head, texts, rest = _parts(pair, losses)
    return head | {"text": json.dumps(texts, ensure_ascii=False)} | rest


def write_vqa_rad(pair: PreferencePair, losses: Losses) -> Row:
    """Return image, question and the two answers."""
    head, texts, _ = _parts(pair, losses)
    losses["id"] += pair.id is not None
    return {"image": head["image"]} | texts


FORMATS = (
    Format("rlaif-v", "`image, question, chosen, rejected, idx, image_path, …`", read, write),
    Format(
        "vqa-rad", "`image, question, chosen, rejected`, as `vqa_dpo_processing.py` saves them", read, write_vqa_rad
    ),
    Format("rlaif-v-text", "`image, text, idx, image_path, …`; `text` is JSON with the three texts", read, write_text),
)
