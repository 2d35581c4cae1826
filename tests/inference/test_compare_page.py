"""The page holds every answer, harmless and complete."""

import io
from typing import Any

from rich.console import Console

from uni_dpo.inference.compare import ORIGINAL, TRAINED, changed, page, table

ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "Is <b>rain</b> good?", ORIGINAL: "no [red]", TRAINED: "<script>alert(1)</script>"},
    {"id": "x", "prompt": "真人化？", ORIGINAL: "same", TRAINED: "same"},
]


def test_texts_are_escaped_and_counted() -> None:
    text = page(ROWS, "before & after")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "before &amp; after" in text
    assert "1 of 2 answers differ" in text
    assert text.count('<tr class="same">') == 1
    assert "http" not in text


def test_images_are_in_the_page_itself(digits: dict[str, list[Any]]) -> None:
    text = page([ROWS[0] | {"images": [str(digits["preference"][0].image)]}], "t")
    assert 'src="data:image/jpeg;base64,' in text


def test_the_terminal_shows_markup_as_text() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(ROWS))
    shown = console.export_text()
    assert "no [red]" in shown
    assert "真人化？" in shown
    assert changed(ROWS) == 1
