"""Images that a viewer shows in another way than a model sees them: turned by their EXIF data, or of several frames.

LlamaFactory, and everything here that shows a model an image, takes the first frame as it is stored. Viewers turn it as
the EXIF orientation says, and so does `datasets.Image`, from which TRL takes images.
"""

import io
from collections import Counter

from PIL import Image as PILImage
from PIL.ExifTags import Base

TURNED, ANIMATED = "turned", "animated"
_MEANINGS = {
    TURNED: (
        "EXIF orientation",
        "a model sees them as stored, unturned, except where `datasets.Image` opens them, as in TRL; turn the pixels: "
        "mogrify -auto-orient FILE",
    ),
    ANIMATED: ("several frames or pages", "a model sees the first alone; save the one that is meant as the image"),
}
_HOLD_EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_NAMED = 5


def oddity(image: PILImage.Image) -> str:
    """Return `TURNED` or `ANIMATED`; an empty text for an image that looks the same everywhere.

    Args:
        image: as Pillow opened it; its pixels are not decoded here.
    """
    try:
        # Pillow itself turns a TIFF, and a MPO's further frames are the depth or the brightness of a photograph.
        if image.format != "TIFF" and _HOLD_EXIF & image.info.keys() and 2 <= image.getexif()[Base.Orientation] <= 8:
            return TURNED
    except Exception:  # nobody who shows the pixels as they are stored reads EXIF data, broken or not
        pass
    try:
        return ANIMATED if image.format != "MPO" and getattr(image, "is_animated", False) else ""
    except Exception:  # a decoder's own error on a frame that is never shown may be of any class
        return ""


def encoded_oddity(encoded: bytes) -> str:
    """Return the oddity of an encoded image; an empty text for what is none."""
    try:
        with PILImage.open(io.BytesIO(encoded)) as image:
            return oddity(image)
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        return ""


class OddImages:
    """Counts odd images, and remembers where the first are."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, kind: str, place: str) -> None:
        """Take in an image; `kind` is empty for one that is not odd."""
        if kind:
            self._counts[kind] += 1
            if self._counts[kind] <= _NAMED:
                self._first.setdefault(kind, []).append(place)

    def warnings(self) -> list[str]:
        """Say how many there are of each kind, where, and what to do: one line each."""
        lines = []
        for kind, count in sorted(self._counts.items(), reverse=True):
            what, advice = _MEANINGS[kind]
            more = "; …" if count > _NAMED else ""
            places = "; ".join(self._first[kind])
            lines.append(f"images with {what}: {count:,} ({places}{more}): {advice}")
        return lines
