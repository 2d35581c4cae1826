"""The page holds every answer, harmless and complete."""

import io
import json
from typing import Any

from rich.console import Console

from uni_dpo.inference.compare import ORIGINAL, TRAINED, changed, page, table

ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "Is <b>rain</b> good?", ORIGINAL: "no [red]", TRAINED: "<script>alert(1)</script>"},
    {"id": "x", "prompt": "真人化？", ORIGINAL: "same", TRAINED: "same"},
]


def data_of(text: str) -> dict[str, Any]:
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_texts_are_in_the_page_as_texts_and_counted() -> None:
    text = page(ROWS, "before & after", ["epochs: 1", "pairs: 12"])
    assert "<script>alert" not in text
    assert "before &amp; after" in text
    assert "default-src 'none'" in text
    found = data_of(text)
    assert found["summary"]["en"] == "Trained with epochs: 1, pairs: 12. 1 of 2 answers differ."
    assert found["summary"]["zh"] == "训练数据：epochs: 1, pairs: 12。2 个回答中有 1 个不同。"
    assert found["answers"] == ["original model", "trained model"]
    pairs = found["pairs"]
    assert [pairs[name] for name in ("pair", "question", "chosen", "rejected")] == [
        ["1", "x"], ["Is <b>rain</b> good?", "真人化？"], ["no [red]", "same"], ["<script>alert(1)</script>", "same"]
    ]  # fmt: skip
    assert [found["groups"][bits.bit_length() - 1] for bits in pairs["groups"]] == ["differs", "same"]
    assert data_of(page(ROWS, "t"))["summary"]["en"] == "1 of 2 answers differ."


def test_images_are_in_the_page_itself(digits: dict[str, list[Any]]) -> None:
    image = str(digits["preference"][0].image)
    found = data_of(page([ROWS[0] | {"images": [image]}, ROWS[1] | {"images": [image]}], "t"))
    assert found["pairs"]["images"] == [[0], [0]]
    assert found["images"][0].startswith("data:image/jpeg;base64,")


def test_the_terminal_shows_markup_as_text() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(ROWS))
    shown = console.export_text()
    assert "no [red]" in shown
    assert "真人化？" in shown
    assert changed(ROWS) == 1
