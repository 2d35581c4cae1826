"""Where a conversion puts images: files named by their content, so that no row can choose a path."""

import hashlib
import io
import os
from pathlib import Path

from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.pair import Image
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import regular, replacing


class ImageStore:
    """Copies images into one folder.

    Args:
        folder: gets a file per distinct image.
        root: the folder below which the rows' paths lie, and which none may leave; None takes them as they are.
    """

    def __init__(self, folder: str | Path, root: str | Path | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._root = None if root is None else Path(os.path.normpath(Path(root).absolute()))
        self._copied: dict[str, str] = {}

    def put(self, image: Image) -> str:
        """Copy an image; return the path of the copy.

        Raises:
            PreferenceDataError: it is not there, is not an image, or lies outside the root.
        """
        encoded = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(encoded, bytes):
            return self._write(encoded, "the encoded image")
        path = str(image["path"] if isinstance(image, dict) else image)
        if path not in self._copied:
            if len(self._copied) > 200_000:
                self._copied.clear()
            self._copied[path] = self._write(self._read(path), path)
        return self._copied[path]

    def _read(self, path: str) -> bytes:
        file = Path(path)
        if self._root is not None:
            file = Path(os.path.normpath(self._root / path))
            if not file.is_relative_to(self._root):
                raise _fault(f"{shown(path)} leaves {self._root}", "keep images below it")
        try:
            return regular(file).read_bytes()
        except UniDPOError as error:
            raise _fault(str(error), "name an image file") from None
        except OSError as error:
            raise _fault(f"{shown(path)} cannot be read ({error.strerror})", "set --image-root") from None

    def _write(self, encoded: bytes, name: str) -> str:
        from PIL import Image as PILImage

        try:
            with PILImage.open(io.BytesIO(encoded)) as opened:
                suffix = "jpg" if opened.format == "JPEG" else str(opened.format).lower()
        except Exception:  # a decoder's own error on a broken file may be of any class
            raise _fault(f"{shown(name)} is not an image that Pillow reads", "remove the row") from None
        digest = hashlib.sha256(encoded).hexdigest()[:32]
        path = self._folder / digest[:2] / f"{digest}.{suffix}"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(encoded)
        return str(path)


def _fault(found: str, advice: str) -> PreferenceDataError:
    return PreferenceDataError.of([Fault("image", "images", found, advice)])
