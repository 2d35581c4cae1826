"""Whether an image that a row names is there, is an image, and can be decoded; each path is looked at once."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image as PILImage

from uni_dpo.data.faults import shown
from uni_dpo.data.pair import Image

MAX_PIXELS = 100_000_000
"""Images of more pixels are taken for decompression bombs."""
_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class ImageState:
    """What is known of one image: its size in pixels, or (`kind` is set) what is wrong with it."""

    width: int = 0
    height: int = 0
    kind: str = ""
    found: str = ""
    advice: str = ""


class ImageChecker:
    """Checks images in threads and remembers what it found.

    Args:
        folder: paths are tried below it first, then as they are, as LlamaFactory does.
        root: the folder that no path may leave; None where there is no such rule.
        decode: whether to decode the pixels (finds truncated files) or to read the headers only.
    """

    def __init__(self, folder: str | Path, root: str | Path | None = None, *, decode: bool = True) -> None:
        self._folder = Path(folder)
        self._root = None if root is None else _absolute(Path(root))
        self._decode = decode
        self._known: dict[str, ImageState] = {}
        self._threads = ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1))

    @contextmanager
    def running(self) -> Iterator["ImageChecker"]:
        """Check within this `with`: it silences Pillow's own warnings and ends the threads."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            try:
                yield self
            finally:
                self._threads.shutdown(cancel_futures=True)

    def states(self, images: Sequence[Image]) -> list[ImageState]:
        """What is known of each image, in order; those not seen before are looked at, in parallel."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        paths = [_path_of(image) for image in images]
        new = [path for path in dict.fromkeys(paths) if path is not None and path not in self._known]
        self._known.update(zip(new, self._threads.map(self._check_path, new), strict=True))
        encoded = self._threads.map(
            _check_encoded, [image for image, path in zip(images, paths, strict=True) if path is None]
        )
        return [next(encoded) if path is None else self._known[path] for path in paths]

    def resolve(self, path: str) -> Path:
        """The file that LlamaFactory would open for `path`."""
        below = self._folder / path
        return below if below.is_file() else Path(path)

    def _check_path(self, path: str) -> ImageState:
        if path.startswith(("http://", "https://")):
            return _wrong("url", f"the address {shown(path)}", "download it first")
        if not path or "\0" in path:
            return _wrong("path", f"{shown(path)} is no path", "write the path of an image file")
        file = self.resolve(path)
        if self._root is not None and not _absolute(file).is_relative_to(self._root):
            file = self._folder / path
            if not _absolute(file).is_relative_to(self._root):
                return _wrong("outside", f"{shown(path)} leaves {self._root}", "keep images below it")
        try:
            if file.stat().st_size == 0:
                return _wrong("zero", f"{path} has zero bytes", "fetch it again")
            with file.open("rb") as stream:
                return _check_stream(stream, path, self._decode)
        except (FileNotFoundError, NotADirectoryError):
            return _wrong("missing", f"no file {path}", "mend the path, or set media_dir to the folder of the images")
        except OSError as error:
            return _wrong("unreadable", f"{path} cannot be opened ({error.strerror})", "mend the file")


def _check_encoded(image: Image) -> ImageState:
    encoded = image["bytes"] if isinstance(image, dict) else image
    if not isinstance(encoded, bytes) or not encoded:
        return _wrong("zero", "an encoded image of zero bytes", "fetch it again")
    return _check_stream(io.BytesIO(encoded), "the encoded image", decode=True)


def _check_stream(stream: BinaryIO, name: str, decode: bool) -> ImageState:
    try:
        image = PILImage.open(stream)
        width, height = image.size
        if width * height >= MAX_PIXELS:
            return _wrong("bomb", f"{name} has {width} × {height} pixels", "shrink it below 100 megapixels")
        if decode:
            image.draft("RGB", (1, 1))  # lets the JPEG decoder skip most of its work, not its errors
            image.load()
        return ImageState(width, height)
    except PILImage.DecompressionBombError:
        return _wrong("bomb", f"{name} has more pixels than Pillow opens", "shrink it below 100 megapixels")
    except PILImage.UnidentifiedImageError:
        stream.seek(0)
        found = f"{name} is not an image that Pillow reads (it starts with {stream.read(24)!r})"
        return _wrong("not_an_image", found, "convert it to PNG or JPEG")
    except Exception as error:  # a decoder's own error on a broken file may be of any class
        return _wrong("unreadable", f"{name} cannot be decoded ({error})", "fetch or convert it again")


def _wrong(kind: str, found: str, advice: str) -> ImageState:
    return ImageState(kind=f"image_{kind}", found=found, advice=advice)


def _path_of(image: Image) -> str | None:
    """The path to open; None for an image whose bytes are in the row."""
    if isinstance(image, dict):
        return None if image.get("bytes") is not None else image["path"]
    return image if isinstance(image, str) else None


def _absolute(path: Path) -> Path:
    """Without `..`, by the letters of the path: links that the owner of the folder made may lead out of it."""
    return Path(os.path.normpath(path.absolute()))
