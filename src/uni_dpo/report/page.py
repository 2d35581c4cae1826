"""One way to make a page: one file that needs nothing beside it, in English and Chinese, light and dark.

Images on it are small, in the page itself, each once.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import finite, write_text

BEGINNING = "<!doctype html>"
ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("core.js", "charts.js", "run.js", "check.js", "evaluation.js", "browser.js")
SIDE = 192
"""Longest side of an image on a page, in pixels."""


def write_page(file: str | Path, title: str, data: Mapping[str, Any]) -> Path:
    """Write a page, whole or not at all.

    The data are JSON-like; their keys say what sections there are (`summary`, `runs`, `check`, `evaluation`, `pairs`).
    Texts in them are shown as text, whatever is in them.

    Raises:
        UniDPOError: `file` is there and is no page: data, perhaps.
    """
    there = Path(file)
    if there.is_file() and there.stat().st_size:
        with there.open("rb") as stream:
            if not stream.read(len(BEGINNING)) == BEGINNING.encode():
                raise UniDPOError(f"{file}: is there and is no page; name another file for the page")
    write_text(file, page(title, data))
    return Path(file)


def page(title: str, data: Mapping[str, Any]) -> str:
    """Return the page as HTML. Its policy forbids every request, to the disk as well."""
    words = json.loads((ASSETS / "words.json").read_text(encoding="utf-8"))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    whole = {"title": title, "made": made, "words": words, "groups": [], "images": [], **data}
    scripts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    return (
        f'{BEGINNING}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">"
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{style}</style></head>'
        f'<body><main id="page"></main><script type="application/json" id="data">{_embedded(whole)}</script>'
        f"<script>{scripts}\nstart();</script></body></html>\n"
    )


def _embedded(value: Any) -> str:
    """JSON inside a script element: no `<`, so that no text in it ends the element; null for what is no number."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return safe.encode("utf-8", "replace").decode("utf-8")


def cut(text: str, length: int) -> str:
    """Return a text of at most so many characters, with a mark where it was cut."""
    return text if len(text) <= length else f"{text[:length]} …"


class Thumbnails:
    """Small copies of at most `limit` different images, whose longest side has `side` pixels."""

    def __init__(self, limit: int = 3_000, side: int = SIDE) -> None:
        self.limit, self.side = limit, side
        self.images: list[str | None] = []
        """What stands in the page: data addresses, None for an image that could not be read."""
        self._places: dict[str, int] = {}

    def place(self, path: str) -> int | None:
        """Return the number of an image in `images`, or None where the page is full."""
        if path not in self._places:
            if len(self.images) >= self.limit:
                return None
            self._places[path] = len(self.images)
            small = small_jpeg(path, self.side)
            address = None if small is None else f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
            self.images.append(address)
        return self._places[path]

    def places(self, paths: Iterable[str]) -> list[int]:
        """Return the numbers of those images that the page has room for."""
        return [place for path in paths if (place := self.place(path)) is not None]


def pair_columns(rows: Sequence[Mapping[str, Any]], thumbnails: Thumbnails, shown: int) -> dict[str, list[Any]]:
    """Return pairs as the columns of a page.

    Args:
        rows: `pair` (its name), `question`, `chosen`, `rejected`, `note`, `score_chosen`, `score_rejected`, `images`
            (files), and `groups`: the bits of those that the pair is in.
        thumbnails: takes up the images.
        shown: characters of a text that are shown.
    """
    columns: dict[str, list[Any]] = {
        name: [cut(str(row.get(name) or ""), shown) for row in rows]
        for name in ("pair", "question", "chosen", "rejected", "note")
    }
    for name in ("score_chosen", "score_rejected", "groups"):
        columns[name] = [row.get(name) for row in rows]
    columns["paths"] = [", ".join(row["images"]) for row in rows]
    columns["images"] = [thumbnails.places(row["images"]) for row in rows]
    return columns


def small_jpeg(source: str | Path | IO[bytes], side: int = SIDE) -> bytes | None:
    """Return a JPEG of an image with at most `side` pixels a side, or None where there is no readable image."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            small = image.convert("RGB")
        small.thumbnail((side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=80)
    return encoded.getvalue()
