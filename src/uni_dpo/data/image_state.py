"""What an image is before a model sees it: its size, whether a model takes one of that shape, and how viewers show it.

LlamaFactory, and everything here that shows a model an image, takes the first frame as it is stored. Viewers turn it as
the EXIF orientation says, and so does `datasets.Image`, from which TRL takes images.
"""

import io
import math
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image as PILImage
from PIL.ExifTags import Base

from uni_dpo.data.faults import stand_in

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
    """Return `TURNED` or `ANIMATED`; an empty text for an image that looks the same everywhere. No pixel is decoded."""
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


def encoded_type(encoded: bytes) -> str:
    """Return the media type of an encoded image, such as `image/png`; an empty text for what is none."""
    try:
        with PILImage.open(io.BytesIO(encoded)) as image:
            return PILImage.MIME.get(image.format or "", "")
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        return ""


class OddImages:
    """Counts odd images, and remembers where the first are."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {kind: [] for kind in _MEANINGS}

    def add(self, kind: str, place: str) -> None:
        """Take in an image; `kind` is empty for one that is not odd."""
        if kind:
            self._counts[kind] += 1
            self._first[kind] += [place] if self._counts[kind] <= _NAMED else []

    def warnings(self) -> list[str]:
        """Say how many there are of each kind, where, and what to do: one line each."""
        lines = []
        for kind, (what, advice) in _MEANINGS.items():
            if count := self._counts[kind]:
                places = "; ".join([*self._first[kind], *["…"] * (count > _NAMED)])
                lines.append(f"images with {what}: {count:,} ({places}): {advice}")
        return lines


MAX_PIXELS = 100_000_000
"""Images of more pixels are taken for decompression bombs."""
MOST_ELONGATED = 200
"""How many times longer than wide an image may be that a model is asked about; training crops longer ones."""


class BrokenImageError(ValueError):
    """An image that cannot be used: `kind` as in `Fault`, what was `found`, and `advice`."""

    def __init__(self, kind: str, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.kind, self.found, self.advice = f"image_{kind}", found, advice


@dataclass(frozen=True, slots=True)
class MediaState:
    """What is known of one image or video, or (`kind` is set) what is wrong with it, as in `Fault`.

    Attributes:
        width, height: in pixels, as it is stored.
        frames: how many a video has.
        seconds: how long it is; None where the row names its frames, or the file does not tell how many it has.
        listed: whether the row names its frames.
        odd: why a viewer shows an image in another way, as `oddity` tells.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float | None = None
    listed: bool = False
    kind: str = ""
    found: str = ""
    advice: str = ""
    odd: str = ""


@dataclass(frozen=True)
class ImageLimits:
    """How LlamaFactory and a Qwen2-VL processor size images, in pixels.

    Attributes:
        max_pixels: LlamaFactory's `image_max_pixels`.
        min_pixels: LlamaFactory's `image_min_pixels`.
        side: pixels along each side of what becomes one token: patch size × merge size.
        processor_max: the processor's own upper limit.
        processor_min: the processor's own lower limit.
    """

    max_pixels: int = 768 * 768
    min_pixels: int = 32 * 32
    side: int = 28
    processor_max: int = 28 * 28 * 1280
    processor_min: int = 56 * 56

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that LlamaFactory gives an image before the processor sees it; a side of 0 stops it."""
        if width * height > self.max_pixels:
            width, height = _scaled(width, height, self.max_pixels)
        if 0 < width * height < self.min_pixels:
            width, height = _scaled(width, height, self.min_pixels)
        if not width * height:
            return width, height
        width, height = max(width, 28), max(height, 28)
        if width > 200 * height:
            width = 180 * height
        if height > 200 * width:
            height = 180 * width
        return width, height

    def tokens(self, width: int, height: int) -> int:
        """Tell how many tokens Qwen2-VL makes of an image of `width` × `height` pixels."""
        width, height = self.fitted(width, height)
        side = self.side
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side * side > self.processor_max:
            shrink = math.sqrt(width * height / self.processor_max)
            rows, columns = (max(1, math.floor(length / shrink / side)) for length in (height, width))
        elif rows * columns * side * side < self.processor_min:
            grow = math.sqrt(self.processor_min / (width * height))
            rows, columns = (math.ceil(length * grow / side) for length in (height, width))
        return rows * columns


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    factor = math.sqrt(pixels / (width * height))
    return int(width * factor), int(height * factor)


def check_shape(width: int, height: int, name: str) -> None:
    """Refuse an image of so many pixels, called `name` in the message, that the processors of Qwen's models refuse.

    Raises:
        BrokenImageError: one side is more than `MOST_ELONGATED` times the other.
    """
    if max(width, height) > MOST_ELONGATED * min(width, height):
        found = f"{name} has {width} × {height} pixels, one side over {MOST_ELONGATED} times the other"
        raise BrokenImageError("shape", found, "crop it")


def _is_transparency_alone(image: PILImage.Image) -> bool:
    """Tell whether all pixels of a loaded image have one colour and only their transparency differs."""
    if not image.has_transparency_data:
        return False
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.getcolors(1) is None and image.convert("RGB").getcolors(1) is not None


def image_state(stream: BinaryIO, name: str, *, decode: bool = True) -> MediaState:
    """Return what is known of an encoded image that training can use; with `decode` its pixels are decoded too.

    Raises:
        BrokenImageError: it is no image, is too large, cannot be decoded, or has more than 8 bits per channel.
    """
    try:
        image = PILImage.open(stream)
        width, height = image.size
        if width * height >= MAX_PIXELS:
            raise BrokenImageError("bomb", f"{name} has {width} × {height} pixels", "shrink it below 100 megapixels")
        if image.mode[0] in "IF":
            found = f"{name} has more than 8 bits per channel (mode {image.mode}), of which training would see white"
            raise BrokenImageError("depth", found, "save it with 8 bits per channel")
        if decode:
            image.draft("RGB", (1, 1))  # lets the JPEG decoder skip most of its work, not its errors
            image.load()
            if _is_transparency_alone(image):
                found = f"{name} differs in its transparency alone, which training leaves out: it would see one colour"
                raise BrokenImageError("transparency", found, "put it on a background")
        return MediaState(width, height, odd=oddity(image))
    except BrokenImageError:
        raise
    except PILImage.DecompressionBombError:
        found = f"{name} has more pixels than Pillow opens"
        raise BrokenImageError("bomb", found, "shrink it below 100 megapixels") from None
    except PILImage.UnidentifiedImageError:
        stream.seek(0)
        beginning = stream.read(64)
        other = f"is not an image that Pillow reads (it starts with {beginning[:24]!r})", "convert it to PNG or JPEG"
        found, advice = stand_in(beginning) or other
        raise BrokenImageError("not_an_image", f"{name} {found}", advice) from None
    except Exception as error:  # a decoder's own error on a broken file may be of any class
        found = f"{name} cannot be decoded ({error})"
        raise BrokenImageError("unreadable", found, "fetch or convert it again") from None
