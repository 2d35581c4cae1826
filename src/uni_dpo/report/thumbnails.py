"""Images on a page: small, in the page itself, each once."""

import base64
import io
from pathlib import Path

SIDE = 192
"""Longest side of an image on a page, in pixels."""


class Thumbnails:
    """Small copies of images, made until there are as many as a page should hold.

    Args:
        limit: how many different images at most.
        side: longest side, in pixels.
    """

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
            self.images.append(thumbnail(path, self.side))
        return self._places[path]


def thumbnail(path: str | Path, side: int = SIDE) -> str | None:
    """Return a small JPEG of an image as a data address, or None where there is no readable image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
