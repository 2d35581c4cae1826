"""The one rule for images: where a path leads, whether an image is there, and whether a model takes it."""

import base64
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from uni_dpo.data.faults import Fault, PreferenceDataError, encodable, shown, where_to_get
from uni_dpo.data.image_state import BrokenImageError, ImageLimits, MediaState, image_state
from uni_dpo.data.pair import Image
from uni_dpo.data.tables.reading import is_file
from uni_dpo.storage.writing import replacing

_LIMITS = ImageLimits()
_REMEMBERED = 200_000
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class ImagePaths:
    """Where the image paths of a dataset lead.

    Attributes:
        folders: paths are tried below each of them in turn, then as they are.
        root: the folder that no path may leave, by its letters: links that its owner made may lead out of it.
    """

    folders: tuple[Path, ...] = ()
    root: Path | None = None

    def find(self, path: str) -> Path:
        """Find the regular file that `path` names.

        Raises:
            BrokenImageError: it is an address, leaves the root, is not there, or is a folder or a device.
        """
        if path.startswith(("http://", "https://")):
            raise BrokenImageError("url", f"the address {shown(path)}", "download it first")
        if not path or "\0" in path or not _encodable(path):
            raise BrokenImageError("path", f"{shown(path)} is no path", "write the path of an image file")
        tried = self.places(path)
        for file in tried:
            if is_file(file):
                return file
        raise _why_no_file(path, tried)

    def places(self, path: str) -> list[Path]:
        """Tell where the file of `path` may be, whether it is there or not.

        Raises:
            BrokenImageError: none of the places is in the root.
        """
        tried = [*(folder / path for folder in self.folders), Path(path)]
        if self.root is not None:
            root = _absolute(self.root)
            tried = [file for file in tried if _absolute(file).is_relative_to(root)]
            if not tried:
                raise BrokenImageError("outside", f"{shown(path)} leaves {root}", "keep images below it")
        return tried


def _why_no_file(path: str, tried: Sequence[Path]) -> BrokenImageError:
    for file in tried:
        try:
            mode = file.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return BrokenImageError("missing", f"no file {_named(path)} ({error.strerror})", "correct the path")
        what = "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device"
        return BrokenImageError("unreadable", f"{_named(path)} is {what}", "name an image file")
    advice = where_to_get(path) or "correct the path, or name the folder it starts in"
    return BrokenImageError("missing", f"no file {_named(path)}", advice)


def embedded_image(text: str) -> bytes | None:
    """Decode an image that is written as text: a data URL or base64, line breaks allowed; None for any other text."""
    head, mark, encoded = text.partition(";base64,")
    encoded = "".join((encoded if mark and head.startswith("data:") else text).split())
    try:
        if not base64.b64decode(encoded[:16], validate=True).startswith(_SIGNATURES):
            return None
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def image_source(image: Image, paths: ImagePaths) -> Path | bytes:
    """Return the file that an image of a row is in, or its bytes where they are in the row.

    Raises:
        BrokenImageError: there is no such file, or no bytes.
    """
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image["path"]
    if isinstance(image, str):
        return embedded_image(image) or paths.find(image)
    if not isinstance(image, bytes) or not image:
        raise BrokenImageError("zero", "an encoded image of zero bytes", "fetch it again")
    return image


def source_state(source: Path | bytes, name: str, *, decode: bool) -> MediaState:
    """Return what is known of the image that `image_source` found; see `image_state`.

    Raises:
        BrokenImageError: it cannot be opened, or training cannot use it.
    """
    if isinstance(source, bytes):
        return image_state(io.BytesIO(source), "the encoded image", decode=decode)
    try:
        if source.stat().st_size == 0:
            raise BrokenImageError("zero", f"{name} has zero bytes", "fetch it again")
        with source.open("rb") as stream:
            return image_state(stream, name, decode=decode)
    except OSError as error:
        found = f"{name} cannot be opened ({error.strerror})"
        raise BrokenImageError("unreadable", found, "check its permissions") from None


class ImageChecker:
    """Checks images in threads, each path once, and remembers what it found."""

    def __init__(self, paths: ImagePaths) -> None:
        self.paths = paths
        self._known: dict[str, MediaState] = {}
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

    def states(self, images: Sequence[Image]) -> list[MediaState]:
        """Return what is known of each image, in order; those not seen before are looked at, in parallel."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        paths = [_path_of(image) for image in images]
        new = [path for path in dict.fromkeys(paths) if path is not None and path not in self._known]
        self._known.update(zip(new, self._threads.map(self._state, new), strict=True))
        others = [image for image, path in zip(images, paths, strict=True) if path is None]
        encoded = self._threads.map(self._state, others)
        return [next(encoded) if path is None else self._known[path] for path in paths]

    def resolve(self, path: str) -> Path:
        """Return the file that is opened for `path`; the path itself where there is none."""
        try:
            return self.paths.find(path)
        except BrokenImageError:
            return Path(path)

    def _state(self, image: Image) -> MediaState:
        try:
            state = source_state(image_source(image, self.paths), _named(_path_of(image) or ""), decode=True)
            if 0 in _LIMITS.fitted(state.width, state.height):
                size = f"{state.width} × {state.height} pixels"
                found = f"{size} leave nothing of one side at image_max_pixels {_LIMITS.max_pixels}"
                raise BrokenImageError("shape", found, "crop it")
            return state
        except BrokenImageError as broken:
            return MediaState(kind=broken.kind, found=broken.found, advice=broken.advice)


def image_paths(
    folder: str | Path | None, root: str | Path | None = None, beside: str | Path | None = None
) -> ImagePaths:
    """Tell where paths lead that start in `folder`, then beside the data, as LlamaFactory's do, and stay in `root`."""
    folders = dict.fromkeys(Path(start) for start in (folder, beside) if start is not None)
    return ImagePaths(tuple(folders), None if root is None else Path(root))


class ImageFolder:
    """Copies images into one folder, named by their content, so that no row can choose a path.

    Args:
        folder: gets a file per distinct image; None copies nothing, and only the root is watched.
        paths: where the rows' paths lead.
    """

    def __init__(self, folder: str | Path | None, paths: ImagePaths) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self._paths = paths
        self._copied: dict[Path, str] = {}

    def put(self, image: Image) -> Image:
        """Copy an image; return the path of the copy, or the image as it is where nothing is copied.

        Raises:
            PreferenceDataError: it is not there, is not an image, or lies outside the root.
        """
        try:
            if self._folder is None:
                path = _path_of(image)
                if path is not None and embedded_image(path) is None:
                    self._paths.places(path)
                return image
            source = image_source(image, self._paths)
            if isinstance(source, bytes):
                return self._write(self._folder, source, "the encoded image")
            if source not in self._copied:
                if len(self._copied) > _REMEMBERED:
                    self._copied.clear()
                self._copied[source] = self._write(self._folder, source.read_bytes(), str(source))
            return self._copied[source]
        except BrokenImageError as broken:
            raise PreferenceDataError.of([Fault("image", "images", broken.found, broken.advice)]) from None
        except OSError as error:
            found = f"{shown(image)} cannot be read ({error.strerror})"
            raise PreferenceDataError.of([Fault("image", "images", found, "set --image-root")]) from None

    @staticmethod
    def _write(folder: Path, encoded: bytes, name: str) -> str:
        try:
            with PILImage.open(io.BytesIO(encoded)) as opened:
                suffix = "jpg" if opened.format == "JPEG" else str(opened.format).lower()
        except Exception:  # a decoder's own error on a broken file may be of any class
            found = f"{_named(name)} is not an image that Pillow reads"
            raise BrokenImageError("not_an_image", found, "remove the row") from None
        digest = hashlib.sha256(encoded).hexdigest()[:32]
        path = folder / digest[:2] / f"{digest}.{suffix}"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(encoded)
        return str(path)


def _path_of(image: Image) -> str | None:
    """The path to open; None for an image whose bytes are in the row."""
    if isinstance(image, dict):
        return None if image.get("bytes") is not None else image["path"]
    return image if isinstance(image, str) and len(image) < 4096 else None


def _named(path: str) -> str:
    return path if path.isprintable() and len(path) <= 200 else shown(path)


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return encodable(text)


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))
