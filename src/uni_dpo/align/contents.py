"""What the files hold that a configuration names, so that a change of them is noticed and a copy of them is none."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from uni_dpo.data.columns import CONVERSATION_COLUMNS, IMAGE_COLUMNS, VIDEO_COLUMNS
from uni_dpo.data.dataset_info import read_entry, tokenized
from uni_dpo.data.image_state import BrokenImageError
from uni_dpo.data.images import ImagePaths, image_paths
from uni_dpo.data.tables.reading import numbered_rows, one_split
from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json
from uni_dpo.storage.identity import digest, file_digest, file_stamps
from uni_dpo.storage.writing import write_text


class Contents:
    """Digests of files and of the images and videos that their rows name.

    Each file is read once: its digest is kept with its size and time in `contents.json` of the work dir.
    """

    def __init__(self, work: Path) -> None:
        self.file = work / "contents.json"
        self.kept: dict[str, list[Any]] = read_json(self.file)
        self.changed = False
        self.told: dict[tuple[str, ...], dict[str, Any]] = {}

    def questions(self, path: str, root: str | None, media: str | None = None) -> dict[str, Any]:
        """Return what a file of rows is known by, and the images that it names, which start in `root` or in `media`."""
        key, folder = (path, str(root), str(media)), root if media is None else media
        if key not in self.told:
            files = one_split(path)
            images = [
                self._file(image) for file in files for image in _images(file, image_paths(folder, root, file.parent))
            ]
            rows = [self._file(file) for file in files]
            self.told[key] = {"questions": rows[0] if len(rows) == 1 else digest(rows)}
            self.told[key] |= {"images": digest(images)} if images else {}
        return self.told[key]

    def dataset(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the datasets are known by that a training's settings name; nothing of those elsewhere."""
        folder, names = settings.get("dataset_dir", "data"), settings.get("dataset") or []
        if not isinstance(folder, str) or tokenized(settings):
            return {}
        found: dict[str, Any] = {}
        for name in names.split(",") if isinstance(names, str) else names:
            with suppress(UniDPOError):  # the training says what is wrong with it
                if (place := read_entry(str(name).strip(), folder).path) is not None and place.exists():
                    media = str(settings.get("media_dir") or folder)
                    found[str(name).strip()] = self.questions(str(place), None, media)
        return found

    def table(self, path: str) -> str:
        """Return what a file or folder is known by, without the images that it names."""
        place = Path(path)
        return self._file(place) if place.is_file() else digest(file_stamps(place))

    def remember(self) -> None:
        """Keep what was read now for the next run."""
        if self.changed:
            self.changed = False
            write_text(self.file, json.dumps(self.kept, ensure_ascii=False) + "\n")

    def _file(self, path: Path) -> str:
        name, state = str(path.absolute()), path.stat()
        known = self.kept.get(name)
        stamp = [state.st_size, state.st_mtime_ns]
        if known is None or known[:2] != stamp:
            self.kept[name] = known = [*stamp, file_digest(path)[:16]]
            self.changed = True
        return str(known[2])


def _images(file: Path, paths: ImagePaths) -> Iterator[Path]:
    """The images and videos that rows name, in the order of the rows; what is missing or broken is found by others."""
    for _, _, row in numbered_rows(file):
        if isinstance(row, dict):
            for text in _texts([row.get(column) for column in (*IMAGE_COLUMNS, *VIDEO_COLUMNS, *CONVERSATION_COLUMNS)]):
                with suppress(BrokenImageError):
                    yield paths.find(text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)
