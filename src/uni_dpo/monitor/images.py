"""Images that are stored inside a dataset, kept small in a training's output folder for its page."""

import hashlib
import io
from pathlib import Path

from uni_dpo.ledger.columns import own_folder
from uni_dpo.report.page import small_jpeg
from uni_dpo.storage.writing import replacing


class KeptImages:
    """Small copies of images, each once, until there are as many as a page holds.

    Args:
        output: the training's output folder.
        writes: whether this process writes them; one of a run does.
        limit: how many different images at most.
    """

    def __init__(self, output: str | Path, *, writes: bool, limit: int = 3_000) -> None:
        self._folder, self._writes, self._limit = own_folder(output) / "images", writes, limit
        self._known: dict[str, str | None] = {}

    def path(self, content: bytes) -> str | None:
        """Return the file of an image, written by now; None where there is no room, or it is no readable image."""
        name = hashlib.sha256(content).hexdigest()[:20]
        if name not in self._known:
            if not self._writes or len(self._known) >= self._limit:
                return None
            self._known[name] = self._written(self._folder / f"{name}.jpg", content)
        return self._known[name]

    def _written(self, file: Path, content: bytes) -> str | None:
        if not file.is_file():
            small = small_jpeg(io.BytesIO(content))
            if small is None:
                return None
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                Path(temporary).write_bytes(small)
        return str(file)
